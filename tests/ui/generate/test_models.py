"""The shelf: loading in the background, states, retries, reasons."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.ui.generate.test_queue import until
from ttt.errors import BundleError, InvalidInput
from ttt.ui.generate.fake import FakePainter
from ttt.ui.generate.models import ModelShelf, Painter, sources


def test_loading_never_blocks_and_waiters_are_told() -> None:
    go, loads = threading.Event(), []

    def load(target: str) -> Painter:
        loads.append(target)
        go.wait(5)
        return FakePainter()

    shelf, got = ModelShelf(sources(), load), []
    started = time.monotonic()
    assert shelf.state("demo").status == "idle"
    shelf.when_ready("demo", got.append, lambda reason: None)
    shelf.request("demo")
    assert shelf.state("demo").status == "loading"
    assert time.monotonic() - started < 0.5
    assert not got
    go.set()
    until(lambda: shelf.state("demo").status == "ready")
    until(lambda: len(got) == 1)
    assert loads == ["demo"]
    shelf.when_ready("demo", got.append, lambda reason: None)
    assert got[0] is got[1]


def test_a_failed_model_says_why_and_is_tried_again() -> None:
    broken = [True]

    def load(target: str) -> Painter:
        if broken[0]:
            raise BundleError("vqgan.safetensors is missing")
        return FakePainter()

    shelf, told = ModelShelf(sources(), load), []
    shelf.when_ready("published", lambda painter: None, told.append)
    until(lambda: shelf.state("published").status == "failed")
    until(lambda: told == ["vqgan.safetensors is missing"])
    assert shelf.state("demo").status == "idle"
    broken[0] = False
    shelf.request("published")
    until(lambda: shelf.state("published").status == "ready")


def test_an_unexpected_error_is_a_failed_model_not_a_dead_thread() -> None:
    def load(target: str) -> Painter:
        raise MemoryError("no room")

    shelf = ModelShelf(sources(), load)
    shelf.request("demo")
    until(lambda: shelf.state("demo").status == "failed")
    assert "MemoryError" in shelf.state("demo").reason


def test_bundles_get_names_of_their_own(tmp_path: Path) -> None:
    offered = sources([str(tmp_path / "mine"), str(tmp_path / "b" / "mine"), str(tmp_path / "demo")])
    assert [source.key for source in offered] == ["demo", "published", "mine", "mine-2", "demo-2"]
    assert offered[2].target == str(tmp_path / "mine")


@pytest.mark.parametrize("wrong", ["nope", "", None, 3, "x" * 10_000])
def test_an_unknown_model_lists_those_there_are(wrong: object) -> None:
    shelf = ModelShelf(sources(), lambda target: FakePainter())
    with pytest.raises(InvalidInput, match="demo, published") as told:
        shelf.source(wrong)
    assert len(str(told.value)) < 200
