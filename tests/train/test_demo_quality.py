"""The benchmark of the demo's quality: its figures on models whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import demo_quality
from benchmarks.demo_quality import WORLDS, Tally, interval, measure


def test_the_interval_holds_the_share_and_shrinks_with_more_prompts() -> None:
    assert interval(0.95, 200) == pytest.approx((0.9104, 0.9726), abs=2e-3)  # the textbook's Wilson interval
    assert interval(1.0, 40)[1] == pytest.approx(1.0) and interval(0.0, 40)[0] == pytest.approx(0.0)
    low, high = interval(0.5, 1000)
    assert high - low < interval(0.5, 40)[1] - interval(0.5, 40)[0]


def test_a_tally_gives_all_five_rows() -> None:
    tally = Tally()
    tally.add(True, True, [{"all": True}, {"all": False}])
    tally.add(True, False, [{"all": False}, {"all": True}])
    assert list(tally.rows(2).values()) == [1.0, 0.5, 1.0, 0.5, 0.5]
    assert list(tally.rows(0)) == ["the drawing", "its reconstruction"]


class Perfect:
    """A pipeline that returns the drawing of the prompt, or of the next one."""

    def __init__(self, world: str, shift: int = 0) -> None:
        side = 128
        self.device = torch.device("cpu")
        self.vqgan = SimpleNamespace(config=SimpleNamespace(resolution=side), encode=lambda x: x, decode=lambda x: x)
        self.drawings: dict[str, Image.Image] = {}
        for pair in (False, True):
            prompts = WORLDS[world].prompts(8, pair)
            for i, (_, text) in enumerate(prompts):
                scene = prompts[(i + shift) % len(prompts)][0]
                self.drawings[text] = WORLDS[world].draw(scene, side)

    def stream(self, text: str, params: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(ranking=[SimpleNamespace(image=self.drawings[text])] * 2)]


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("pair", [False, True])
def test_a_perfect_model_is_right_and_one_that_mixes_up_prompts_is_wrong(world: str, pair: bool) -> None:
    perfect = measure(Perfect(world), WORLDS[world], pair, 8, 2, 0)  # type: ignore[arg-type]
    assert list(perfect.rows(2).values()) == [1.0] * 5
    assert set(perfect.top) == set(WORLDS[world].attributes)
    wrong = measure(Perfect(world, 1), WORLDS[world], pair, 8, 2, 0)  # type: ignore[arg-type]
    assert list(wrong.rows(2).values()) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_prompts_are_the_same_in_every_run() -> None:
    for world in WORLDS.values():
        assert world.prompts(5, True) == world.prompts(5, True)
        assert [text for _, text in world.prompts(5, False)] != [text for _, text in world.prompts(5, True)]
    assert demo_quality.SEED == 4_000_000, "other prompts cannot be compared with earlier figures"
