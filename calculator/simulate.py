"""Plays one training step of a model on a tape. Owns the order of things; knows no optimizer and no devices."""

from __future__ import annotations

from dataclasses import dataclass

from calculator.architectures import Architecture
from calculator.families import FAMILIES
from calculator.families.common import Context, Tensor
from calculator.tape import Flow, Memory, Parameter, Tape


@dataclass(frozen=True)
class Step:
    """How a step is computed, in the terms of the tape."""

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
    """Of adapters; 0: all weights are trained."""
    quantized: bool = False
    gradient_parts: int = 1
    """GPUs that share the gradients: a layer's are split as soon as they are complete."""
    ahead: int = 0
    """Bytes beside those of a layer on its way back, of weights fetched and gradients sent (ZeRO 3)."""


@dataclass(frozen=True)
class Peak:
    """Bytes at the worst moment of a part of the step, weights and optimizer state apart."""

    total: int
    gradients: int
    flow: int
    """Gradients of activations on their way."""
    accumulating: int
    """The most without gradients of parameters, except those on their way to be added to older ones."""


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


def simulate(a: Architecture, inventory: list[Tensor], step: Step) -> Activity:
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
    slot.gradient = Flow(memory, 4)
    tape.backward(tape.layers_end)
    at_loss = _peak(memory)
    memory.restart()
    tape.backward()
    return Activity(c.kept_after_layers, tape.all_cast_bytes, forward, at_loss, _peak(memory))


def _peak(memory: Memory) -> Peak:
    accumulating = max(memory.without_gradients, memory.accumulating)
    return Peak(memory.peak, memory.peak_gradients, memory.peak_flow, accumulating)


def _parameters(inventory: list[Tensor], step: Step) -> dict[str, Parameter]:
    result = {}
    for x in inventory:
        result[x.name] = parameter = Parameter(x.n, step.width, trained=not step.rank)
        if step.rank and x.is_matrix:
            rows, columns = x.shape
            parameter.adapter = Parameter(step.rank * columns, 4), Parameter(step.rank * rows, 4)
            parameter.quantized = step.quantized
    return result
