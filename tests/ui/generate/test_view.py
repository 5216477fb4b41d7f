"""What is shown: words, bars, and that nothing from outside becomes markup."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.tags import Tags
from ttt.ui import html
from ttt.ui.generate import view
from ttt.ui.generate.models import ModelSource, ModelState
from ttt.ui.generate.queue import Update
from ttt.ui.generate.results import Result, SavedImage

RESULT = Result(
    id="k" * 32,
    folder="/results/" + "k" * 32,
    prompt="a red circle",
    params={"candidates": 20, "keep": 2, "top_k": None, "top_p": 0.5, "temperature": 1.0, "seed": 7},
    model="demo",
    seconds=12.3,
    best=(SavedImage("0001.png", 31.25, 3), SavedImage("0002.png", 30.0, 0)),
    ranking=tuple((i, 31.0 - i) for i in range(20)),
)
EVIL = "<img src=x onerror=alert(1)>\"'`&{}"


def test_nothing_from_outside_becomes_markup() -> None:
    pages = [
        (view.result(RESULT), view.result(replace(RESULT, prompt=EVIL, model=EVIL))),
        (html.problem("x"), html.problem(EVIL)),
        (html.note("x"), html.note(EVIL)),
        (view.status(Update("loading", message="x"), 9), view.status(Update("loading", message=EVIL), 9)),
        (view.status(Update("failed", message="x"), 9), view.status(Update("failed", message=EVIL), 9)),
        (
            view.model_line(ModelSource("a", "b", "c"), ModelState("failed", "x"), 9),
            view.model_line(ModelSource("a", "b", "c"), ModelState("failed", EVIL), 9),
        ),
    ]
    for plain, evil in pages:
        assert Tags(evil).tags == Tags(plain).tags
        assert not Tags(evil).handlers
        assert EVIL in Tags(evil).text
    assert "<" not in view.announcement(Update("loading", message=EVIL))


def test_a_bar_says_how_far_and_how_long() -> None:
    page = view.status(Update("working", stage="sampling", fraction=0.25, since=100.0), 110.0)
    assert 'role="progressbar"' in page
    assert 'aria-valuenow="25"' in page
    assert "Generating, 25%" in page
    assert "about 30 s left" in page


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (Update("loading", message="Demo", since=0.0), ("Loading the model: Demo", "7 s so far")),
        (Update("waiting", ahead=0), ("You are next", "")),
        (Update("waiting", ahead=1), ("One request ahead of yours", "")),
        (Update("waiting", ahead=4), ("4 requests ahead of yours", "")),
        (Update("working", stage="ranking", fraction=0.9, since=7.0), ("Choosing the best, 90%", "")),
        (Update("stopped"), ("Stopped. Press Generate to start again.", "")),
    ],
)
def test_headlines(update: Update, words: tuple[str, str]) -> None:
    assert view.headline(update, 7.0) == words


def test_a_bar_without_a_known_end_has_no_value() -> None:
    assert "aria-valuenow" not in view.status(Update("waiting", ahead=2), 1.0)


def test_announcements_are_few() -> None:
    said = {view.announcement(Update("working", stage="sampling", fraction=i / 200)) for i in range(150)}
    assert len(said) == 3
    assert view.announcement(Update("failed", message="x")) == ""  # the alert speaks
    assert view.announcement(Update("finished")).startswith("Done")


def test_best_and_ranking_of_a_result() -> None:
    page = view.result(RESULT)
    assert page.count("<figure>") == 2
    assert "CLIP 31.25" in page
    assert "See all 20, ranked" in page
    assert page.count('role="img"') == 20
    assert page.count("ranking.jpg") == 1
    assert 'href="gradio_api/file=/results/' in page
    assert "prompt=a+red+circle" in page
    assert "top_k=0" in page


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "less than a second"), (42, "42 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert html.duration(seconds) == words
