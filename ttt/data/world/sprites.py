"""Sprites of every noun and of every coloured shape, RGBA, at the few sizes that the world uses.

The sheet of the nouns (`sprites.webp`, made by `scripts/build_sprites.py`) has a row for each noun of `NOUNS` in their
order, and in a row each style's sprites, smallest first. Shapes are drawn here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ttt.data.shapes import COLORS, OUTLINES, RING_HOLE
from ttt.data.world.nouns import NOUNS

Style = Literal["flat", "shaded"]
Pixels = NDArray[np.uint8]

STYLES: tuple[Style, ...] = get_args(Style)
"""One for each icon set: Fluent Emoji Flat, Noto Emoji."""
SIZES: tuple[int, ...] = (32, 48, 64)
"""Pixels on the side of a sprite: small, medium, large; whole codes of 8 x 8 pixels."""
MARGIN = 1
"""Transparent pixels around every sprite."""
SHEET = Path(__file__).with_name("sprites.webp")
_OVERSAMPLING = 4


@cache
def _sheet() -> Pixels:
    pixels = np.asarray(Image.open(SHEET).convert("RGBA"))
    expected = (len(NOUNS) * max(SIZES), len(STYLES) * sum(SIZES), 4)
    if pixels.shape != expected:
        raise RuntimeError(f"{SHEET.name} is {pixels.shape} and must be {expected}; run scripts/build_sprites.py")
    return pixels


@cache
def sprite(name: str, color: str | None, style: Style, size: int) -> Pixels:
    """A noun (`color` is None) or a coloured shape -> [size, size, 4], read-only."""
    pixels = _shape(name, color, size) if color is not None else _noun(name, style, size)
    pixels.setflags(write=False)
    return pixels


def _noun(name: str, style: Style, size: int) -> Pixels:
    top = list(NOUNS).index(name) * max(SIZES)
    place = SIZES.index(size)
    left = STYLES.index(style) * sum(SIZES) + sum(SIZES[:place])
    return _sheet()[top : top + size, left : left + size].copy()


def _shape(name: str, color: str, size: int) -> Pixels:
    side = size * _OVERSAMPLING
    radius = side / 2 - MARGIN * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    canvas = ImageDraw.Draw(mask)
    canvas.polygon([(side / 2 + radius * x, side / 2 + radius * y) for x, y in OUTLINES[name]], fill=255)
    if name == "ring":
        hole = radius * RING_HOLE
        canvas.polygon([(side / 2 + hole * x, side / 2 + hole * y) for x, y in OUTLINES[name]], fill=0)
    pixels = np.empty((size, size, 4), np.uint8)
    pixels[..., :3] = COLORS[color]
    pixels[..., 3] = np.asarray(mask.resize((size, size), Image.Resampling.BOX))
    return pixels
