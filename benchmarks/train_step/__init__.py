"""One training step against dalle-pytorch."""
