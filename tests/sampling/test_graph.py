"""What happens when recording or replaying fails: the same codes, one warning. On a CPU, with a tape for a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from tests.sampling.oracle import config_of, painted
from tests.sampling.tape import taped
from tests.support.tiny import tiny_dalle
from ttt.config import DalleConfig
from ttt.errors import TTTError
from ttt.sampling import paint as paint_module
from ttt.sampling.graph import Recorder, Run, cuda_graph, ran_out
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights

CPU = torch.device("cpu")
PARAMS = SamplingParams(candidates=10, seed=8, top_k=9, top_p=0.8)


@pytest.fixture(scope="module")
def weights() -> DecoderWeights:
    return DecoderWeights(tiny_dalle(3, config_of("tiny", "mixed")))


@pytest.fixture(scope="module")
def expected(weights: DecoderWeights) -> torch.Tensor:
    return painted(weights, PARAMS, 10)


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
    recorder = Recorder(CPU, capture)
    with caplog.at_level(logging.WARNING, "ttt.sampling.graph"):
        assert torch.equal(painted(weights, PARAMS, 5, recorder), expected)
        assert recorder.failed
        assert torch.equal(painted(weights, PARAMS, 10, recorder), expected)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    message = caplog.records[0].getMessage()
    assert "without CUDA graphs" in message
    assert "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="recording succeeds where there is a CUDA device")
def test_a_real_capture_without_a_device_fails_as_softly(weights, expected, caplog):
    recorder = Recorder(torch.device("cuda", 0), cuda_graph)
    assert torch.equal(painted(weights, PARAMS, 10, recorder), expected)
    assert recorder.failed
    assert len(caplog.records) == 1


def test_a_recording_that_found_no_memory_is_tried_again_later(weights, expected, caplog):
    recorder = Recorder(CPU, out_of_memory)
    assert torch.equal(painted(weights, PARAMS, 5, recorder), expected)
    assert not recorder.failed
    assert len(caplog.records) == 1, "one warning, though both pieces tried"
    sizes: list[int] = []
    recorder.capture = counting(sizes)
    assert torch.equal(painted(weights, PARAMS, 10, recorder), expected)
    assert sizes == [10]


def test_pieces_of_about_a_size_share_a_recording(weights, expected):
    sizes: list[int] = []
    assert torch.equal(painted(weights, PARAMS, 4, Recorder(CPU, counting(sizes))), expected)  # pieces of 4, 4 and 2
    assert sizes == [4]


def test_caches_that_do_not_fit_make_the_pieces_smaller(weights, expected, monkeypatch):
    real, sizes = paint_module.StaticStep, []

    def hungry(weights: DecoderWeights, prompt: object, params: object, b: int) -> object:
        if b > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return real(weights, prompt, params, b)  # type: ignore[arg-type]

    monkeypatch.setattr(paint_module, "StaticStep", hungry)
    recorder = Recorder(CPU, counting(sizes))
    assert torch.equal(painted(weights, PARAMS, 10, recorder), expected)
    assert sizes == [5]
    assert not recorder.failed


def test_without_memory_for_one_candidate_the_error_says_so(weights, monkeypatch):
    monkeypatch.setattr("ttt.sampling.paint.StaticStep", out_of_memory)
    with pytest.raises(TTTError, match="not enough memory for even one candidate"):
        painted(weights, PARAMS, 10, Recorder(CPU, taped))


def test_a_step_that_this_device_cannot_do_is_replaced_by_the_loop(weights, expected, monkeypatch, caplog):
    def missing(self: object) -> torch.Tensor:
        raise NotImplementedError("\"index_copy\" not implemented for 'BFloat16'")

    monkeypatch.setattr("ttt.sampling.static.StaticStep.decode", missing)
    recorder = Recorder(CPU, taped)
    assert torch.equal(painted(weights, PARAMS, 10, recorder), expected)
    assert recorder.failed
    assert "not implemented" in caplog.text


def test_memory_that_ran_out_is_known_behind_the_error_of_ending_a_capture():
    def capture() -> None:
        try:
            out_of_memory()
        finally:
            raise RuntimeError("capture_end failed")

    with pytest.raises(RuntimeError, match="capture_end failed") as caught:
        capture()
    assert ran_out(caught.value)
    assert not ran_out(RuntimeError("capture_end failed"))


def test_pictures_of_one_code_need_no_steps():
    config = DalleConfig(dim=16, depth=2, heads=2, dim_head=8, text_seq_len=3, image_fmap_size=1, num_text_tokens=20,
                         num_image_tokens=30)  # fmt: skip
    weights = DecoderWeights(tiny_dalle(0, config))
    assert torch.equal(painted(weights, PARAMS, 10, Recorder(CPU, taped)), painted(weights, PARAMS, 10))
