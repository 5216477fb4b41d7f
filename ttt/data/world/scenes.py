"""Scenes of one to three emoji or coloured shapes: what may be in them, what is held out, how they are drawn.

Everything lies on the grid of codes: sprites have sides of 32, 48 or 64 pixels and start at multiples of 8, so a
thing of one size, style and background always gives nearly the same codes.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttt.data.shapes import COLORS, SHAPES
from ttt.data.world.backgrounds import BACKGROUNDS, SIDE, background, variants
from ttt.data.world.nouns import NOUNS
from ttt.data.world.sprites import SIZES, STYLES, Style, sprite

Pixels = NDArray[np.uint8]
Relation = Literal["alone", "above", "below", "left", "right", "count", "row"]

Kind = Literal["alone", "pair", "count", "row"]
KINDS: tuple[Kind, ...] = get_args(Kind)

RELATIONS: tuple[Relation, ...] = ("above", "below", "left", "right")
"""Of two things: the first is above, below, left or right of the second."""
OPPOSITE: dict[Relation, Relation] = {"above": "below", "below": "above", "left": "right", "right": "left"}
GRID = 8
SMALL, MEDIUM, LARGE = SIZES
LEAST_VISIBLE = 0.3
"""Share of a thing's pixels that must differ from what is behind them by at least `VISIBLE`, of 255."""
VISIBLE = 48
HELD_OUT_IN = 10
"""One in so many combinations is held out."""
_FLOATING = ("sun", "moon", "cloud", "rainbow", "planet", "airplane", "helicopter", "rocket", "ufo", "kite", "balloon",
             "snowflake", "bird", "bee", "butterfly")  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A noun, or a shape with a colour; `left`, `top` and `size` are pixels."""

    name: str
    color: str | None
    size: int
    left: int
    top: int

    @property
    def label(self) -> str:
        """The name, with the colour of a shape."""
        return self.name if self.color is None else f"{self.color} {self.name}"

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.size / 2, self.top + self.size / 2


@dataclass(frozen=True)
class Scene:
    """What is in an image.

    `relation`: "alone" (one thing), where the first of two things is, "count" (two or three of one thing) or "row"
    (two or three things from left to right).
    """

    things: tuple[Thing, ...]
    relation: Relation
    background: str
    style: Style
    variant: int = 0


# --- what is held out -------------------------------------------------------------------------------------------


def _is_held_out(combination: str) -> bool:
    return zlib.crc32(combination.encode()) % HELD_OUT_IN == 0


def is_held_out_on(label: str, background_name: str) -> bool:
    """Training never shows this thing on this background."""
    return _is_held_out(f"{label} / {background_name}")


def is_held_out_pair(first: str, relation: Relation, second: str) -> bool:
    """Training never shows this pair; "a above b" is the same image as "b below a"."""
    if relation in ("below", "right"):
        first, relation, second = second, OPPOSITE[relation], first
    return _is_held_out(f"{first} {relation} {second}")


def pairs(scene: Scene) -> list[tuple[str, Relation, str]]:
    """Every relation of two neighbours in the scene."""
    if scene.relation in RELATIONS:
        return [(scene.things[0].label, scene.relation, scene.things[1].label)]
    if scene.relation == "row":
        return [(a.label, "left", b.label) for a, b in pairwise(scene.things)]
    return []


def scene_is_held_out(scene: Scene) -> bool:
    """Whether training never shows the scene: because of a thing's background, or of a pair."""
    return any(is_held_out_on(t.label, scene.background) for t in scene.things) or any(
        is_held_out_pair(*pair) for pair in pairs(scene)
    )


# --- random scenes ----------------------------------------------------------------------------------------------


def random_scene(rng: random.Random, *, kind: Kind | None = None, held_out: bool | None = False) -> Scene:
    """A scene of any kind, or of one.

    held_out: False gives scenes that training may see; True gives scenes whose only held-out combination is the one
    that the kind is about (the thing on its background, or the pair); None gives either.
    """
    while True:
        scene = _draw_lots(rng, kind or rng.choices(KINDS, weights=(36, 46, 10, 8))[0])
        if not is_visible(scene):
            continue
        if held_out is None or (not held_out and not scene_is_held_out(scene)):
            return scene
        if held_out and _is_proper_test(scene):
            return scene


