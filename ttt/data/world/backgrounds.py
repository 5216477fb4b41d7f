"""Backgrounds of the demo's world: plain colours and scenery, each in a few fixed variants."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Pixels = NDArray[np.uint8]

SIDE = 128
"""Pixels on the side of every image of the world."""
VARIANTS = 2
"""Of each scenery: the hill to the left or to the right, other stars."""
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Background:
    """How a background looks and what captions call it."""

    phrases: tuple[str, ...]
    """What follows the things: "on a green hill"."""
    draw: Callable[[Image.Image, int], None]
    """Draws onto a blank image of any size; the number is the variant."""
    ground: bool = False
    """Things stand on it, and do not float."""


def _gradient(image: Image.Image, top: Rgb, bottom: Rgb, until: float = 1.0) -> None:
    """A vertical gradient from the image's upper edge down to the share `until` of its height."""
    width, height = image.size
    rows = round(until * height)
    ramp = np.linspace(0, 1, rows)[:, None, None]
    pixels = np.array(top) + ramp * (np.array(bottom) - np.array(top))
    strip = np.broadcast_to(pixels, (rows, width, 3)).round().astype(np.uint8)
    image.paste(Image.fromarray(np.ascontiguousarray(strip)))


def _hill(image: Image.Image, variant: int, color: Rgb) -> None:
    """A low hill, to the left or to the right of the centre."""
    side = image.width
    centre = side * (0.35 if variant == 0 else 0.65)
    top = 0.66 * side
    ImageDraw.Draw(image).ellipse([centre - 1.15 * side, top, centre + 1.15 * side, top + 2 * side], fill=color)


def _ground(image: Image.Image, top: float, color: Rgb, bottom: float = 1.0) -> None:
    side = image.width
    ImageDraw.Draw(image).rectangle([0, round(top * side), side, round(bottom * side)], fill=color)


def _dots(image: Image.Image, variant: int, count: int, color: Rgb, until: float, radius: float = 0.007) -> None:
    """Stars or snowflakes: the same for a variant, spread evenly."""
    rng = random.Random(f"dots/{variant}")
    side = image.width
    canvas = ImageDraw.Draw(image)
    across = 4
    for i in range(count):
        x = (i % across + rng.uniform(0.15, 0.85)) / across * side
        y = (i // across + rng.uniform(0.15, 0.85)) / (count // across) * until * side
        r = radius * side * rng.choice((0.8, 1.2))
        canvas.ellipse([x - r, y - r, x + r, y + r], fill=color)


def _plain(color: Rgb) -> Callable[[Image.Image, int], None]:
    return lambda image, variant: image.paste(color, (0, 0, *image.size))


def _green_hill(image: Image.Image, variant: int) -> None:
    _gradient(image, (120, 190, 245), (215, 238, 255))
    _hill(image, variant, (110, 185, 80))


def _night(image: Image.Image, variant: int) -> None:
    _gradient(image, (12, 14, 46), (44, 46, 100))
    _dots(image, variant, 16, (235, 235, 250), 0.62)
    _ground(image, 0.81, (24, 44, 40))


def _hill_at_night(image: Image.Image, variant: int) -> None:
    _gradient(image, (12, 14, 46), (44, 46, 100))
    _dots(image, variant, 16, (235, 235, 250), 0.62)
    _hill(image, variant, (38, 92, 52))


def _beach(image: Image.Image, variant: int) -> None:
    _gradient(image, (255, 214, 150), (255, 236, 205))
    _ground(image, 0.5, (60, 155, 205), 0.69)
    _ground(image, 0.69, (240, 214, 150))
    if variant:
        _ground(image, 0.665, (225, 243, 250), 0.695)


def _water(image: Image.Image, variant: int) -> None:
    _gradient(image, (62, 150, 208), (14, 52, 108))
    _dots(image, variant, 8, (130, 195, 232), 1.0, 0.014)


def _snow(image: Image.Image, variant: int) -> None:
    _gradient(image, (150, 176, 204), (196, 212, 230))
    _dots(image, variant, 16, (255, 255, 255), 0.68, 0.009)
    _ground(image, 0.72, (250, 251, 255))


def _sunset(image: Image.Image, variant: int) -> None:
    _gradient(image, (112, 70, 150), (255, 170, 90), 0.75)
    side = image.width
    x, y, r = side * (0.2 if variant == 0 else 0.8), 0.72 * side, 0.1 * side
    ImageDraw.Draw(image).ellipse([x - r, y - r, x + r, y + r], fill=(255, 226, 130))
    _ground(image, 0.75, (84, 58, 92))


BACKGROUNDS: dict[str, Background] = {
    "white": Background(("on a white background", "on white"), _plain((255, 255, 255))),
    "gray": Background(("on a gray background", "on gray"), _plain((176, 176, 176))),
    "black": Background(("on a black background", "on black"), _plain((16, 16, 16))),
    "cream": Background(("on a cream background",), _plain((255, 240, 205))),
    "pink": Background(("on a pink background", "on pink"), _plain((250, 190, 215))),
    "hill": Background(("on a green hill", "on a hill", "on the grass", "in the grass"), _green_hill, ground=True),
    "night": Background(("at night", "under the stars", "in the night"), _night, ground=True),
    "hill at night": Background(("on a green hill at night", "on a hill at night"), _hill_at_night, ground=True),
    "beach": Background(("on the beach", "at the beach", "on a beach"), _beach, ground=True),
    "water": Background(("under water", "in the sea", "underwater"), _water),
    "snow": Background(("in the snow", "on snow", "in winter"), _snow, ground=True),
    "sunset": Background(("at sunset", "at dusk"), _sunset, ground=True),
}
PLAIN: tuple[str, ...] = ("white", "gray", "black", "cream", "pink")


def variants(name: str) -> int:
    """Number of variants of a background: plain ones have one."""
    return 1 if name in PLAIN else VARIANTS


@cache
def background(name: str, variant: int = 0) -> Pixels:
    """The background without anything on it [SIDE, SIDE, 3], read-only."""
    image = Image.new("RGB", (SIDE * _OVERSAMPLING,) * 2)
    BACKGROUNDS[name].draw(image, variant)
    pixels = np.array(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    pixels.setflags(write=False)
    return pixels
