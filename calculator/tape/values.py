"""Parameters, values, and the slots in which gradients are accumulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calculator.tape.storage import Storage

FLOAT32 = 4
"""Bytes of a float32 number."""


class Slot:
    """Accumulates the gradient of one tensor in the backward pass."""

    __slots__ = ("gradient",)

    def __init__(self) -> None:
        self.gradient: Storage | None = None


class Parameter:
    """A parameter of n elements of `width` bytes. The tape counts its gradient; `static_memory` counts its weights."""

    __slots__ = ("adapter", "n", "quantized", "slot", "width")

    def __init__(self, n: int, width: int, trained: bool = True) -> None:
        self.n, self.width = n, width
        self.slot: Slot | None = Leaf() if trained else None
        self.adapter: tuple[Parameter, Parameter] | None = None
        self.quantized = False


class Leaf(Slot):
    """The slot of a parameter: its gradient stays until the optimizer step."""

    __slots__ = ()


class Value:
    """A tensor of n elements of `width` bytes. Views share a storage; slot None means that no gradient is needed."""

    __slots__ = ("n", "slot", "storage", "width")

    def __init__(self, storage: Storage, n: int, width: int, slot: Slot | None) -> None:
        self.storage, self.n, self.width, self.slot = storage, n, width, slot


PASS_THROUGH = -1
"""Size of a gradient that is the incoming gradient itself (of additions and views): nothing is allocated."""

Gradient = tuple[Slot | None, int]
Node = tuple[Sequence[Slot], Any, Sequence[Gradient], int]
"""Output slots, tensors saved for the backward pass, gradients returned (slot, bytes), and temporary bytes."""
