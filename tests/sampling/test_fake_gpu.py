"""Sampling with fake tensors on a GPU: no tensor may be on the host, and no operation may read a value."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.sampling.fake_gpu import GPU, on_fake_gpu
from tests.sampling.oracle import config_of, request
from tests.support.tiny import tiny_dalle
from ttt.sampling.cache import PrefillResult
from ttt.sampling.decode import prefill
from ttt.sampling.params import SamplingParams
from ttt.sampling.sampler import EagerDecoder, random_numbers
from ttt.sampling.static import StaticStep
from ttt.sampling.weights import DecoderWeights

PARAMS = SamplingParams(candidates=5)


def on_gpu(size: str, kinds: str, dtype: torch.dtype, mode: FakeTensorMode) -> tuple[DecoderWeights, PrefillResult]:
    weights = DecoderWeights(tiny_dalle(3, config_of(size, kinds)), dtype, pack=False)
    with torch.inference_mode():
        prompt = prefill(weights, request(weights.config, 1)[0])
    return on_fake_gpu((weights, prompt), mode)


@pytest.mark.parametrize(
    ("size", "kinds", "dtype"), [("tiny", "mixed", torch.bfloat16), ("odd head", "paper", torch.float32)]
)
def test_both_decoders_stay_on_the_device(size: str, kinds: str, dtype: torch.dtype):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights, prompt = on_gpu(size, kinds, dtype, mode)
    with mode, torch.inference_mode():
        random = random_numbers(weights, PARAMS, 0, 5)
        step, loop = StaticStep(weights, prompt, PARAMS, 5), EagerDecoder(weights, prompt, PARAMS, random)
        step.begin(random)
        step()
        for _ in range(weights.config.image_fmap_size + 1):
            loop.advance()
    assert step.codes.device == loop.codes.device == GPU


def test_a_tensor_on_the_host_and_reading_a_value_are_detected():
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights, prompt = on_gpu("tiny", "paper", torch.float32, mode)
    with mode, torch.inference_mode():
        step = StaticStep(weights, replace(prompt, keys=[torch.zeros(x.shape) for x in prompt.keys]), PARAMS, 5)
        with pytest.raises(RuntimeError, match="same device|different devices"):
            step()
        with pytest.raises(DataDependentOutputException):
            bool(step.position == 0)
