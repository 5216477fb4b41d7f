"""The demo's world: what training may see, what is held out, and that images, captions and the checker agree."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ttt.data.world import scenes as world
from ttt.data.world.backgrounds import BACKGROUNDS, SIDE, background, variants
from ttt.data.world.captions import caption, plain_caption
from ttt.data.world.checker import check_scene, detect_objects
from ttt.data.world.nouns import KINDS, NOUNS, article
from ttt.data.world.sprites import SIZES, STYLES, sprite


def scenes(count: int, *, seed: int = 0, held_out: bool | None = None) -> list[world.Scene]:
    return [scene for scene, _ in islice(world.stream(seed, held_out=held_out), count)]


def test_there_are_at_least_a_hundred_nouns_of_every_kind_with_a_sprite_in_both_styles() -> None:
    assert len(NOUNS) >= 100
    assert {noun.kind for noun in NOUNS.values()} == set(KINDS)
    every_name = [name for noun in NOUNS.values() for name in (noun.name, *noun.others)]
    assert len(set(every_name)) == len(every_name)
    for name in NOUNS:
        for size in SIZES:
            flat, shaded = (sprite(name, None, style, size) for style in STYLES)
            assert flat.shape == shaded.shape == (size, size, 4)
            assert (flat[..., 3] > 127).mean() > 0.05 and (shaded[..., 3] > 127).mean() > 0.05
            assert not np.array_equal(flat, shaded)


@pytest.mark.parametrize(
    ("phrase", "expected"), [("owl", "an"), ("unicorn", "a"), ("ufo", "a"), ("umbrella", "an"), ("red ring", "a")]
)
def test_articles_follow_the_sound(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


def test_backgrounds_differ_from_each_other() -> None:
    images = [background(name, v) for name in BACKGROUNDS for v in range(variants(name))]
    assert all(image.shape == (SIDE, SIDE, 3) for image in images)
    assert len({image.tobytes() for image in images}) == len(images)


def test_training_never_sees_a_held_out_combination_under_either_name() -> None:
    for scene in scenes(1000, held_out=False):
        for thing in scene.things:
            assert not world.is_held_out_on(thing.label, scene.background)
        for first, relation, second in world.pairs(scene):
            assert not world.is_held_out_pair(first, relation, second)
            assert not world.is_held_out_pair(second, world.OPPOSITE[relation], first)


def test_held_out_scenes_test_what_they_are_about() -> None:
    for scene in scenes(300, held_out=True):
        on = any(world.is_held_out_on(t.label, scene.background) for t in scene.things)
        between = any(world.is_held_out_pair(*pair) for pair in world.pairs(scene))
        assert between != on
        assert between == (scene.relation in (*world.RELATIONS, "row"))


def test_about_one_combination_in_ten_is_held_out() -> None:
    share = np.mean([world.is_held_out_on(name, behind) for name in NOUNS for behind in BACKGROUNDS])
    assert 0.05 < share < 0.15


def test_a_scene_depends_on_seed_and_number_alone() -> None:
    whole = [(scene, caption(scene, rng)) for scene, rng in islice(world.stream(7), 20)]
    again = [(scene, caption(scene, rng)) for scene, rng in islice(world.stream(7, start=12), 8)]
    assert again == whole[12:]
    assert [scene for scene, _ in islice(world.stream(8), 20)] != [scene for scene, _ in whole]


def test_every_kind_of_scene_is_drawn_on_the_grid_inside_the_image_and_apart() -> None:
    found = scenes(500, seed=9)
    kinds = Counter(scene.relation for scene in found)
    assert set(kinds) == {"alone", "count", "row", *world.RELATIONS}
    for scene in found:
        for thing in scene.things:
            assert thing.left % world.GRID == 0 and thing.top % world.GRID == 0
            assert 0 <= thing.left <= SIDE - thing.size and 0 <= thing.top <= SIDE - thing.size
        for i, a in enumerate(scene.things):
            for b in scene.things[i + 1 :]:
                beside = a.left + a.size <= b.left or b.left + b.size <= a.left
                assert beside or a.top + a.size <= b.top or b.top + b.size <= a.top


def test_captions_name_every_thing() -> None:
    for scene, rng in islice(world.stream(3), 400):
        for text in (caption(scene, rng), plain_caption(scene)):
            assert text == text.lower().strip() and "  " not in text
            for thing in scene.things:
                names = [thing.name] if thing.color else [thing.name, *NOUNS[thing.name].others]
                plurals = [] if thing.color else [NOUNS[thing.name].plural]
                assert any(name in text for name in (*names, *plurals)), (text, thing)
                assert thing.color is None or thing.color in text


def softened(pixels: np.ndarray, blur: float, noise: float) -> np.ndarray:
    image = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    noisy = image + np.random.default_rng(0).normal(0, noise, image.shape)
    return noisy.clip(0, 255).round().astype(np.uint8)


def test_the_checker_reads_every_drawn_scene() -> None:
    """Drawing and the checker were written apart: each is the other's oracle."""
    drawn = scenes(200, seed=5)
    assert sum(check_scene(world.draw(scene), scene).whole for scene in drawn) >= 198


def test_the_checker_reads_soft_and_noisy_scenes() -> None:
    drawn = scenes(100, seed=6)
    assert sum(check_scene(softened(world.draw(scene), 1.5, 6), scene).whole for scene in drawn) >= 97


def test_the_checker_rejects_a_scene_that_differs_in_one_thing() -> None:
    rng = random.Random(1)
    for scene in scenes(120, seed=3, held_out=False):
        sibling = world.change_one_thing(scene, rng)
        assert not world.scene_is_held_out(sibling)
        assert plain_caption(sibling) != plain_caption(scene)
        assert not check_scene(world.draw(scene), sibling).whole, (scene, sibling)


def test_the_checker_calls_a_spoiled_thing_unclear() -> None:
    scene = world.Scene((world.Thing("fox", None, 64, 32, 40),), "alone", "white", "flat")
    pixels = world.draw(scene)
    shuffled = pixels.copy()
    shuffled[40:104, 32:96] = pixels[40:104, 32:96].reshape(8, 8, 8, 8, 3)[::-1, :, ::-1].reshape(64, 64, 3)
    assert check_scene(pixels, scene).whole
    assert not check_scene(shuffled, scene).thing


def test_an_empty_background_shows_nothing() -> None:
    for name in BACKGROUNDS:
        assert detect_objects(background(name)) == (name, [])
