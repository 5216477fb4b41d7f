"""The coordinator of a run: bootstrap node, checkpoints, uploads, sample images, metrics and credit."""
