"""Fast decoding over the weights of a Dalle. Knows no text, no pictures and no files."""
