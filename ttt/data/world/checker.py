"""Reads from an image's pixels what a scene shows: things, places, background. Independent of every model.

The background is the one that most of the image agrees with. What differs from it is foreground, which is explained
one thing at a time: of all sprites (every noun in both styles, every coloured shape) at all sizes and places on the
grid around the largest unexplained part, the one that brings the image closest is detected there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ttt.data.shapes import COLORS, SHAPES
from ttt.data.world.backgrounds import BACKGROUNDS, SIDE, background, variants
from ttt.data.world.nouns import NOUNS
from ttt.data.world.scenes import GRID, RELATIONS, Relation, Scene, Thing
from ttt.data.world.sprites import SIZES, STYLES, Style, sprite

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

_REDUCE = 4
"""Images are compared at a quarter of their size: soft edges then matter little."""
_SHORTLIST = 12
"""Sprites and places, nearest by squared error, of which the nearest by absolute error is chosen."""
_DIFFERS = 30.0
"""Smoothed difference of a pixel from the background, of 255, above which it is foreground."""
_SPECK = 45
"""Pixels up to which a part of the foreground is no thing."""
_SLACK = 4
"""Pixels by which a part may reach beyond its sprite's box: soft edges."""
_UNEXPLAINED = 0.55
"""Share of a thing's difference from the background that its sprite may leave; above it the thing is unclear."""
_MOST_THINGS = 5


@dataclass(frozen=True)
class DetectedObject:
    """One thing: its label ("unclear" where no sprite fits), its style, and its box in pixels."""

    label: str
    style: Style | None
    x: float
    y: float
    size: int
    unexplained: float


@dataclass(frozen=True)
class CheckResult:
    """Which attributes of the expected scene the image shows."""

    count: bool
    color: bool
    thing: bool
    place: bool
    background: bool

    @property
    def all(self) -> bool:
        """Count, things and places are right; the background is free, as captions may not name it."""
        return self.count and self.color and self.thing and self.place

    def fits(self, *, background: bool) -> bool:
        """Everything that a caption says is right; `background`: whether it says where the scene is."""
        return self.whole if background else self.all

    @property
    def whole(self) -> bool:
        """Everything is right, the background too."""
        return self.all and self.background


