"""What a run is: its settings, its file, and the options of those who take part."""
