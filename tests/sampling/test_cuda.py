"""Painting on a GPU, and only there: recorded steps against steps called one by one and against the plain forward."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.oracle import KINDS, config_of, painted, plain_logits, request
from tests.support.tiny import tiny_dalle
from ttt.config import PAPER
from ttt.hardware import choose_device, choose_dtype
from ttt.model.dalle import Dalle
from ttt.sampling.decode import prefill
from ttt.sampling.graph import Recorder, Run
from ttt.sampling.params import SamplingParams
from ttt.sampling.static import StaticStep
from ttt.sampling.weights import DecoderWeights

if not torch.cuda.is_available():
    pytest.skip(
        "NO CUDA DEVICE: recording CUDA graphs and replaying them is checked nowhere in this run",
        allow_module_level=True,
    )

PARAMS = SamplingParams(candidates=11, seed=3, top_k=12, top_p=0.9)


def on_gpu(size: str, kinds: str, dtype: torch.dtype = torch.float32) -> DecoderWeights:
    return DecoderWeights(tiny_dalle(3, config_of(size, kinds)).to("cuda"), dtype)


def loop_only(step: Run, device: torch.device) -> Run:
    raise RuntimeError("the loop is wanted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kinds", KINDS)
def test_a_graph_paints_what_its_step_paints(kinds: str, dtype: torch.dtype):
    weights = on_gpu("odd head", kinds, dtype)
    recorder = Recorder(weights.device)
    of_graph = painted(weights, PARAMS, 5, recorder)
    assert not recorder.failed
    assert torch.equal(of_graph, painted(weights, PARAMS, 5, Recorder(weights.device, lambda step, device: step)))


@pytest.mark.parametrize("kinds", KINDS)
def test_a_graph_paints_what_the_loop_paints_in_float32(kinds: str):
    weights = on_gpu("wide", kinds)
    recorder = Recorder(weights.device)
    of_graph = painted(weights, PARAMS, 11, recorder)
    assert not recorder.failed
    assert torch.equal(of_graph, painted(weights, PARAMS, 11, Recorder(weights.device, loop_only)))


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
def test_a_replay_asks_nothing_of_the_host():
    weights = on_gpu("tiny", "paper")
    text, _ = request(weights.config, 1)
    step = StaticStep(weights, prefill(weights, text), PARAMS, 4)
    step.restart()
    run = Recorder(weights.device).record(step)
    assert run is not None
    step.restart()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(weights.config.image_seq_len - 1):
            run()
        step.restart()
        step()  # the step itself waits for nothing, either
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_device_has_a_number_and_a_precision_that_it_is_good_at():
    device = choose_device("cuda")
    assert device == choose_device("auto")
    assert device.index is not None
    half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    assert choose_dtype("auto", device, PAPER) == half


def test_memory_goes_back_when_a_request_ends():
    weights = DecoderWeights(Dalle(config_of("tiny", "mixed")).cuda())
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        painted(weights, PARAMS, 11, Recorder(weights.device))
    assert torch.cuda.memory_allocated() - before < 32 << 20, "but for the libraries' workspaces"
