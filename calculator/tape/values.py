"""What a tape handles: parameters, values, and the slots where gradients are collected. Knows no operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calculator.tape.ledger import Storage

FULL = 4
"""Bytes of float32."""


class Slot:
    """Where the gradient of one tensor is collected on the way back."""

    __slots__ = ("gradient",)

    def __init__(self) -> None:
        self.gradient: Storage | None = None


class Parameter:
    """A trained tensor of n elements, `width` bytes each. Its own bytes are counted elsewhere; its gradient here."""

    __slots__ = ("adapter", "n", "quantized", "slot", "width")

    def __init__(self, n: int, width: int, trained: bool = True) -> None:
        self.n, self.width = n, width
        self.slot: Slot | None = Leaf() if trained else None
        self.adapter: tuple[Parameter, Parameter] | None = None
        self.quantized = False


class Leaf(Slot):
    """Of a parameter: its gradient stays."""

    __slots__ = ()


class Value:
    """A tensor: n elements of `width` bytes in a storage that views may share; slot None: no gradient goes there."""

    __slots__ = ("n", "slot", "storage", "width")

    def __init__(self, storage: Storage, n: int, width: int, slot: Slot | None) -> None:
        self.storage, self.n, self.width, self.slot = storage, n, width, slot


PASS = -1
"""Size of a gradient that is the incoming one itself (of additions and views)."""

Gradient = tuple[Slot | None, int]
Node = tuple[Sequence[Slot], Any, Sequence[Gradient], int]
"""Outputs, what is kept for the way back, the gradients made (where to, bytes), and temporary bytes beside them."""