def _is_proper_test(scene: Scene) -> bool:
    on = [is_held_out_on(t.label, scene.background) for t in scene.things]
    between = [is_held_out_pair(*pair) for pair in pairs(scene)]
    return any(between) and not any(on) if between else any(on)


def _draw_lots(rng: random.Random, kind: Kind) -> Scene:
    name = rng.choice(list(BACKGROUNDS))
    style = rng.choice(STYLES)
    variant = rng.randrange(variants(name))
    relation: Relation = "alone"
    things: tuple[Thing, ...]
    if kind == "alone":
        things = (_one(rng, *_look(rng, 0.3), name),)
    elif kind == "pair":
        first, second = _two_looks(rng)
        relation = rng.choice(RELATIONS)
        things = _pair(rng, first, second, relation, name)
    elif kind == "count":
        look, relation = _look(rng, 0.25), "count"
        things = _row(rng, [look] * rng.choice((2, 3)), name)
    else:
        relation = "row"
        looks = [_look(rng, 0.15) for _ in range(3)]
        while len(set(looks)) < 3:
            looks = [_look(rng, 0.15) for _ in range(3)]
        things = _row(rng, looks, name)
    return Scene(things, relation, name, style, variant)


def _look(rng: random.Random, shape: float) -> tuple[str, str | None]:
    """Name and colour; `shape` is the chance of a coloured shape."""
    if rng.random() < shape:
        return rng.choice(SHAPES), rng.choice(list(COLORS))
    return rng.choice(list(NOUNS)), None


def _two_looks(rng: random.Random) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
    """Two different things: mostly nouns, sometimes two shapes, seldom one of each."""
    while True:
        roll = rng.random()
        chances = (1.0, 1.0) if roll < 0.25 else (0.0, 1.0) if roll < 0.3 else (1.0, 0.0) if roll < 0.35 else (0.0, 0.0)
        first, second = (_look(rng, chance) for chance in chances)
        if first != second:
            return first, second


def _base(rng: random.Random, name: str, floating: bool) -> int:
    """The row of pixels on which things stand."""
    if BACKGROUNDS[name].ground and not floating:
        return rng.choice((104, 112, 120))
    return rng.choice((80, 88, 96))


def _one(rng: random.Random, name: str, color: str | None, behind: str) -> Thing:
    size = rng.choices(SIZES, weights=(1, 2, 4))[0]
    base = min(max(_base(rng, behind, color is not None or name in _FLOATING), size + GRID), SIDE - GRID)
    left = _on_grid((SIDE - size) / 2) + rng.choice((-16, 0, 0, 16))
    return Thing(name, color, size, left, base - size)


def _pair(
    rng: random.Random,
    first: tuple[str, str | None],
    second: tuple[str, str | None],
    relation: Relation,
    behind: str,
) -> tuple[Thing, ...]:
    sizes = rng.choices([(48, 48), (64, 32), (32, 64), (48, 32), (32, 48), (32, 32), (64, 48), (48, 64)],
                        weights=[8, 1, 1, 1, 1, 1, 1, 1])[0]  # fmt: skip
    if relation in ("left", "right"):
        a, b = (first, second) if relation == "left" else (second, first)
        near, far = sizes
        gap = rng.choice([g for g in (8, 16, 24) if near + g + far <= SIDE - 2 * 4] or [8])
        left = _on_grid((SIDE - near - gap - far) / 2)
        base = _base(rng, behind, floating=False)
        base = max(base, max(sizes) + GRID)
        one = Thing(*a, near, left, base - near)
        other = Thing(*b, far, left + near + gap, base - far)
    else:
        a, b = (first, second) if relation == "above" else (second, first)
        upper, lower = sizes
        gap = rng.choice([g for g in (8, 16) if upper + g + lower <= SIDE - 2 * 4] or [8])
        top = _on_grid((SIDE - upper - gap - lower) / 2)
        middle = SIDE // 2 + rng.choice((-16, 0, 0, 16))
        one = Thing(*a, upper, _on_grid(middle - upper / 2), top)
        other = Thing(*b, lower, _on_grid(middle - lower / 2), top + upper + gap)
    return (one, other) if (a, b) == (first, second) else (other, one)


def _row(rng: random.Random, looks: list[tuple[str, str | None]], behind: str) -> tuple[Thing, ...]:
    """Two or three things from left to right."""
    size = 32 if len(looks) == 3 else rng.choice((32, 48))
    gap = 8
    left = _on_grid((SIDE - len(looks) * size - (len(looks) - 1) * gap) / 2)
    base = _base(rng, behind, floating=False)
    return tuple(Thing(*look, size, left + i * (size + gap), base - size) for i, look in enumerate(looks))


