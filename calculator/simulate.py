"""Simulates the forward and backward pass of one training step on a tape. Independent of optimizers and devices."""

from __future__ import annotations

from dataclasses import dataclass

from calculator.architectures import Architecture
from calculator.families import FAMILIES
from calculator.families.common import Context, Tensor
from calculator.tape import ActivationGradient, Memory, Parameter, Tape


@dataclass(frozen=True)
class SimulatedStep:
    """The sizes and options of a simulated step, in the tape's terms."""

    batch: int
    sequence: int
    target: int
    width: int
    half: int | None
    eager: bool
    dropout: bool
    groups: int | None
    every: int | None
    reversible: bool
    rank: int = 0
    """Rank of the adapters; 0: all weights are trained."""
    quantized: bool = False
    gradient_parts: int = 1
    """GPUs that share the gradients: those of a layer are split as soon as they are complete."""
    ahead: int = 0
    """Extra bytes alive in the backward pass of a layer: prefetched weights and gradients being sent (ZeRO 3)."""


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak of one phase, excluding weights and optimizer state."""

    total: int
    gradients: int
    activation_gradients: int
    """Bytes of activation gradients."""
    accumulating: int
    """The peak without parameter gradients, except new ones about to be added to existing ones."""


@dataclass(frozen=True)
class Activity:
    kept: int
    """By the layers, for the backward pass."""
    casts: int
    """Autocast's copies of the layers' weights."""
    forward: Peak
    loss: Peak
    backward: Peak


def tensors(a: Architecture) -> list[Tensor]:
    result: list[Tensor] = FAMILIES[a.family].tensors(a)
    return result


def simulate(a: Architecture, inventory: list[Tensor], step: SimulatedStep) -> Activity:
    memory = Memory()
    tape = Tape(memory, width=step.width, half=step.half, gradient_parts=step.gradient_parts, ahead=step.ahead)
    parameters = _parameters(inventory, step)
    c = Context(
        tape=tape, parameters=parameters, a=a, b=step.batch, s=step.sequence, t=step.target, eager=step.eager,
        dropout=step.dropout and a.dropout, attention_dropout=step.dropout and a.attention_dropout,
        groups=step.groups, every=step.every, reversible=step.reversible,
    )  # fmt: skip
    loss = FAMILIES[a.family].loss(c)
    tape.end_autocast()
    forward = _peak(memory)
    slot = loss.slot
    assert slot is not None
    del loss
    memory.restart()
    slot.gradient = ActivationGradient(memory, 4)
    tape.backward(tape.layers_end)
    at_loss = _peak(memory)
    memory.restart()
    tape.backward()
    return Activity(c.kept_after_layers, tape.all_cast_bytes, forward, at_loss, _peak(memory))


def _peak(memory: Memory) -> Peak:
    accumulating = max(memory.without_gradients, memory.accumulating)
    return Peak(memory.peak, memory.peak_gradients, memory.peak_activation_gradients, accumulating)


def _parameters(inventory: list[Tensor], step: SimulatedStep) -> dict[str, Parameter]:
    result = {}
    for x in inventory:
        result[x.name] = parameter = Parameter(x.n, step.width, trained=not step.rank)
        if step.rank and x.is_matrix:
            rows, columns = x.shape
            parameter.adapter = Parameter(step.rank * columns, 4), Parameter(step.rank * rows, 4)
            parameter.quantized = step.quantized
    return result
