"""Fast sampling of codes with the weights of a Dalle. Independent of prompts as text, images and files."""
