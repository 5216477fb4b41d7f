"""Reads and writes the training state of an optimizer as named tensors and numbers. Independent of network and files.

Names are `parameters/NAME` and `optimizer/NAME/KEY`, the same on every peer and in every checkpoint. A state from
another peer contributes nothing but tensors and numbers: learning rate and other settings stay those of the run file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttt.errors import CheckpointError

Scalar = int | float | bool
FINGERPRINT_SIZE = 16


@dataclass
class OptimizerSpec:
    """The parameters to train, and how to make their optimizer and schedule, as hivemind's Optimizer takes them."""

    groups: list[dict[str, Any]]
    """Parameter groups, as for a torch optimizer."""
    names: list[str]
    """Names of the parameters in the groups' order."""
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    make_schedule: Callable[[torch.optim.Optimizer], Any]

    def build_optimizer(self, groups: Any) -> torch.optim.Optimizer:
        return initialize(self.make_optimizer(groups))


def parameter_names(groups: Sequence[dict[str, Any]], model: torch.nn.Module) -> list[str]:
    """Names of the parameters in the groups' order."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in groups for p in group["params"]]


@dataclass(frozen=True)
class TrainingState:
    """Everything that a newcomer needs besides the run file."""

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Scalar]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def initialize(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Create the state of the optimizer without changing any parameter, and return the optimizer.

    hivemind creates them with a step on zero gradients, which weight decay turns into a change of the parameters.
    """
    parameters = parameters_of(optimizer)
    if all(optimizer.state[p] for p in parameters):
        return optimizer
    rates = [group["lr"] for group in optimizer.param_groups]
    gradients = [p.grad for p in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the step below then changes nothing
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for statistics in optimizer.state.values():
        if "step" in statistics:
            statistics["step"] = statistics["step"] * 0  # a tensor or a number
    return optimizer


def snapshot(optimizer: torch.optim.Optimizer, names: Sequence[str], step: int, *, copy: bool = False) -> TrainingState:
    """Return what the optimizer holds, on the CPU. copy: needed if the optimizer continues to change it."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Scalar] = {}
    for name, value in entries(optimizer, names):
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            tensors[name] = value.clone() if copy else value
        else:
            scalars[name] = value
    return TrainingState(step, tensors, scalars)


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer, names: Sequence[str], state: TrainingState) -> None:
    """Copy a state into the optimizer.

    Raises CheckpointError and changes nothing if a name, shape, type or number does not fit.
    """
    expected = dict(entries(optimizer, names))
    check_state(expected, state)
    for group in optimizer.param_groups:
        if "step" in group:  # some optimizers count for each group instead of for each parameter
            group["step"] = state.step
    for name, value in expected.items():
        if isinstance(value, Tensor):
            value.copy_(state.tensors[name])
        else:
            _, parameter, key = name.split("/")
            index = list(names).index(parameter)
            optimizer.state[parameters_of(optimizer)[index]][key] = state.scalars[name]


def check_state(expected: Mapping[str, Any], state: TrainingState) -> None:
    """Raise CheckpointError, which names the first thing that differs from `expected` in kind, or is not finite."""
    received = {**state.tensors, **state.scalars}
    if expected.keys() != received.keys():
        differing = sorted(expected.keys() ^ received.keys())
        raise CheckpointError(
            f"the state belongs to another model or optimizer: {', '.join(differing[:3])} "
            f"({len(differing)} differ); all peers need the same run file and version"
        )
    for name, value in expected.items():
        other = received[name]
        if isinstance(value, Tensor):
            if not isinstance(other, Tensor) or other.shape != value.shape or other.dtype != value.dtype:
                actual = f"{list(other.shape)} {other.dtype}" if isinstance(other, Tensor) else type(other).__name__
                raise CheckpointError(f"{name} is {actual}, expected {list(value.shape)} {value.dtype}")
            if other.is_floating_point() and not bool(torch.isfinite(other).all()):
                raise CheckpointError(f"{name} holds NaN or infinity")
        elif type(other) is not type(value) or not math.isfinite(other):  # an int must not become a float or a bool
            raise CheckpointError(f"{name} is {other!r}, expected a finite {type(value).__name__}")


def is_finite(tensors: Sequence[Tensor]) -> bool:
    """Return True if every element of the floating-point tensors is finite.

    One pass over each tensor: a norm is finite only if all elements are. Elements so large that the norm overflows
    count as infinite.
    """
    norms = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point()])
    return bool(torch.stack([norm.float().cpu() for norm in norms]).isfinite().all())


def entries(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (name, live tensor or number): parameters first, always in the same order."""
    parameters = parameters_of(optimizer)
    for name, p in zip(names, parameters, strict=True):
        yield f"parameters/{name}", p
    for name, p in zip(names, parameters, strict=True):
        for key, value in sorted(optimizer.state[p].items()):
            if isinstance(value, (Tensor, int, float)):
                yield f"optimizer/{name}/{key}", value


def fingerprint(tensors: Iterable[Tensor]) -> tuple[list[float], float]:
    """Summarise tensors in a few numbers that show whether two peers hold the same parameters.

    hivemind logs "averaged with 4 peers" even when nothing was exchanged, so only the parameters themselves show
    whether peers agree. The fingerprint is linear: the difference of two fingerprints is the fingerprint of the
    difference, and its length estimates the length of the difference (each sum adds many elements whose signs are
    about as often positive as negative).

    Returns (`FINGERPRINT_SIZE` sums; element i of a tensor counts in sum i % FINGERPRINT_SIZE; Euclidean norm of all).
    """
    sums, square = torch.zeros(FINGERPRINT_SIZE, dtype=torch.float64), 0.0
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).to("cpu", torch.float32)
        rows = flat[: len(flat) // FINGERPRINT_SIZE * FINGERPRINT_SIZE].view(-1, FINGERPRINT_SIZE)
        sums += rows.sum(dim=0, dtype=torch.float64)
        rest = flat[rows.numel() :]
        sums[: len(rest)] += rest
        square += float(flat.square().sum(dtype=torch.float64))
    return sums.tolist(), math.sqrt(square)


def fingerprint_distance(a: Sequence[float], b: Sequence[float], norm: float) -> float:
    """Estimate |parameters a - parameters b| / norm from two fingerprints."""
    difference = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return difference / norm if norm > 0 else difference
