"""Scenes: what training may see, what is held out, and that images and captions agree."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from ttt.data import shapes
from ttt.data.checker import check_shapes, detect_shapes


def scenes(count: int, *, seed: int = 0, held_out: bool | None = None) -> list[shapes.ShapeScene]:
    return [scene for scene, _ in islice(shapes.stream(seed, held_out=held_out), count)]


def test_there_are_enough_of_everything() -> None:
    assert len(shapes.SHAPES) >= 8
    assert len(shapes.COLORS) >= 8
    assert len(shapes.BACKGROUNDS) >= 3
    assert len(shapes.SIZES) == 3


def test_each_place_holds_out_one_color_of_every_shape() -> None:
    for place in shapes.PLACES:
        out = [(s, c) for s in shapes.SHAPES for c in shapes.COLORS if shapes.is_held_out(s, c, place)]
        assert Counter(s for s, _ in out) == Counter(shapes.SHAPES)
        assert len({c for _, c in out}) == len(shapes.COLORS)


def test_training_never_draws_a_held_out_combination_under_either_name() -> None:
    for scene in scenes(2000, held_out=False):
        first = scene.things[0]
        assert not shapes.is_held_out(first.shape, first.color, scene.place)
        if scene.place != "alone":
            second = scene.things[1]
            assert not shapes.is_held_out(second.shape, second.color, shapes.OPPOSITE[scene.place])


def test_held_out_scenes_are_all_held_out() -> None:
    assert all(shapes.scene_is_held_out(scene) for scene in scenes(200, held_out=True))


def test_siblings_differ_and_stay_within_training() -> None:
    rng = random.Random(0)
    for scene in scenes(300, held_out=False):
        sibling = shapes.change_one_thing(scene, rng)
        assert not shapes.scene_is_held_out(sibling)
        assert len(sibling.things) == len(scene.things)


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    whole = list(islice(shapes.stream(7), 20))
    assert list(islice(shapes.stream(7, start=12), 8)) == whole[12:]
    assert list(islice(shapes.stream(8), 20)) != whole
    scene = whole[0][0]
    assert shapes.draw(scene).tobytes() == shapes.draw(scene).tobytes()


def test_captions_name_what_is_there() -> None:
    rng = random.Random(0)
    for scene in scenes(300):
        text = shapes.caption(scene, rng)
        for thing in scene.things:
            assert f"{thing.color} {thing.shape}" in text
        assert text == text.lower().strip()


@pytest.mark.parametrize("size", [64, 128])
def test_the_pixels_say_what_the_scene_says(size: int) -> None:
    """Drawing and the checker were written apart: each is the other's oracle."""
    drawn = scenes(150, seed=5)
    right = sum(check_shapes(shapes.draw(scene, size), scene).all for scene in drawn)
    assert right >= (150 if size == 128 else 135)


def test_things_stay_inside_the_image_and_apart() -> None:
    for scene in scenes(300, seed=9):
        detected = detect_shapes(shapes.draw(scene))
        assert len(detected) == len(scene.things)
        for thing in scene.things:
            assert thing.radius - 0.01 <= thing.x <= 1.01 - thing.radius
            assert thing.radius - 0.01 <= thing.y <= 1.01 - thing.radius


def test_the_checker_rejects_a_wrong_scene() -> None:
    for scene in scenes(100, seed=3, held_out=False):
        sibling = shapes.change_one_thing(scene, random.Random(1))
        same = shapes.plain_caption(sibling) == shapes.plain_caption(scene)
        assert same or not check_shapes(shapes.draw(scene), sibling).all
