"""Configurations with every kind of mask; logits of the plain forward and of both decoders; codes of whole requests."""

from __future__ import annotations

import pytest
import torch

from ttt.config import DalleConfig
from ttt.linear import Int8Linear
from ttt.model.dalle import Dalle
from ttt.sampling.cache import Cache
from ttt.sampling.decode import decode_one_code, prefill
from ttt.sampling.graph import GraphCapturer
from ttt.sampling.params import SamplingParams
from ttt.sampling.sampler import SampledCodes, sampling_work
from ttt.sampling.static import StaticStep
from ttt.sampling.weights import DecoderWeights
from ttt.workers import WorkerPool

needs_vnni = pytest.mark.skipif(
    not Int8Linear.works(),
    reason="NO INT8 PRODUCTS: no VNNI in this processor, or no oneDNN in torch; not tested",
)
SIZES = {
    "tiny": {"dim": 16, "depth": 5, "heads": 2, "dim_head": 8, "text_seq_len": 6, "image_fmap_size": 4},
    "odd head": {"dim": 32, "depth": 6, "heads": 3, "dim_head": 7, "text_seq_len": 3, "image_fmap_size": 7},
    "least": {"dim": 32, "depth": 3, "heads": 1, "dim_head": 6, "text_seq_len": 1, "image_fmap_size": 1},
    "less": {"dim": 12, "depth": 4, "heads": 1, "dim_head": 9, "text_seq_len": 2, "image_fmap_size": 2},
    "wide": {"dim": 64, "depth": 4, "heads": 2, "dim_head": 36, "text_seq_len": 9, "image_fmap_size": 6},
}
KINDS = {
    "paper": (("row", "column", "row", "row"), "conv"),
    "row": (("row",), None),
    "column": (("column",), None),
    "conv": (("conv",), None),
    "full": (("full",), None),
    "mixed": (("conv", "full", "column"), "row"),
}


def config_of(size: str, kinds: str, **more: object) -> DalleConfig:
    cycle, last = KINDS[kinds]
    return DalleConfig(
        **SIZES[size],  # type: ignore[arg-type]
        num_text_tokens=20,
        num_image_tokens=30,
        attention_cycle=cycle,  # type: ignore[arg-type]
        last_attention=last,  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )


def request(config: DalleConfig, b: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A random prompt and random codes."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, config.num_text_tokens, (1, config.text_seq_len), generator=generator)
    codes = torch.randint(0, config.num_image_tokens, (b, config.image_seq_len), generator=generator)
    return text, codes


@torch.inference_mode()
def plain_logits(dalle: Dalle, text: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Logits [b, n, v] before each of the codes, from the model's own forward."""
    config = dalle.config
    logits = dalle(text.expand(len(codes), -1), codes)
    return logits[:, config.text_seq_len : config.text_seq_len + codes.shape[1], config.text_vocab :]


@torch.inference_mode()
def cached_logits(dalle: Dalle, text: torch.Tensor, codes: torch.Tensor, **how: object) -> torch.Tensor:
    """Logits [b, n, v] before each of the codes, from `decode_one_code`."""
    b, n = codes.shape
    weights = DecoderWeights(dalle, **how)  # type: ignore[arg-type]
    prompt = prefill(weights, text)
    cache = Cache(dalle.config, prompt, b, weights.dtype, weights.device)
    logits = [prompt.logits.expand(b, -1)]
    logits += [decode_one_code(weights, cache, codes[:, i], i) for i in range(n - 1)]
    return torch.stack(logits, dim=1)


@torch.inference_mode()
def static_logits(dalle: Dalle, text: torch.Tensor, codes: torch.Tensor, **how: object) -> torch.Tensor:
    """Logits [b, n, v] before each of the codes, from StaticStep."""
    b, n = codes.shape
    weights = DecoderWeights(dalle, **how)  # type: ignore[arg-type]
    prompt = prefill(weights, text)
    step = StaticStep(weights, prompt, SamplingParams(candidates=b), b)
    logits = [prompt.logits.expand(b, -1)]
    step.codes[:n] = codes.t()
    for position in range(n - 1):
        step.position.fill_(position)
        logits.append(step.decode())
    return torch.stack(logits, dim=1)


@torch.inference_mode()
def sampled(
    weights: DecoderWeights, params: SamplingParams, size: int, capturer: GraphCapturer | None = None
) -> torch.Tensor:
    """Codes [candidates, n], in pieces of `size`."""
    text, _ = request(weights.config, 1)
    sampled = SampledCodes(params.candidates, weights.config)
    work = sampling_work(weights, prefill(weights, text), params, sampled, capturer)
    for _ in WorkerPool(params.candidates, size, work, weights.device, cores=1).run():
        pass
    assert sampled.fraction == 1
    return sampled.codes
