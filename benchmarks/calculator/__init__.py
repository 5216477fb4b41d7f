"""The memory calculator against real objects."""
