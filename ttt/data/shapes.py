"""Captioned scenes drawn on the fly: coloured shapes, alone or in a spatial relation. Independent of every model.

A scene is drawn with Pillow at four times its size and reduced, so that edges are anti-aliased as in a photograph.
Whole combinations of shape, colour and place are held out: training never draws them (`is_held_out`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw

Point = tuple[float, float]
Size = Literal["small", "medium", "large"]
Place = Literal["alone", "above", "below", "left", "right"]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "orange": (250, 138, 20),
    "yellow": (250, 220, 40),
    "green": (30, 150, 60),
    "blue": (36, 72, 216),
    "purple": (130, 44, 176),
    "pink": (250, 130, 190),
    "brown": (120, 68, 28),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (176, 176, 176),
    "black": (16, 16, 16),
    "cream": (255, 240, 205),
}
SIZES: dict[Size, float] = {"small": 0.15, "medium": 0.21, "large": 0.29}
"""Half the side of the box that a shape fills, as a share of the image's side."""
PLACES: tuple[Place, ...] = ("alone", "above", "below", "left", "right")
OPPOSITE: dict[Place, Place] = {
    "alone": "alone", "above": "below", "below": "above", "left": "right", "right": "left",
}  # fmt: skip


def _regular(corners: int, *, inner: float = 1.0, turn: float = -math.pi / 2) -> list[Point]:
    """Corners of a regular polygon or star around the origin, y downwards."""
    count = corners if inner == 1.0 else 2 * corners
    radii = [1.0 if i % 2 == 0 or inner == 1.0 else inner for i in range(count)]
    return [(r * math.cos(turn + math.tau * i / count), r * math.sin(turn + math.tau * i / count))
            for i, r in enumerate(radii)]  # fmt: skip


