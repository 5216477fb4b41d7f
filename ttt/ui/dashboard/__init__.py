"""The Dashboard tab: the progress of runs, their participants and their sample images."""
