"""StaticStep: its codes against the eager decoder's, captured on a tape that is as strict as a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.oracle import KINDS, config_of, request, sampled
from tests.sampling.tape import NotCapturable, taped
from tests.support.tiny import tiny_dalle
from ttt.config import PAPER
from ttt.errors import CheckpointError
from ttt.sampling.decode import prefill
from ttt.sampling.graph import GraphCapturer
from ttt.sampling.params import SamplingParams
from ttt.sampling.sampler import memory_per_candidate
from ttt.sampling.static import StaticStep, static_bytes_per_candidate
from ttt.sampling.weights import DecoderWeights

CPU = torch.device("cpu")
PARAMS = SamplingParams(candidates=11, seed=3, top_k=12, top_p=0.9)


@pytest.mark.parametrize(("size", "kinds"), [*(("odd head", kinds) for kinds in KINDS), ("wide", "paper")])
def test_one_capture_samples_the_codes_of_the_eager_decoder(size: str, kinds: str):
    """Captured at one position and replayed at all: no value that depends on the position may have stayed in Python."""
    weights = DecoderWeights(tiny_dalle(3, config_of(size, kinds)))
    capturer = GraphCapturer(CPU, taped)
    assert torch.equal(sampled(weights, PARAMS, 11, capturer), sampled(weights, PARAMS, 11))
    assert not capturer.failed


@pytest.mark.parametrize("chunk", [1, 3, 4, 7])
def test_odd_chunks_of_a_capture_give_the_same_codes(chunk: int):
    weights = DecoderWeights(tiny_dalle(3, config_of("tiny", "mixed")))
    capturer = GraphCapturer(CPU, taped)
    assert torch.equal(sampled(weights, PARAMS, chunk, capturer), sampled(weights, PARAMS, 11))
    assert not capturer.failed


@pytest.mark.parametrize(
    "cut", [{"top_k": None, "top_p": None}, {"top_k": 5, "top_p": None}, {"top_k": None, "top_p": 0.6},
            {"top_k": 1000, "top_p": 1.0, "temperature": 2.5}, {"temperature": 1e-9}],
)  # fmt: skip
def test_every_way_of_picking_a_code_can_be_captured(cut: dict[str, object]):
    weights, params = DecoderWeights(tiny_dalle(3)), SamplingParams(candidates=5, keep=1, seed=9, **cut)  # type: ignore[arg-type]
    capturer = GraphCapturer(CPU, taped)
    assert torch.equal(sampled(weights, params, 5, capturer), sampled(weights, params, 5))
    assert not capturer.failed


@pytest.mark.parametrize("capturer", [None, GraphCapturer(CPU, taped)], ids=["eager", "captured"])
def test_nan_logits_after_the_prompt_are_reported(capturer: GraphCapturer | None):
    weights = DecoderWeights(tiny_dalle(3, config_of("tiny", "mixed")))
    assert weights.rotary.factors is not None
    weights.rotary.factors[weights.config.text_len + 6] = torch.nan
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        sampled(weights, PARAMS, 11, capturer)
    weights.rotary.factors[weights.config.text_len + 6] = 1
    sampled(weights, PARAMS, 11, capturer)
    assert capturer is None or not capturer.failed


def test_a_capture_in_16_bits_gives_the_codes_of_its_step():
    weights = DecoderWeights(tiny_dalle(6, config_of("wide", "paper")), torch.bfloat16)
    of_tape, of_step = (sampled(weights, PARAMS, 6, GraphCapturer(CPU, capture)) for capture in (taped, lambda s, d: s))
    assert torch.equal(of_tape, of_step)


def test_the_tape_is_as_strict_as_a_graph():
    x, seen = torch.zeros(3), []

    def decides_in_python() -> None:
        seen.append(len(seen))
        x.add_(seen[-1])

    replay = taped(decides_in_python, CPU)
    replay()
    assert x.tolist() == [0, 0, 0], "the 0 of the capture, not the 1 of a second call"
    for asks in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(), lambda: x + torch.tensor([1.0])):
        with pytest.raises(NotCapturable):
            taped(asks, CPU)


def test_the_stated_bytes_are_those_allocated():
    config = config_of("wide", "mixed")
    weights = DecoderWeights(tiny_dalle(0, config))
    with torch.inference_mode():
        step = StaticStep(weights, prefill(weights, request(config, 1)[0]), PARAMS, 3)
    tensors = [*step.keys, step.shifts, step.codes, step.random]
    assert sum(t.numel() * t.element_size() for t in tensors) == 3 * static_bytes_per_candidate(config, torch.float32)


def test_the_papers_caches_take_less_than_80_mb_a_candidate():
    assert 76e6 < static_bytes_per_candidate(PAPER, torch.bfloat16) < 80e6
    assert memory_per_candidate(PAPER, torch.bfloat16) > static_bytes_per_candidate(PAPER, torch.bfloat16)