def detect_objects(image: Image.Image | NDArray[np.uint8]) -> tuple[str, list[DetectedObject]]:
    """(background, things from left to right) of an RGB image of SIDE x SIDE pixels."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image, dtype=np.float32)
    name, variant = _background_of(pixels)
    behind = background(name, variant).astype(np.float32)
    low, high = _range_of(name, variant)
    outside = np.maximum(pixels - high, low - pixels).max(axis=2).clip(0)
    foreground = ndimage.gaussian_filter(outside, 0.8) > _DIFFERS
    small, small_behind = _reduce(pixels), _reduce(behind)
    things: list[DetectedObject] = []
    while len(things) < _MOST_THINGS and (part := _largest_part(foreground)):
        detected = _identify(part, small, small_behind)
        things.append(detected)
        left, top = max(0, int(detected.x - detected.size / 2)), max(0, int(detected.y - detected.size / 2))
        for x0, y0, x1, y1 in ((left, top, left + detected.size, top + detected.size), part):
            foreground[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = False
            explained = np.s_[y0 // _REDUCE : -(-y1 // _REDUCE), x0 // _REDUCE : -(-x1 // _REDUCE)]
            small[explained] = small_behind[explained]
    return name, sorted(things, key=lambda detected: detected.x)


def check_scene(image: Image.Image | NDArray[np.uint8], expected: Scene) -> CheckResult:
    """Compare an image with a scene; sizes and style are free."""
    name, detected = detect_objects(image)
    same = name == expected.background
    if len(detected) != len(expected.things):
        return CheckResult(False, False, False, False, same)
    best = CheckResult(True, False, False, False, same)
    for order in _orders(detected, expected):
        matches = list(zip(order, expected.things, strict=True))
        result = CheckResult(
            count=True,
            color=all(t.color is None or s.label.split(" ")[0] == t.color for s, t in matches),
            thing=all(_same_name(s, t) for s, t in matches),
            place=_in_place(order, expected.relation),
            background=same,
        )
        best = max(best, result, key=lambda v: (v.color + v.thing + v.place, v.thing))
    return best


def _same_name(detected: DetectedObject, thing: Thing) -> bool:
    name = detected.label if thing.color is None else detected.label.split(" ", 1)[-1]
    return name == thing.name


def _orders(detected: list[DetectedObject], expected: Scene) -> Iterator[list[DetectedObject]]:
    """Which detected thing may be which expected one; a row is read from the left."""
    yield detected
    if expected.relation in RELATIONS:
        yield detected[::-1]


def _in_place(things: list[DetectedObject], relation: Relation) -> bool:
    if relation == "row":  # "b between a and c" may be read from either side, but a row looks like one
        return all(b.x - a.x > abs(b.y - a.y) for a, b in pairwise(things))
    if relation not in RELATIONS:
        return True
    dx, dy = things[0].x - things[1].x, things[0].y - things[1].y
    found = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("below" if dy > 0 else "above")
    return found == relation


# --- background and parts ---------------------------------------------------------------------------------------

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@cache
def _backgrounds() -> tuple[list[tuple[str, int]], Floats]:
    names = [(name, v) for name in BACKGROUNDS for v in range(variants(name))]
    return names, np.stack([background(name, v)[::4, ::4].astype(np.float32) for name, v in names])


@cache
def _range_of(name: str, variant: int) -> tuple[Floats, Floats]:
    """Least and largest values around every pixel [SIDE, SIDE, 3]: a blurred horizon stays between them."""
    pixels = background(name, variant).astype(np.float32)
    near = (5, 5, 1)
    return ndimage.minimum_filter(pixels, size=near), ndimage.maximum_filter(pixels, size=near)


def _background_of(pixels: Floats) -> tuple[str, int]:
    """(name, variant). Differences are cut off: things cover less than half of an image."""
    names, images = _backgrounds()
    difference = np.abs(images - pixels[::4, ::4]).mean(axis=3)
    return names[int(np.minimum(difference, 40).mean(axis=(1, 2)).argmin())]


def _largest_part(foreground: Mask) -> Box | None:
    """The box of the largest connected part; None where only specks are left."""
    labels, count = ndimage.label(foreground)
    if not count:
        return None
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    largest = int(areas.argmax())
    if areas[largest] <= _SPECK:
        return None
    rows, columns = ndimage.find_objects(labels)[largest - 1]
    return columns.start, rows.start, columns.stop, rows.stop


# --- matching ---------------------------------------------------------------------------------------------------


def _reduce(pixels: Floats) -> Floats:
    """[h, w, c] -> [h / 4, w / 4, c], means."""
    height, width, channels = pixels.shape
    return pixels.reshape(height // _REDUCE, _REDUCE, width // _REDUCE, _REDUCE, channels).mean(axis=(1, 3))


class _Templates:
    """All detectable objects at one size, reduced: colours times alpha [n, s, s, 3] and alpha [n, s, s, 1]."""

    def __init__(self, size: int) -> None:
        looks: list[tuple[str, str | None, Style | None]] = [(name, None, style) for name in NOUNS for style in STYLES]
        looks += [(shape, color, None) for shape in SHAPES for color in COLORS]
        sprites = [sprite(name, color, style or "flat", size) for name, color, style in looks]
        pixels = np.stack(sprites).astype(np.float32)
        alpha = pixels[..., 3:] / 255
        n = len(looks)
        self.labels = [(name if color is None else f"{color} {name}", style) for name, color, style in looks]
        self.colors = np.stack([_reduce(p) for p in pixels[..., :3] * alpha])
        self.alpha = np.stack([_reduce(a) for a in alpha])
        self._c, self._a = self.colors.reshape(n, -1), self.alpha.reshape(n, -1)
        self._ac, self._aa = (self.alpha * self.colors).reshape(n, -1), self._a**2
        self._cc = (self._c**2).sum(axis=1)[:, None]

    def squared_errors(self, parts: Floats, behind: Floats) -> Floats:
        """Squared distance of every template on `behind` from `parts`, both [p, s, s, 3] -> [n, p].

        Expanded into products of matrices: |c - (a b + q)|^2 with q = part - behind.
        """
        p, q = len(parts), parts - behind
        bb, bq = (behind * behind).sum(3).reshape(p, -1).T, (behind * q).sum(3).reshape(p, -1).T
        b, r = behind.reshape(p, -1).T, q.reshape(p, -1).T
        cross = self._ac @ b + self._c @ r - self._a @ bq
        return self._cc + self._aa @ bb + (r * r).sum(axis=0) - 2 * cross


@cache
def _templates(size: int) -> _Templates:
    return _Templates(size)


def _places(part: Box, size: int) -> list[tuple[int, int]]:
    """(left, top) on the grid of every box of this size that the part fits in."""
    spans = []
    for low, high in ((part[0], part[2]), (part[1], part[3])):
        first, last = max(0, high - _SLACK - size), min(SIDE - size, low + _SLACK)
        spans.append([v for v in range(0, SIDE - size + 1, GRID) if first <= v <= last])
    return [(left, top) for left in spans[0] for top in spans[1]]


def _identify(part: Box, image: Floats, background_image: Floats) -> DetectedObject:
    """The sprite that explains the part, and what lies around it, best."""
    shortlist: list[tuple[float, int, int, tuple[int, int]]] = []
    for size in SIZES:
        places = _places(part, size)
        if not places:
            continue
        parts, behind = _cut(image, places, size), _cut(background_image, places, size)
        gains = ((parts - behind) ** 2).sum(axis=(1, 2, 3)) - _templates(size).squared_errors(parts, behind)
        for flat in np.argsort(-gains, axis=None)[:_SHORTLIST]:
            i, p = np.unravel_index(flat, gains.shape)
            shortlist.append((float(gains[i, p]), size, int(i), places[int(p)]))
    if not shortlist:  # larger than any sprite
        side = max(part[2] - part[0], part[3] - part[1])
        return DetectedObject("unclear", None, (part[0] + part[2]) / 2, (part[1] + part[3]) / 2, side, 1.0)
    shortlist.sort(key=lambda entry: -entry[0])
    best, best_gain = None, -np.inf
    for _, size, i, place in shortlist[:_SHORTLIST]:
        pixels, behind = _cut(image, [place], size)[0], _cut(background_image, [place], size)[0]
        templates = _templates(size)
        error = float(np.abs(templates.colors[i] + (1 - templates.alpha[i]) * behind - pixels).sum())
        energy = float(np.abs(pixels - behind).sum())
        if energy - error > best_gain:
            best_gain, best = energy - error, (error / max(energy, 1e-6), size, *templates.labels[i], place)
    assert best is not None
    share, size, label, style, (left, top) = best
    return DetectedObject(
        label if share <= _UNEXPLAINED else "unclear", style, left + size / 2, top + size / 2, size, float(share)
    )


def _cut(image: Floats, places: list[tuple[int, int]], size: int) -> Floats:
    """Boxes of a reduced image -> [p, s, s, 3]."""
    side = size // _REDUCE
    return np.stack([image[y // _REDUCE :, x // _REDUCE :][:side, :side] for x, y in places])
