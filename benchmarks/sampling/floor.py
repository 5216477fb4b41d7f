"""The lower bound of a sampling step: its products with weights, and the bytes that it must move."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ttt.config import DalleConfig
from ttt.linear import Int8Linear
from ttt.sampling.cache import PrefillResult, slots_of
from ttt.sampling.graph import capturer_for
from ttt.sampling.weights import DecoderWeights, Linear


def products_of(weights: DecoderWeights, rows: int, logit_rows: int | None = None) -> Callable[[], None]:
    """`products_alone`, captured on a GPU: launched one by one from Python, products of few rows would take longer than
    the GPU takes for them.
    """
    products = partial(products_alone, weights, rows, logit_rows=logit_rows)
    if weights.device.type != "cuda":
        return products
    capturer = capturer_for(weights.device)
    return products if capturer.failed else capturer.capture(products, capturer.device)


def products_alone(weights: DecoderWeights, rows: int, *, logit_rows: int | None = None) -> None:
    """All products with weights of one step of `rows` candidates, in its order; logits of `logit_rows`, else of all."""
    config: DalleConfig = weights.config
    x = torch.ones(rows, config.dim, dtype=weights.dtype, device=weights.device)
    last = x[:logit_rows].float()
    x = x.to(torch.uint8) if isinstance(weights.layers[0].up, Int8Linear) else x
    inner = x.new_ones(rows, config.heads * config.dim_head)
    wide = x.new_ones(rows, config.dim * config.ff_mult)
    for layer in weights.layers:
        for linear, of in ((layer.to_qkv, x), (layer.to_out, inner), (layer.up, x), (layer.down, wide)):
            linear.of_integers(of, weights.dtype) if isinstance(linear, Int8Linear) else linear(of)
    weights.to_logits(last)


def bytes_moved(weights: DecoderWeights, prompt: PrefillResult, b: int) -> int:
    """Smallest memory traffic of a step, if only the processor's caches are between it and the memory: every layer's
    weights and prompt keys once, and of each candidate the image keys of one group.
    """
    config, size = weights.config, weights.dtype.itemsize
    linears = [x for layer in weights.layers for x in (layer.to_qkv, layer.to_out, layer.up, layer.down)]
    of_prompt = sum(t.numel() for t in (*prompt.keys, *prompt.values)) * size
    own = sum(slots_of(kind, config)[1] for kind in config.layer_kinds) * 2 * config.heads * config.dim_head * size
    return sum(map(_bytes, (*linears, weights.to_logits))) + of_prompt + b * own


def _bytes(linear: Linear) -> int:
    return linear.weight.numel() * linear.weight.element_size()


def bandwidth(device: torch.device) -> float:
    """Bytes read a second with all threads. Its tensor does not count in the peak memory of this process."""
    if device.type == "cuda":
        found = read_speed(device)
        torch.cuda.reset_peak_memory_stats(device)
        return found
    child = subprocess.run(  # the peak of a process never decreases
        [sys.executable, "-m", "benchmarks.sampling.floor", str(device), str(torch.get_num_threads())],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return float(child.stdout)


def read_speed(device: torch.device, megabytes: int = 512) -> float:
    """Bytes a second: the best of a few sums of a tensor that no cache holds."""
    x = torch.ones(megabytes << 18, device=device)
    best = float("inf")
    for _ in range(4):
        start = clock(device)
        x.sum()
        best = min(best, clock(device) - start)
    return x.numel() * x.element_size() / best


def clock(device: torch.device) -> float:
    """Seconds until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(read_speed(torch.device(sys.argv[1])))
