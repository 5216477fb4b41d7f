"""Optimizers at the size of the paper's model on a CPU: bytes of state, error against float32 LAMB, seconds per step.

    python -m benchmarks.optimizer                  # all 125.9 M parameters, about 6 GB
    python -m benchmarks.optimizer --shrink 8       # every matrix an eighth as high

Each optimizer starts from the same weights and gets the same random gradients, whose elements span two orders of
magnitude; of the embedding, one row in twenty has a gradient at a time. The error is the distance to the weights of
float32 LAMB, relative to the distance that these have moved. bitsandbytes' 8-bit LAMB on a CPU applies no trust ratio,
which makes it another algorithm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ttt.config import PAPER
from ttt.model.dalle import Dalle
from ttt.train.optimizer import Lamb

SETTINGS: dict[str, Any] = {"lr": 2.5e-3, "betas": (0.9, 0.96), "eps": 1e-6, "weight_decay": 0.045}
EMBEDDING = -2
"""Index of the tied embedding among the parameters; its bias is the last one."""
REFERENCE, YARDSTICK = "ttt Lamb, float32", "torch AdamW, float32"


def optimizers() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    import bitsandbytes as bnb

    lamb = {**SETTINGS, "bias_correction": False}
    return {
        REFERENCE: lambda p: Lamb(p, state_bits=32, max_grad_norm=None, **SETTINGS),
        "ttt Lamb, 8 bits": lambda p: Lamb(p, max_grad_norm=None, **SETTINGS),
        "bitsandbytes LAMB8bit (no trust ratio)": lambda p: bnb.optim.LAMB8bit(p, **lamb),
        "bitsandbytes LAMB, float32": lambda p: bnb.optim.LAMB(p, **lamb),
        YARDSTICK: lambda p: torch.optim.AdamW(p, **SETTINGS),
        "torch AdamW, float32, fused": lambda p: torch.optim.AdamW(p, fused=True, **SETTINGS),
    }


def shapes(shrink: int) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        tensors = [tuple(p.shape) for p in Dalle(PAPER).parameters()]
    return [(max(1, s[0] // shrink), *s[1:]) if len(s) > 1 else s for s in tensors]


def weights(sizes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(s) * 0.02) for s in sizes]


def gradients(params: list[nn.Parameter], step: int) -> None:
    torch.manual_seed(step)
    for p in params:
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.normal_(std=1e-3).mul_(torch.rand_like(p).mul_(4.6).exp_())
        if p is params[EMBEDDING]:
            p.grad.mul_(torch.rand(p.shape[0], 1) < 0.05)


def ends(params: list[nn.Parameter], make: Any, marks: tuple[int, ...]) -> Iterator[tuple[int, list[Tensor]]]:
    """Train, and yield the weights at the marked steps."""
    optimizer = make(params)
    for step in range(1, max(marks) + 1):
        gradients(params, step)
        optimizer.step()
        if step in marks:
            yield step, [p.detach().clone() for p in params]


def errors(shrink: int, steps: int) -> dict[str, dict[int, float]]:
    sizes, marks = shapes(shrink), (20, steps)
    start = [p.detach() for p in weights(sizes)]
    relative: dict[str, dict[int, float]] = {}
    reference: dict[int, list[Tensor]] = {}
    for name, make in optimizers().items():
        if name.startswith("torch"):
            continue
        for step, end in ends(weights(sizes), make, marks):
            reference.setdefault(step, end)
            error, moved = squared_distance(end, reference[step]), squared_distance(reference[step], start)
            relative.setdefault(name, {})[step] = (error / moved) ** 0.5
    return relative


def squared_distance(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x - y).double().square().sum()) for x, y in zip(a, b, strict=True))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor) and t.dim()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def seconds(params: list[nn.Parameter], repeats: int) -> dict[str, dict[str, float]]:
    """Times of steps taken in turns, so that other load affects all alike; the first step of each is not counted."""
    made = {name: make(params) for name, make in optimizers().items()}
    gradients(params, 0)
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(repeats + 1):
        for name, optimizer in made.items():
            start = time.perf_counter()
            optimizer.step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {
        name: {"bytes": state_bytes(made[name]), "seconds": statistics.median(taken), "best": min(taken)}
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shrink", type=int, default=1, help="divide the first dimension of every matrix")
    parser.add_argument("--error-shrink", type=int, default=16, help="the same for the measurement of errors")
    parser.add_argument("--steps", type=int, default=100, help="steps of training for the errors; 0: none")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each optimizer")
    options = parser.parse_args()
    relative_errors = errors(options.error_shrink, options.steps) if options.steps else {}
    params = weights(shapes(options.shrink))
    rows: dict[str, dict[str, Any]] = {k: dict(v) for k, v in seconds(params, options.repeats).items()}
    errors_at = f"error, 20 steps | error, {options.steps}"
    print(f"| optimizer | state, MB | s per step | best | relative to {YARDSTICK} | {errors_at} |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        row["ratio"] = row["seconds"] / rows[YARDSTICK]["seconds"]
        row["errors"] = relative_errors.get(name, {})
        shown = [f"{row['errors'][s]:.1%}" if s in row["errors"] else "" for s in (20, options.steps)]
        print(
            f"| {name} | {row['bytes'] / 1e6:.1f} | {row['seconds']:.2f} | {row['best']:.2f} | {row['ratio']:.2f} "
            f"| {' | '.join(shown)} |"
        )
    size = sum(p.numel() for p in params)
    print(json.dumps({"parameters": size, "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
