"""Drawn images that stand in for generated ones. Independent of the model and of Gradio."""

from __future__ import annotations

import hashlib
import random

from PIL import Image, ImageDraw

SIDE = 128
COLOURS = ("#c0392b", "#2666b0", "#2e8b57", "#d9a400", "#7d3c98", "#e67e22", "#16818a", "#444444")


def draw_image(prompt: str, seed: int, candidate: int) -> Image.Image:
    """Two shapes on a plain background, determined by the arguments."""
    rng = random.Random(hashlib.sha256(f"{prompt}/{seed}/{candidate}".encode()).digest())
    image = Image.new("RGB", (SIDE, SIDE), rng.choice(("#ffffff", "#e9edf2", "#f6efe2", "#dfe8df")))
    draw = ImageDraw.Draw(image)
    for _ in range(2):
        r, x, y = rng.randint(14, 30), rng.randint(30, 98), rng.randint(30, 98)
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape((x - r, y - r, x + r, y + r), fill=rng.choice(COLOURS))
    return image
