"""A request from the form's values to the stored result, with the drawn model."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from PIL import Image

from ttt.errors import BundleError, InvalidInput
from ttt.sampling.params import SamplingParams
from ttt.ui.generate.fake import FakePainter
from ttt.ui.generate.models import ModelShelf, Painter, sources
from ttt.ui.generate.results import ResultStore
from ttt.ui.generate.service import SHEET_WIDTH, Studio, jpeg

PARAMS = SamplingParams(candidates=6, keep=2, seed=3)


def studio(tmp_path: Path, painter: Painter | None = None) -> Studio:
    def load(target: str) -> Painter:
        if target != "demo":
            raise BundleError("config.json is missing")
        return painter or FakePainter(delay=0.0)

    return Studio(ModelShelf(sources(), load), ResultStore(tmp_path / "results"))


def test_a_request_ends_in_a_stored_result(tmp_path: Path) -> None:
    work = studio(tmp_path)
    updates = list(work.submit("u", " a cat ", PARAMS, "demo").watch())
    assert updates[-1].phase == "finished"
    result = work.store.load(updates[-1].result)
    assert result is not None
    assert (result.prompt, result.params, len(result.best), len(result.ranking)) == ("a cat", PARAMS.to_dict(), 2, 6)
    fractions = [update.fraction for update in updates if update.phase == "working"]
    assert fractions == sorted(fractions)
    assert updates[-1].sheet


@pytest.mark.parametrize("prompt", ["", "  \n", "x" * 10_000, None, 3])
def test_a_bad_prompt_is_refused_before_anything_is_queued(tmp_path: Path, prompt: object) -> None:
    work = studio(tmp_path)
    with pytest.raises(InvalidInput):
        work.submit("u", prompt, PARAMS, "demo")  # type: ignore[arg-type]
    assert not work.desk.in_turn()


def test_what_the_model_refuses_is_told(tmp_path: Path) -> None:
    last = list(studio(tmp_path).submit("u", "красный круг", PARAMS, "demo").watch())[-1]
    assert (last.phase, last.message) == ("failed", "the fake model reads only ASCII letters")


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    last = list(studio(tmp_path).submit("u", "a cat", PARAMS, "published").watch())[-1]
    assert last.phase == "failed"
    assert "“published” cannot be used: config.json is missing" in last.message


def test_a_request_stopped_while_its_model_loads_is_never_painted(tmp_path: Path) -> None:
    go, painted = threading.Event(), []

    class Painter(FakePainter):
        def stream(self, prompt, params, cancel=None):  # type: ignore[no-untyped-def]
            painted.append(prompt)
            return super().stream(prompt, params, cancel)

    def load(target: str) -> Painter:
        go.wait(5)
        return Painter(delay=0.0)

    work = Studio(ModelShelf(sources(), load), ResultStore(tmp_path / "results"))
    stopped, kept = (work.submit("u", prompt, PARAMS, "demo") for prompt in ("stopped", "kept"))
    assert stopped.update.phase == "loading"
    stopped.stop()
    go.set()
    assert list(kept.watch())[-1].phase == "finished"
    assert painted == ["kept"]


def test_previews_are_small() -> None:
    data = jpeg(Image.effect_noise((2048, 1024), 40).convert("RGBA"))
    with Image.open(io.BytesIO(data)) as shown:
        assert (shown.format, shown.width, shown.height) == ("JPEG", SHEET_WIDTH, SHEET_WIDTH // 2)
