"""The Contribute tab: this machine becomes a peer of a run."""
