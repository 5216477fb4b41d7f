"""The model registry: loading in the background, states, retries, reasons."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.ui.generate.test_queue import until
from ttt.errors import BundleError, InvalidInput
from ttt.ui.generate.fake import FakeGenerator
from ttt.ui.generate.models import ImageGenerator, ModelRegistry, sources


def test_loading_never_blocks_and_calls_back() -> None:
    go, loads = threading.Event(), []

    def load(target: str) -> ImageGenerator:
        loads.append(target)
        go.wait(5)
        return FakeGenerator()

    models, generators = ModelRegistry(sources(), load), []
    started = time.monotonic()
    assert models.state("demo").status == "idle"
    models.when_ready("demo", generators.append, lambda reason: None)
    models.request("demo")
    assert models.state("demo").status == "loading"
    assert time.monotonic() - started < 0.5
    assert not generators
    go.set()
    until(lambda: models.state("demo").status == "ready")
    until(lambda: len(generators) == 1)
    assert loads == ["demo"]
    models.when_ready("demo", generators.append, lambda reason: None)
    assert generators[0] is generators[1]


def test_a_failed_model_says_why_and_is_retried() -> None:
    broken = [True]

    def load(target: str) -> ImageGenerator:
        if broken[0]:
            raise BundleError("vqgan.safetensors is missing")
        return FakeGenerator()

    models, reasons = ModelRegistry(sources(), load), []
    models.when_ready("published", lambda generator: None, reasons.append)
    until(lambda: models.state("published").status == "failed")
    until(lambda: reasons == ["vqgan.safetensors is missing"])
    assert models.state("demo").status == "idle"
    broken[0] = False
    models.request("published")
    until(lambda: models.state("published").status == "ready")


def test_an_unexpected_error_is_a_failed_model_not_a_dead_thread() -> None:
    def load(target: str) -> ImageGenerator:
        raise MemoryError("out of memory")

    models = ModelRegistry(sources(), load)
    models.request("demo")
    until(lambda: models.state("demo").status == "failed")
    assert "MemoryError" in models.state("demo").reason


def test_bundles_get_names_of_their_own(tmp_path: Path) -> None:
    offered = sources([str(tmp_path / "mine"), str(tmp_path / "b" / "mine"), str(tmp_path / "demo")])
    assert [source.key for source in offered] == ["demo", "published", "mine", "mine-2", "demo-2"]
    assert offered[2].target == str(tmp_path / "mine")


@pytest.mark.parametrize("wrong", ["nope", "", None, 3, "x" * 10_000])
def test_an_unknown_model_lists_the_known_ones(wrong: object) -> None:
    models = ModelRegistry(sources(), lambda target: FakeGenerator())
    with pytest.raises(InvalidInput, match="demo, published") as refused:
        models.source(wrong)
    assert len(str(refused.value)) < 200
