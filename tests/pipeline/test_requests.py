"""A running request: stages, progress, memory, cancelling, and requests that run at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from tests.support.pipelines import PARAMS, PROMPT, last, pipe_of, pixels
from tests.support.tiny import TINY_DALLE
from ttt import SamplingParams, TextToImage
from ttt.bundle import Bundle
from ttt.errors import BundleError, Cancelled, TTTError
from ttt.rerank import Scorer
from ttt.sampling import decode as decode_module
from ttt.sampling import sampler as sampler_module
from ttt.types import Progress


class Brightness:
    """A scorer with obvious scores."""

    def scores(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize("chunk", [None, 3])
def test_stages_come_in_order_with_a_preview_for_every_row(pipe: TextToImage, chunk: int | None, monkeypatch):
    monkeypatch.setattr("ttt.request.PREVIEW_SHARE", float("inf"))  # show every preview, whatever it costs
    seen = list(pipe.stream(PROMPT, PARAMS, chunk=chunk))
    stages = list(dict.fromkeys(p.stage for p in seen))
    assert stages == ["prefill", "sampling", "decoding", "ranking", "done"]
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert seen[0].fraction == 0
    assert all(p.fraction < 1 for p in seen[:-1])
    assert all(not p.images and not p.ranking for p in seen[:-1])
    sheets = [p.sheet for p in seen if p.sheet is not None]
    assert len({sheet.tobytes() for sheet in sheets}) >= 3
    assert {sheet.size for sheet in sheets} == {sheets[0].size}
    assert seen[-1].sheet is not None
    assert any(p.stage == "sampling" and p.sheet is not None for p in seen)


def test_the_images_do_not_depend_on_previews(pipe: TextToImage, monkeypatch):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    monkeypatch.setattr("ttt.request.PREVIEW_SHARE", 1e-9)
    assert (pixels(last(pipe.stream(PROMPT, PARAMS)).ranking) == whole).all()


def test_after_an_out_of_memory_error_it_continues_in_smaller_chunks(pipe: TextToImage, monkeypatch):
    whole = pixels(last(pipe.stream(PROMPT, PARAMS)).ranking)
    real, tried = sampler_module.decode_one_code, []

    def hungry(weights, cache, codes, position):
        if cache.b > 4:
            tried.append(cache.b)
            if position == 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return real(weights, cache, codes, position)

    monkeypatch.setattr(sampler_module, "decode_one_code", hungry)
    seen = list(pipe.stream(PROMPT, PARAMS, chunk=11))
    assert tried, "the first chunk should have been large"
    assert (pixels(seen[-1].ranking) == whole).all()
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen), "sampling again must not move the bar back"


def test_without_memory_for_one_candidate_the_error_says_so(pipe: TextToImage, monkeypatch):
    tried: list[int] = []

    def never(weights, cache, codes, position):
        tried.append(cache.b)
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(sampler_module, "decode_one_code", never)
    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        pipe(PROMPT, PARAMS)
    assert len(set(tried)) == len(tried), "smaller pieces are padded and need as much memory: not tried again"
    monkeypatch.undo()
    assert len(pipe(PROMPT, PARAMS)) == 3, "the next request works"


def test_chunks_fit_in_the_free_memory(pipe: TextToImage, monkeypatch):
    pieces: list[int] = []
    real = sampler_module.Cache

    def counted(config, prompt, b, *rest):
        pieces.append(b)
        return real(config, prompt, b, *rest)

    monkeypatch.setattr(sampler_module, "Cache", counted)
    one = sampler_module.memory_per_candidate(TINY_DALLE, torch.float32)
    monkeypatch.setattr("ttt.request.memory_budget", lambda device: 4 * one)
    pipe(PROMPT, PARAMS)
    assert max(pieces) == 4
    assert len(pieces) == 3


@pytest.mark.parametrize("stage", ["sampling", "decoding", "ranking"])
def test_cancel_stops_and_the_next_request_works(pipe: TextToImage, stage: str):
    cancel = threading.Event()
    threads = threading.active_count()
    at_stage = (cancel.set() for progress in pipe.stream(PROMPT, PARAMS, cancel) if progress.stage == stage)
    with pytest.raises(Cancelled):
        list(at_stage)
    assert threading.active_count() <= threads
    with pytest.raises(Cancelled):
        last(pipe.stream(PROMPT, PARAMS, cancel))
    assert len(pipe(PROMPT, PARAMS)) == 3


def test_cancel_from_another_thread_stops_between_two_codes(pipe: TextToImage, monkeypatch):
    real, cancel, codes = sampler_module.decode_one_code, threading.Event(), []

    def counted(weights, cache, before, position):
        codes.append(position)
        if len(codes) == 3:
            cancel.set()
        return real(weights, cache, before, position)

    monkeypatch.setattr(sampler_module, "decode_one_code", counted)
    with pytest.raises(Cancelled):
        last(pipe.stream(PROMPT, PARAMS, cancel, chunk=3))
    assert len(codes) == 3


def test_cancel_stops_during_prefill(pipe: TextToImage, monkeypatch):
    real, cancel, layers = decode_module._attend_text, threading.Event(), []

    def counted(weights, layer, x):
        layers.append(layer)
        cancel.set()
        return real(weights, layer, x)

    monkeypatch.setattr(decode_module, "_attend_text", counted)
    with pytest.raises(Cancelled):
        last(pipe.stream(PROMPT, PARAMS, cancel))
    assert len(layers) == 1


def test_closing_the_stream_stops_the_work(pipe: TextToImage):
    threads = threading.active_count()
    stream = pipe.stream(PROMPT, SamplingParams(candidates=64))
    assert next(stream).stage == "prefill"
    assert next(stream).stage == "sampling"
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= threads


def test_two_streams_at_once_do_not_mix(pipe: TextToImage):
    prompts = (PROMPT, "blue star on white background")
    alone = [pixels(last(pipe.stream(p, PARAMS)).ranking) for p in prompts]
    together = [pipe.stream(p, PARAMS) for p in prompts]
    seen: list[list[Progress]] = [[], []]
    for first, second in zip(*together, strict=False):
        seen[0].append(first)
        seen[1].append(second)
    for i, stream in enumerate(together):
        seen[i].extend(stream)
    threaded: list[Progress | None] = [None, None]

    def run(i: int) -> None:
        threaded[i] = last(pipe.stream(prompts[i], PARAMS))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        ends = [p for p in seen[i] if p.stage == "done"] or [last(pipe.stream(prompts[i], PARAMS))]
        assert (pixels(ends[0].ranking) == alone[i]).all()
        result = threaded[i]
        assert result is not None
        assert (pixels(result.ranking) == alone[i]).all()


def test_the_bar_of_a_request_does_not_jump_when_another_one_ends(bundle: Bundle):
    pipe = TextToImage.from_pretrained(bundle.root, device="cpu")
    expected = {"prefill": 0.2, "sampling": 0.2, "decoding": 0.2, "ranking": 0.4}
    pipe.shares = expected
    running = pipe.stream(PROMPT, PARAMS)
    seen = [next(running)]
    pipe(PROMPT, PARAMS)
    assert pipe.shares != expected, "later requests expect what the last one took"
    pipe.shares = {"prefill": 0.97, "sampling": 0.01, "decoding": 0.01, "ranking": 0.01}
    seen += running
    at_end = {progress.stage: progress.fraction for progress in seen}
    assert at_end == pytest.approx({"prefill": 0.0, "sampling": 0.4, "decoding": 0.6, "ranking": 0.999, "done": 1.0})


def test_inference_mode_does_not_leak_into_the_callers_code(pipe: TextToImage):
    for _ in pipe.stream(PROMPT, PARAMS):
        assert not torch.is_inference_mode_enabled()
        assert torch.ones(1, requires_grad=True).mul(2).requires_grad


def test_a_clip_that_cannot_be_loaded_stops_the_request_early(tmp_path: Path):
    failed: Future[Scorer] = Future()
    failed.set_exception(BundleError("clip.safetensors is broken"))
    stages: list[str] = []
    stream = pipe_of(tmp_path, failed).stream(PROMPT, PARAMS)
    with pytest.raises(BundleError, match=r"clip\.safetensors is broken"):
        stages.extend(progress.stage for progress in stream)
    assert "decoding" not in stages


def test_waiting_for_a_clip_that_is_still_loading_can_be_cancelled(tmp_path: Path):
    loading: Future[Scorer] = Future()
    pipe, cancel = pipe_of(tmp_path, loading), threading.Event()
    at_ranking = (cancel.set() for progress in pipe.stream(PROMPT, PARAMS, cancel) if progress.stage == "ranking")
    with pytest.raises(Cancelled):
        list(at_ranking)
    stream = pipe.stream(PROMPT, PARAMS)
    stages = [next(p.stage for p in stream if p.stage == "ranking")]
    loading.set_result(Brightness())
    stages += [p.stage for p in stream]
    assert stages[-1] == "done"
