"""LAMB by the formula, the oracle for `ttt.train.optimizer.Lamb`, with parameters and gradients to test both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGE = (320, 256)
"""81,920 elements: 8-bit state, 20 blocks."""


class Oracle:
    """You et al. 2020, algorithm 2, line by line; the norm of the weights clamped as in the 2021 run."""

    def __init__(self, params: list[Tensor], decay: float = 0.045, debias: bool = False) -> None:
        self.params = [p.detach().float().clone() for p in params]
        self.m = [torch.zeros_like(p) for p in self.params]
        self.v = [torch.zeros_like(p) for p in self.params]
        self.decay, self.debias, self.t = decay, debias, 0

    def step(self, gradients: list[Tensor], lr: float = 2.5e-3, clamp: float = 1e4, most: float = 4.0) -> None:
        self.t += 1
        gradients = [g.float().clone() for g in gradients]
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        scale = (most / (norm + 1e-6)).clamp(max=1.0)
        for x, m, v, g in zip(self.params, self.m, self.v, gradients, strict=True):
            g *= scale
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.96 * v + 0.04 * g**2)
            m_hat = m / (1 - 0.9**self.t) if self.debias else m
            v_hat = v / (1 - 0.96**self.t) if self.debias else v
            update = m_hat / (v_hat.sqrt() + 1e-6) + self.decay * x
            ratio = x.norm().clamp(0, clamp) / update.norm()
            x -= lr * (ratio if x.norm() > 0 and update.norm() > 0 else 1.0) * update


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 0.02) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter((torch.randn(s) * scale).to(dtype)) for s in shapes]


def give_gradients(params: list[nn.Parameter], seed: int, scale: float = 1.0) -> list[Tensor]:
    """Random gradients whose elements have very different sizes, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        spread = torch.randn(p.shape, generator=generator).exp()
        p.grad = (torch.randn(p.shape, generator=generator) * spread * scale).to(p.dtype)
    return [p.grad for p in params if p.grad is not None]


def distance(params: list[Tensor], oracle: Oracle, start: list[Tensor]) -> float:
    """Distance between two results of training, relative to the distance from the start."""
    ours, theirs, first = (
        torch.cat([x.detach().float().flatten() for x in xs]) for xs in (params, oracle.params, start)
    )
    return float((ours - theirs).norm() / (theirs - first).norm())


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else bool(a == b)