def _on_grid(value: float) -> int:
    return int(value // GRID) * GRID


# --- visibility -------------------------------------------------------------------------------------------------


def is_visible(scene: Scene) -> bool:
    """Every thing stands out from what is behind it."""
    return all(_visible(t, scene.background, scene.variant, scene.style) >= LEAST_VISIBLE for t in scene.things)


@cache
def _visible(thing: Thing, behind: str, variant: int, style: Style) -> float:
    """Share of the sprite's pixels that differ from the background."""
    pixels = sprite(thing.name, thing.color, style, thing.size)
    box = background(behind, variant)[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size]
    difference = np.abs(pixels[..., :3].astype(np.int16) - box).max(axis=2)[pixels[..., 3] > 127]
    return float((difference >= VISIBLE).mean())


# --- drawing ----------------------------------------------------------------------------------------------------


def draw(scene: Scene) -> Pixels:
    """The scene [SIDE, SIDE, 3] uint8."""
    canvas = background(scene.background, scene.variant).copy()
    for thing in scene.things:
        put(canvas, sprite(thing.name, thing.color, scene.style, thing.size), thing.left, thing.top)
    return canvas


def put(canvas: Pixels, pixels: Pixels, left: int, top: int) -> None:
    """Blend a sprite [s, s, 4] into the canvas, in place."""
    size = len(pixels)
    box = canvas[top : top + size, left : left + size]
    alpha = pixels[..., 3:].astype(np.uint16)
    box[...] = (pixels[..., :3] * alpha + box * (255 - alpha) + 127) // 255


def draw_image(scene: Scene) -> Image.Image:
    """The scene as an RGB image."""
    return Image.fromarray(draw(scene))


# --- siblings ---------------------------------------------------------------------------------------------------


def change_one_thing(scene: Scene, rng: random.Random) -> Scene:
    """A scene that differs in one thing, in the relation, in the count or in the background: a hard negative.

    Never held out, always visible.
    """
    while True:
        sibling = _change(scene, rng)
        labels = [t.label for t in sibling.things]
        distinct = sibling.relation == "count" or len(set(labels)) == len(labels)
        if sibling != scene and distinct and is_visible(sibling) and not scene_is_held_out(sibling):
            return sibling


def _change(scene: Scene, rng: random.Random) -> Scene:
    things = list(scene.things)
    roll = rng.random()
    if roll < 0.25:
        name = rng.choice([name for name in BACKGROUNDS if name != scene.background])
        return replace(scene, background=name, variant=rng.randrange(variants(name)))
    if roll < 0.6 and scene.relation in (*RELATIONS, "row"):
        i, j = rng.sample(range(len(things)), 2)
        a, b = things[i], things[j]
        things[i], things[j] = replace(a, name=b.name, color=b.color), replace(b, name=a.name, color=a.color)
        return replace(scene, things=tuple(things))
    if roll < 0.7 and scene.relation == "count":
        look = (things[0].name, things[0].color)
        return replace(scene, things=_row(rng, [look] * (5 - len(things)), scene.background))
    if scene.relation == "count":
        name, color = _look(rng, 0.25)
        return replace(scene, things=tuple(replace(t, name=name, color=color) for t in things))
    i = rng.randrange(len(things))
    if things[i].color is not None and rng.random() < 0.7:
        changed = {"color": rng.choice(list(COLORS))} if rng.random() < 0.5 else {"name": rng.choice(SHAPES)}
        things[i] = replace(things[i], **changed)  # type: ignore[arg-type]
    else:
        name, color = _look(rng, 0.0)
        things[i] = replace(things[i], name=name, color=color)
    return replace(scene, things=tuple(things))


def stream(
    seed: int, *, kind: Kind | None = None, held_out: bool | None = False, start: int = 0
) -> Iterator[tuple[Scene, random.Random]]:
    """Endless scenes of any kind, or of one; number `i` depends on `seed` and `i` alone.

    Each comes with the random generator that its caption continues.
    """
    i = start
    while True:
        rng = random.Random(f"world/{seed}/{i}")
        yield random_scene(rng, kind=kind, held_out=held_out), rng
        i += 1