def _heart() -> list[Point]:
    ts = [math.tau * i / 64 for i in range(64)]
    return [
        (16 * math.sin(t) ** 3,
         -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
        for t in ts
    ]  # fmt: skip


def _cross(arm: float = 0.34) -> list[Point]:
    a = arm
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


def _fill_box(points: list[Point]) -> list[Point]:
    """The points centred on the origin and scaled so that the longer side of their bounding box is 2."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    cx, cy = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    half = max(max(xs) - min(xs), max(ys) - min(ys)) / 2
    return [((x - cx) / half, (y - cy) / half) for x, y in points]


OUTLINES: dict[str, list[Point]] = {
    "circle": _fill_box(_regular(72)),
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": _fill_box(_regular(3)),
    "star": _fill_box(_regular(5, inner=0.42)),
    "heart": _fill_box(_heart()),
    "diamond": [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],
    "cross": _cross(),
    "ring": _fill_box(_regular(72)),
}
"""Polygon of every shape in a box of side 2; the ring also has a hole of `RING_HOLE`."""
RING_HOLE = 0.52
SHAPES: tuple[str, ...] = tuple(OUTLINES)


@dataclass(frozen=True)
class ColoredShape:
    """One coloured shape; `x, y, radius` are shares of the image's side, `turn` is in radians."""

    shape: str
    color: str
    size: Size
    x: float
    y: float
    radius: float
    turn: float = 0.0


@dataclass(frozen=True)
class ShapeScene:
    """What is in an image: one thing alone, or the first thing in `place` relative to the second."""

    things: tuple[ColoredShape, ...]
    place: Place
    background: str
    jitter: int = 0
    """Seed of the small variations of colour, so that a scene always looks the same."""


def is_held_out(shape: str, color: str, place: Place) -> bool:
    """Whether training never shows this shape in this colour at this place (8 of 64 pairs for each place)."""
    names = list(COLORS)
    step = 2 * PLACES.index(place) + 3
    return names.index(color) == (3 * SHAPES.index(shape) + step) % len(names)


def scene_is_held_out(scene: ShapeScene) -> bool:
    """A pair is held out when either thing is: "a above b" is the same image as "b below a"."""
    places = (scene.place, OPPOSITE[scene.place])
    return any(is_held_out(t.shape, t.color, p) for t, p in zip(scene.things, places, strict=False))


def _place_pair(rng: random.Random, place: Place, radii: tuple[float, float]) -> tuple[Point, Point]:
    """Centres of two things that don't touch, the first in `place` relative to the second."""
    a, b = radii
    gap = rng.uniform(0.03, max(0.04, min(0.14, 0.94 - 2 * (a + b))))
    span = a + b + gap
    along_a = rng.uniform(0.03 + a, 0.97 - b - span)
    middle = rng.uniform(max(0.03 + a, 0.34), min(0.97 - a, 0.66))
    aside = middle + rng.uniform(-0.35, 0.35) * span  # the relation stays the plain one
    across = (middle, min(max(aside, 0.03 + b), 0.97 - b))
    first, second = along_a, along_a + span
    if place in ("below", "right"):
        first, second = 1 - first, 1 - second
    return ((across[0], first), (across[1], second)) if place in ("above", "below") else (
        (first, across[0]), (second, across[1]))  # fmt: skip


def random_scene(rng: random.Random, *, pair: float = 0.65, held_out: bool | None = False) -> ShapeScene:
    """Draw a scene; `pair` is the chance of two things.

    `held_out`: False gives scenes that training may see, True scenes that it never sees, None either.
    """
    while True:
        place: Place = rng.choice(PLACES[1:]) if rng.random() < pair else "alone"
        count = 1 if place == "alone" else 2
        background = rng.choices(list(BACKGROUNDS), weights=[5, 2, 2, 2])[0]
        sizes: list[Size] = [rng.choice(list(SIZES)) for _ in range(count)]
        if sizes == ["large", "large"]:
            sizes[rng.randrange(2)] = "medium"
        shrink = 0.85 if count == 2 else 1.0
        radii = [SIZES[s] * shrink * rng.uniform(0.94, 1.06) for s in sizes]
        looks = [(rng.choice(SHAPES), rng.choice(list(COLORS))) for _ in range(count)]
        if count == 2 and looks[0] == looks[1]:
            continue
        if count == 1:
            r = radii[0]
            margin = max(0.03 + r, 0.28)
            centres: tuple[Point, ...] = ((rng.uniform(margin, 1 - margin), rng.uniform(margin, 1 - margin)),)
        else:
            centres = _place_pair(rng, place, (radii[0], radii[1]))
        things = tuple(
            ColoredShape(shape, color, size, *centre, radius, rng.uniform(-0.08, 0.08))
            for (shape, color), size, centre, radius in zip(looks, sizes, centres, radii, strict=True)
        )
        scene = ShapeScene(things, place, background, rng.randrange(2**31))
        if held_out is None or scene_is_held_out(scene) == held_out:
            return scene


def draw(scene: ShapeScene, size: int = 128, *, supersample: int = 4) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels."""
    rng = random.Random(scene.jitter)
    side = size * supersample

    def vary(rgb: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
        return tuple(min(255, max(0, c + rng.randint(-amount, amount))) for c in rgb)  # type: ignore[return-value]

    background = vary(BACKGROUNDS[scene.background], 2)
    image = Image.new("RGB", (side, side), background)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        canvas.polygon(_corners(thing, side), fill=vary(COLORS[thing.color], 8))
        if thing.shape == "ring":
            canvas.polygon(_corners(thing, side, RING_HOLE), fill=background)
    return image.resize((size, size), Image.Resampling.BOX)


def _corners(thing: ColoredShape, side: int, scale: float = 1.0) -> list[Point]:
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    r = thing.radius * scale
    return [
        ((thing.x + r * (x * cos - y * sin)) * side, (thing.y + r * (x * sin + y * cos)) * side)
        for x, y in OUTLINES[thing.shape]
    ]


_SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
_PLACE_WORDS: dict[Place, tuple[str, ...]] = {
    "alone": (),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
}
_OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "an image of ", "there is ", "a photo of ")


def _article(phrase: str, rng: random.Random) -> str:
    if rng.random() < 0.08:
        return "one " + phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _phrase(thing: ColoredShape, rng: random.Random) -> str:
    say_size = rng.random() < (0.15 if thing.size == "medium" else 0.45)
    words = ([rng.choice(_SIZE_WORDS[thing.size])] if say_size else []) + [thing.color, thing.shape]
    return _article(" ".join(words), rng)


def caption(scene: ShapeScene, rng: random.Random) -> str:
    """One of many natural descriptions of the scene; size and background may be missing."""
    on = f" on a {scene.background} background" if rng.random() < 0.5 else ""
    opening = rng.choice(_OPENINGS)
    if scene.place == "alone":
        body = _phrase(scene.things[0], rng)
        if rng.random() < 0.08:  # as people type: no article
            body = body.split(" ", 1)[1]
        return opening + body + on
    first, second = (_phrase(t, rng) for t in scene.things)
    roll = rng.random()
    if roll < 0.7:
        body = f"{first} {rng.choice(_PLACE_WORDS[scene.place])} {second}"
    elif roll < 0.85:
        body = f"{second} {rng.choice(_PLACE_WORDS[OPPOSITE[scene.place]])} {first}"
    else:
        body = f"{second} with {first} {_it(scene.place)}"
    return opening + body + on


def _it(place: Place) -> str:
    return {"above": "above it", "below": "below it", "left": "to its left", "right": "to its right"}[place]


def plain_caption(scene: ShapeScene) -> str:
    """The shortest full description: colour, shape and relation only."""
    parts = [_article(f"{t.color} {t.shape}", random.Random(1)) for t in scene.things]
    return parts[0] if scene.place == "alone" else f"{parts[0]} {_PLACE_WORDS[scene.place][0]} {parts[1]}"


def change_one_thing(scene: ShapeScene, rng: random.Random) -> ShapeScene:
    """A sibling of the scene that differs in one colour, one shape, or the relation: a hard negative for CLIP.

    Never returns a scene that is held out.
    """
    changes: list[Callable[[], ShapeScene]] = [
        lambda: _with_thing(scene, rng, color=rng.choice(list(COLORS))),
        *[lambda: _with_thing(scene, rng, shape=rng.choice(SHAPES))] * 4,  # the hardest to see, so the most often
    ]
    if scene.place != "alone":
        changes += [
            lambda: replace(scene, things=_swap_places(scene.things)),
            lambda: _turned(scene),
            lambda: replace(scene, things=_swap_colors(scene.things)),
        ]
    while True:
        sibling = rng.choice(changes)()
        looks = {(t.shape, t.color) for t in sibling.things}
        if len(looks) == len(sibling.things) and not scene_is_held_out(sibling):
            return sibling


def _with_thing(scene: ShapeScene, rng: random.Random, **changed: str) -> ShapeScene:
    i = rng.randrange(len(scene.things))
    things = list(scene.things)
    things[i] = replace(things[i], **changed)  # type: ignore[arg-type]
    return replace(scene, things=tuple(things))


def _swap_places(things: tuple[ColoredShape, ...]) -> tuple[ColoredShape, ...]:
    a, b = things
    return (
        replace(b, x=a.x, y=a.y, radius=a.radius, size=a.size),
        replace(a, x=b.x, y=b.y, radius=b.radius, size=b.size),
    )


def _swap_colors(things: tuple[ColoredShape, ...]) -> tuple[ColoredShape, ...]:
    a, b = things
    return (replace(a, color=b.color), replace(b, color=a.color))


def _turned(scene: ShapeScene) -> ShapeScene:
    """The image's axes swapped: above becomes left."""
    place: dict[Place, Place] = {"above": "left", "left": "above", "below": "right", "right": "below", "alone": "alone"}
    things = tuple(replace(t, x=t.y, y=t.x) for t in scene.things)
    return replace(scene, things=things, place=place[scene.place])


def stream(seed: int, *, held_out: bool | None = False, start: int = 0) -> Iterator[tuple[ShapeScene, str]]:
    """Endless (scene, caption) pairs; number `i` depends only on `seed` and `i`, so a run resumes anywhere."""
    i = start
    while True:
        rng = random.Random(f"{seed}/{i}")
        scene = random_scene(rng, held_out=held_out)
        yield scene, caption(scene, rng)
        i += 1
