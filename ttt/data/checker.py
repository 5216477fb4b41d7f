"""Reads colour, shape and place of coloured shapes from an image's pixels. Independent of every model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from ttt.data.shapes import COLORS, OUTLINES, RING_HOLE, SHAPES, Place, ShapeScene

Mask = NDArray[np.bool_]

_BOX = 48
"""Pixels on the side of the box to which every region is stretched before its shape is compared."""
_UNCLEAR = 0.62
"""Least overlap (intersection over union) with a shape's outline; below it the shape is called unclear."""


@dataclass(frozen=True)
class DetectedShape:
    """One region: its colour, its shape ("unclear" where none fits), and its centre as shares of the side."""

    color: str
    shape: str
    x: float
    y: float


@dataclass(frozen=True)
class ShapeCheckResult:
    """Which attributes of the expected scene the image shows."""

    count: bool
    color: bool
    shape: bool
    place: bool

    @property
    def all(self) -> bool:
        return self.count and self.color and self.shape and self.place


def detect_shapes(image: Image.Image) -> list[DetectedShape]:
    """The regions of an image, largest first; specks are not counted."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3),
                             pixels[:, :3].reshape(-1, 3), pixels[:, -3:].reshape(-1, 3)])  # fmt: skip
    background = np.median(border, axis=0)
    foreground = np.linalg.norm(pixels - background, axis=2) > 55
    least = max(12, foreground.size // 350)
    regions = list(_split(foreground, least))
    parts = [part for region in regions for part in _by_color(pixels, region, least)]
    return [_classify(color, part) for color, part in sorted(parts, key=lambda p: -int(p[1].sum()))]


def check_shapes(image: Image.Image, expected: ShapeScene) -> ShapeCheckResult:
    """Compare an image with a scene; size and background are free."""
    detected = detect_shapes(image)
    if len(detected) != len(expected.things):
        return ShapeCheckResult(False, False, False, False)
    best = ShapeCheckResult(False, False, False, False)
    for ordered in (detected, detected[::-1]) if len(detected) == 2 else (detected,):
        pairs = list(zip(ordered, expected.things, strict=True))
        result = ShapeCheckResult(
            count=True,
            color=all(s.color == t.color for s, t in pairs),
            shape=all(s.shape == t.shape for s, t in pairs),
            place=expected.place == "alone" or _place(ordered[0], ordered[1]) == expected.place,
        )
        best = max(best, result, key=lambda v: (v.color + v.shape + v.place, v.color))
    return best


def _split(mask: Mask, least: int) -> list[Mask]:
    labels, count = ndimage.label(mask)
    return [region for i in range(1, count + 1) if (region := labels == i).sum() >= least]


def _by_color(pixels: NDArray[np.float32], region: Mask, least: int) -> list[tuple[str, Mask]]:
    """A region of one colour, or its two halves where two things touch."""
    inside = ndimage.binary_erosion(region)
    if inside.sum() < least // 2:
        inside = region
    palette = np.array(list(COLORS.values()), dtype=np.float32)
    nearest = np.linalg.norm(pixels[:, :, None] - palette, axis=3).argmin(axis=2)
    names = list(COLORS)
    shares = np.bincount(nearest[inside], minlength=len(names)) / inside.sum()
    major = [i for i in np.argsort(-shares) if shares[i] > 0.2]
    if len(major) < 2:
        return [(names[int(shares.argmax())], region)]
    parts = [(names[i], part) for i in major for part in _split(ndimage.binary_opening(region & (nearest == i)), least)]
    return parts or [(names[int(shares.argmax())], region)]


def _classify(color: str, region: Mask) -> DetectedShape:
    rows, columns = np.nonzero(region)
    box = region[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    stretched = np.asarray(Image.fromarray(box).resize((_BOX, _BOX), Image.Resampling.NEAREST))
    overlaps = [(stretched & t).sum() / (stretched | t).sum() for t in _templates()]
    best = int(np.argmax(overlaps))
    shape = SHAPES[best] if overlaps[best] >= _UNCLEAR else "unclear"
    side = region.shape[0]
    return DetectedShape(
        color, shape, (columns.min() + columns.max() + 1) / 2 / side, (rows.min() + rows.max() + 1) / 2 / side
    )


@cache
def _templates() -> tuple[Mask, ...]:
    """Every shape, stretched to the box."""
    return tuple(_template(shape) for shape in SHAPES)


def _template(shape: str) -> Mask:
    scale, big = 8, 8 * _BOX
    points = OUTLINES[shape]
    xs, ys = zip(*points, strict=True)
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    image = Image.new("L", (big, big))
    canvas = ImageDraw.Draw(image)
    canvas.polygon([((x - min(xs)) / width * big, (y - min(ys)) / height * big) for x, y in points], fill=255)
    if shape == "ring":
        low, high = big * (1 - RING_HOLE) / 2, big * (1 + RING_HOLE) / 2
        canvas.ellipse([low, low, high, high], fill=0)
    return np.asarray(image.reduce(scale)) > 127


def _place(first: DetectedShape, second: DetectedShape) -> Place:
    dx, dy = first.x - second.x, first.y - second.y
    place: Place = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("below" if dy > 0 else "above")
    return place
