"""What a peer trains: the model and optimizer of a run, and the memory and hardware that they need."""
