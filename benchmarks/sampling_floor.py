"""What a step of painting costs at least: its products with weights, and the bytes it must move. Knows no peers."""

from __future__ import annotations

import time

import torch

from ttt.config import DalleConfig
from ttt.sampling.cache import Prompt, slots_of
from ttt.sampling.linear import Int8Linear
from ttt.sampling.weights import DecoderWeights, Linear


def products_alone(weights: DecoderWeights, rows: int) -> None:
    """All products with weights of one step of `rows` candidates, in its order."""
    config: DalleConfig = weights.config
    x = torch.ones(rows, config.dim, dtype=weights.dtype, device=weights.device)
    last = x.float()
    x = x.to(torch.uint8) if isinstance(weights.layers[0].up, Int8Linear) else x
    inner = x.new_ones(rows, config.heads * config.dim_head)
    wide = x.new_ones(rows, config.dim * config.ff_mult)
    for layer in weights.layers:
        for linear, of in ((layer.to_qkv, x), (layer.to_out, inner), (layer.up, x), (layer.down, wide)):
            linear.of_integers(of, weights.dtype) if isinstance(linear, Int8Linear) else linear(of)
    weights.to_logits(last)


def bytes_moved(weights: DecoderWeights, prompt: Prompt, b: int) -> int:
    """A step's least traffic, were nothing but the processor's own caches between it and the memory: every layer's
    weights and prompt keys once, and of each candidate the image keys of one group.
    """
    config, size = weights.config, weights.dtype.itemsize
    linears = [x for layer in weights.layers for x in (layer.to_qkv, layer.to_out, layer.up, layer.down)]
    of_prompt = sum(t.numel() for t in (*prompt.keys, *prompt.values)) * size
    own = sum(slots_of(kind, config)[1] for kind in config.layer_kinds) * 2 * config.heads * config.dim_head * size
    return sum(map(_bytes, (*linears, weights.to_logits))) + of_prompt + b * own


def _bytes(linear: Linear) -> int:
    return linear.weight.numel() * linear.weight.element_size()


def bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes read a second with all threads: the best of a few sums of a tensor that no cache holds."""
    x = torch.ones(megabytes << 18, device=device)
    best = float("inf")
    for _ in range(4):
        start = clock(device)
        x.sum()
        best = min(best, clock(device) - start)
    return x.numel() * x.element_size() / best


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
