"""A request from the form's values to the stored result, with the drawn model."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from PIL import Image

from ttt.errors import BundleError, InvalidInput
from ttt.sampling.params import SamplingParams
from ttt.ui.generate.fake import FakeGenerator
from ttt.ui.generate.models import ImageGenerator, ModelRegistry, sources
from ttt.ui.generate.results import ResultStore
from ttt.ui.generate.service import PREVIEW_WIDTH, GenerationService, jpeg

PARAMS = SamplingParams(candidates=6, keep=2, seed=3)


def service_of(tmp_path: Path, generator: ImageGenerator | None = None) -> GenerationService:
    def load(target: str) -> ImageGenerator:
        if target != "demo":
            raise BundleError("config.json is missing")
        return generator or FakeGenerator(delay=0.0)

    return GenerationService(ModelRegistry(sources(), load), ResultStore(tmp_path / "results"))


def test_a_request_ends_in_a_stored_result(tmp_path: Path) -> None:
    service = service_of(tmp_path)
    updates = list(service.submit("u", " a cat ", PARAMS, "demo").watch())
    assert updates[-1].phase == "finished"
    result = service.store.load(updates[-1].result)
    assert result is not None
    assert (result.prompt, result.params, len(result.best), len(result.ranking)) == ("a cat", PARAMS.to_dict(), 2, 6)
    fractions = [update.fraction for update in updates if update.phase == "working"]
    assert fractions == sorted(fractions)
    assert updates[-1].preview


@pytest.mark.parametrize("prompt", ["", "  \n", "x" * 10_000, None, 3])
def test_a_bad_prompt_is_refused_before_anything_is_queued(tmp_path: Path, prompt: object) -> None:
    service = service_of(tmp_path)
    with pytest.raises(InvalidInput):
        service.submit("u", prompt, PARAMS, "demo")  # type: ignore[arg-type]
    assert not service.queue.service_order()


def test_a_refusal_of_the_model_is_reported(tmp_path: Path) -> None:
    last = list(service_of(tmp_path).submit("u", "красный круг", PARAMS, "demo").watch())[-1]
    assert (last.phase, last.message) == ("failed", "the fake model reads only ASCII letters")


def test_a_model_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    last = list(service_of(tmp_path).submit("u", "a cat", PARAMS, "published").watch())[-1]
    assert last.phase == "failed"
    assert "“published” could not be loaded: config.json is missing" in last.message


def test_a_request_stopped_while_its_model_loads_is_never_generated(tmp_path: Path) -> None:
    go, prompts = threading.Event(), []

    class Recorder(FakeGenerator):
        def stream(self, prompt, params, cancel=None):  # type: ignore[no-untyped-def]
            prompts.append(prompt)
            return super().stream(prompt, params, cancel)

    def load(target: str) -> ImageGenerator:
        go.wait(5)
        return Recorder(delay=0.0)

    service = GenerationService(ModelRegistry(sources(), load), ResultStore(tmp_path / "results"))
    stopped, other = (service.submit("u", prompt, PARAMS, "demo") for prompt in ("stopped", "other"))
    assert stopped.update.phase == "loading"
    stopped.stop()
    go.set()
    assert list(other.watch())[-1].phase == "finished"
    assert prompts == ["other"]


def test_previews_are_small() -> None:
    data = jpeg(Image.effect_noise((2048, 1024), 40).convert("RGBA"))
    with Image.open(io.BytesIO(data)) as shown:
        assert (shown.format, shown.width, shown.height) == ("JPEG", PREVIEW_WIDTH, PREVIEW_WIDTH // 2)
