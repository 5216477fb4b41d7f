"""Train together: everything that knows hivemind. Nothing is imported here, as hivemind is slow and for Linux alone."""
