"""Sampling on a GPU, and only there: captured steps against eager ones and against the plain forward."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.oracle import KINDS, config_of, plain_logits, request, sampled
from tests.support.tiny import tiny_dalle
from ttt.config import PAPER
from ttt.hardware import choose_device, choose_dtype
from ttt.model.dalle import Dalle
from ttt.sampling.decode import prefill
from ttt.sampling.graph import GraphCapturer, Run
from ttt.sampling.params import SamplingParams
from ttt.sampling.static import StaticStep
from ttt.sampling.weights import DecoderWeights

if not torch.cuda.is_available():
    pytest.skip(
        "NO CUDA DEVICE: capturing and replaying CUDA graphs is not tested in this run",
        allow_module_level=True,
    )

PARAMS = SamplingParams(candidates=11, seed=3, top_k=12, top_p=0.9)


def on_gpu(size: str, kinds: str, dtype: torch.dtype = torch.float32) -> DecoderWeights:
    return DecoderWeights(tiny_dalle(3, config_of(size, kinds)).to("cuda"), dtype)


def never_captured(step: Run, device: torch.device) -> Run:
    raise RuntimeError("use the eager decoder")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kinds", KINDS)
def test_a_graph_gives_the_codes_of_its_step(kinds: str, dtype: torch.dtype):
    weights = on_gpu("odd head", kinds, dtype)
    capturer = GraphCapturer(weights.device)
    of_graph = sampled(weights, PARAMS, 5, capturer)
    assert not capturer.failed
    assert torch.equal(of_graph, sampled(weights, PARAMS, 5, GraphCapturer(weights.device, lambda step, device: step)))


@pytest.mark.parametrize("kinds", KINDS)
def test_a_graph_gives_the_codes_of_the_eager_decoder_in_float32(kinds: str):
    weights = on_gpu("wide", kinds)
    capturer = GraphCapturer(weights.device)
    of_graph = sampled(weights, PARAMS, 11, capturer)
    assert not capturer.failed
    assert torch.equal(of_graph, sampled(weights, PARAMS, 11, GraphCapturer(weights.device, never_captured)))


@pytest.mark.parametrize("kinds", KINDS)
@torch.inference_mode()
def test_logits_on_the_gpu_equal_the_plain_forward(kinds: str):
    weights = on_gpu("wide", kinds)
    text, codes = (x.cuda() for x in request(weights.config, 4))
    prompt = prefill(weights, text)
    step = StaticStep(weights, prompt, PARAMS, 4)
    step.codes[:] = codes.t()
    logits = [prompt.logits.expand(4, -1)]
    for position in range(weights.config.image_seq_len - 1):
        step.position.fill_(position)
        logits.append(step.decode())
    torch.testing.assert_close(torch.stack(logits, dim=1), plain_logits(weights.dalle, text, codes), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_replay_never_waits_for_the_host():
    weights = on_gpu("tiny", "paper")
    text, _ = request(weights.config, 1)
    step = StaticStep(weights, prefill(weights, text), PARAMS, 4)
    step.restart()
    run = GraphCapturer(weights.device).capture(step)
    assert run is not None
    step.restart()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(weights.config.image_seq_len - 1):
            run()
        step.restart()
        step()  # nor does the step itself
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_device_has_a_number_and_its_native_precision():
    device = choose_device("cuda")
    assert device == choose_device("auto")
    assert device.index is not None
    half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    assert choose_dtype("auto", device, PAPER) == half


def test_memory_is_freed_when_a_request_ends():
    weights = DecoderWeights(Dalle(config_of("tiny", "mixed")).cuda())
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        sampled(weights, PARAMS, 11, GraphCapturer(weights.device))
    assert torch.cuda.memory_allocated() - before < 32 << 20, "but for the libraries' workspaces"
