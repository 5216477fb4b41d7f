"""Reversible blocks on two streams (Gomez et al. 2017) and their autograd function. Independent of attention.

A block is a pair (f, g): y1 = x1 + f(x2), y2 = x2 + g(y1). Only the last y1 and y2 are kept for the backward pass,
which recomputes the inputs of every block from its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Branch:
    """A function of one stream, and the parameters it uses."""

    function: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


Block = tuple[Branch, Branch]


def run_blocks(blocks: Sequence[Block], x: Tensor, *, reversible: bool) -> Tensor:
    """Run both streams, which start as x [b, n, c], and return their mean.

    `reversible` changes what is kept for the backward pass, not the result.
    """
    if reversible and torch.is_grad_enabled():
        parameters = {id(p): p for f, g in blocks for p in (*f.parameters, *g.parameters) if p.requires_grad}
        y1, y2 = _Reversible.apply(x, x, blocks, *parameters.values())
    else:
        y1, y2 = _forward(blocks, x, x)
    return (y1 + y2) / 2


def _forward(blocks: Sequence[Block], x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    for f, g in blocks:
        x1 = x1 + f(x2)
        x2 = x2 + g(x1)
    return x1, x2


class _Reversible(torch.autograd.Function):
    """The parameters are inputs of the function so that autograd collects their gradients like any other's."""

    @staticmethod
    def forward(
        ctx: Any, x1: Tensor, x2: Tensor, blocks: Sequence[Block], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        device = x1.device.type
        ctx.blocks, ctx.device = blocks, device
        ctx.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        ctx.positions = {id(p): i for i, p in enumerate(parameters)}
        with _autocast(ctx):
            y1, y2 = _forward(blocks, x1, x2)
        ctx.save_for_backward(y1, y2)
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy1: Tensor, dy2: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2 = ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * len(ctx.positions)
        for f, g in reversed(ctx.blocks):
            # Undo y2 = x2 + g(y1) first, because y1 is still known; then y1 = x1 + f(x2), with the x2 just recovered.
            x2, dy1 = _undo(ctx, g, y1, y2, dy2, dy1, gradients)
            x1, dy2 = _undo(ctx, f, x2, y1, dy1, dy2, gradients)
            y1, y2 = x1, x2
        return (dy1, dy2, None, *gradients)


def _undo(
    ctx: Any, branch: Branch, x: Tensor, y: Tensor, dy: Tensor, dx: Tensor, gradients: list[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Invert `y = other + branch(x)`: return `other`, and `dx` plus the branch's gradient; update `gradients`."""
    parameters = [p for p in branch.parameters if id(p) in ctx.positions]
    x = x.detach().requires_grad_()
    with torch.enable_grad(), _autocast(ctx):
        residual = branch(x)
    from_x, *from_parameters = torch.autograd.grad(residual, (x, *parameters), dy)
    for parameter, gradient in zip(parameters, from_parameters, strict=True):
        i = ctx.positions[id(parameter)]
        earlier = gradients[i]  # of another block that shares the parameter
        gradients[i] = gradient if earlier is None else earlier.add_(gradient)
    return y - residual.detach(), dx + from_x


def _autocast(ctx: Any) -> AbstractContextManager[Any]:
    """The autocast of the forward pass, without its cache: a weight cast outside of a graph would get no gradient."""
    enabled, dtype = ctx.autocast
    return torch.autocast(ctx.device, dtype=dtype, enabled=enabled, cache_enabled=False)
