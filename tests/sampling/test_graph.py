"""When capturing or replaying fails: the same codes and one warning. On a CPU, with a tape instead of a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from tests.sampling.oracle import config_of, sampled
from tests.sampling.tape import taped
from tests.support.tiny import tiny_dalle
from ttt.config import DalleConfig
from ttt.errors import TTTError
from ttt.sampling import sampler as sampler_module
from ttt.sampling.graph import GraphCapturer, Run, cuda_graph, ran_out_of_memory
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights

CPU = torch.device("cpu")
PARAMS = SamplingParams(candidates=10, seed=8, top_k=9, top_p=0.8)


@pytest.fixture(scope="module")
def weights() -> DecoderWeights:
    return DecoderWeights(tiny_dalle(3, config_of("tiny", "mixed")))


@pytest.fixture(scope="module")
def expected(weights: DecoderWeights) -> torch.Tensor:
    return sampled(weights, PARAMS, 10)


def out_of_memory(*_: object) -> Run:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


def no_such_stream(*_: object) -> Run:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")


def does_nothing(step: Run, device: torch.device) -> Run:
    return lambda: None


def fails_later(after: int) -> Callable[[Run, torch.device], Run]:
    def capture(step: Run, device: torch.device) -> Run:
        replay, calls = taped(step, device), []

        def run() -> None:
            calls.append(None)
            if len(calls) > after:
                raise torch.AcceleratorError("CUDA error: invalid argument")
            replay()

        return run

    return capture


def counting(sizes: list[int]) -> Callable[[Run, torch.device], Run]:
    def capture(step: Run, device: torch.device) -> Run:
        sizes.append(step.b)  # type: ignore[attr-defined]
        return taped(step, device)

    return capture


@pytest.mark.parametrize("capture", [no_such_stream, does_nothing, fails_later(2), fails_later(7)])
def test_a_failure_gives_the_same_codes_and_one_warning(capture, weights, expected, caplog):
    capturer = GraphCapturer(CPU, capture)
    with caplog.at_level(logging.WARNING, "ttt.sampling.graph"):
        assert torch.equal(sampled(weights, PARAMS, 5, capturer), expected)
        assert capturer.failed
        assert torch.equal(sampled(weights, PARAMS, 10, capturer), expected)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    message = caplog.records[0].getMessage()
    assert "without CUDA graphs" in message
    assert "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="capturing succeeds on a CUDA device")
def test_a_real_capture_without_a_device_falls_back_too(weights, expected, caplog):
    capturer = GraphCapturer(torch.device("cuda", 0), cuda_graph)
    assert torch.equal(sampled(weights, PARAMS, 10, capturer), expected)
    assert capturer.failed
    assert len(caplog.records) == 1


def test_a_capture_that_ran_out_of_memory_is_tried_again_later(weights, expected, caplog):
    capturer = GraphCapturer(CPU, out_of_memory)
    assert torch.equal(sampled(weights, PARAMS, 5, capturer), expected)
    assert not capturer.failed
    assert len(caplog.records) == 1, "one warning, though both pieces tried"
    sizes: list[int] = []
    capturer.capture_step = counting(sizes)
    assert torch.equal(sampled(weights, PARAMS, 10, capturer), expected)
    assert sizes == [10]


def test_pieces_of_about_the_same_size_share_a_capture(weights, expected):
    sizes: list[int] = []
    assert torch.equal(
        sampled(weights, PARAMS, 4, GraphCapturer(CPU, counting(sizes))), expected
    )  # pieces of 4, 4 and 2
    assert sizes == [4]


def test_caches_that_do_not_fit_make_the_pieces_smaller(weights, expected, monkeypatch):
    real, sizes = sampler_module.StaticStep, []

    def hungry(weights: DecoderWeights, prompt: object, params: object, b: int) -> object:
        if b > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return real(weights, prompt, params, b)  # type: ignore[arg-type]

    monkeypatch.setattr(sampler_module, "StaticStep", hungry)
    capturer = GraphCapturer(CPU, counting(sizes))
    assert torch.equal(sampled(weights, PARAMS, 10, capturer), expected)
    assert sizes == [5]
    assert not capturer.failed


def test_without_memory_for_one_candidate_the_error_says_so(weights, monkeypatch):
    monkeypatch.setattr("ttt.sampling.sampler.StaticStep", out_of_memory)
    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        sampled(weights, PARAMS, 10, GraphCapturer(CPU, taped))


def test_a_step_that_the_device_cannot_run_is_replaced_by_the_eager_decoder(weights, expected, monkeypatch, caplog):
    def missing(self: object) -> torch.Tensor:
        raise NotImplementedError("\"index_copy\" not implemented for 'BFloat16'")

    monkeypatch.setattr("ttt.sampling.static.StaticStep.decode", missing)
    capturer = GraphCapturer(CPU, taped)
    assert torch.equal(sampled(weights, PARAMS, 10, capturer), expected)
    assert capturer.failed
    assert "not implemented" in caplog.text


def test_an_out_of_memory_error_is_recognised_behind_that_of_ending_a_capture():
    def capture() -> None:
        try:
            out_of_memory()
        finally:
            raise RuntimeError("capture_end failed")

    with pytest.raises(RuntimeError, match="capture_end failed") as caught:
        capture()
    assert ran_out_of_memory(caught.value)
    assert not ran_out_of_memory(RuntimeError("capture_end failed"))


def test_images_of_one_code_need_no_steps():
    config = DalleConfig(dim=16, depth=2, heads=2, dim_head=8, text_seq_len=3, image_fmap_size=1, num_text_tokens=20,
                         num_image_tokens=30)  # fmt: skip
    weights = DecoderWeights(tiny_dalle(0, config))
    assert torch.equal(sampled(weights, PARAMS, 10, GraphCapturer(CPU, taped)), sampled(weights, PARAMS, 10))
