"""Records a forward pass, node by node, and plays it back. Knows no operation by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calculator.tape.ledger import Flow, Memory, Storage
from calculator.tape.values import FULL, PASS, Gradient, Leaf, Node, Parameter, Slot, Value


class Recorder:
    """Records a forward pass and plays it back.

    width: bytes of a parameter; half: bytes of autocast's type, or None without autocast; gradient_parts: GPUs that
    share the gradients of layers; ahead: bytes beside those of a layer on its way back.
    """

    def __init__(
        self, memory: Memory, *, width: int, half: int | None, gradient_parts: int = 1, ahead: int = 0
    ) -> None:
        self.memory, self.width, self.half = memory, width, half
        self.gradient_parts, self.ahead = gradient_parts, ahead
        self.nodes: list[Node] = []
        self.casts: dict[Parameter, Value] = {}
        self.cast_bytes = 0
        """Of the weights cast while playing; `all_cast_bytes`: of all layers' weights."""
        self.all_cast_bytes = 0
        self.layers_end = 0
        self.phantoms: list[Storage] = []
        self.cast_phantoms: list[Storage] = []

    def new(self, n: int, width: int | None = None) -> Value:
        """A tensor that needs no gradient."""
        width = self.width if width is None else width
        return Value(Storage(self.memory, n * width), n, width, None)

    def record(
        self, n: int, width: int, saved: Any, gradients: Sequence[Gradient], scratch: int = 0, storage: Any = None
    ) -> Value:
        """The result of an operation; `storage` is given where it is a view or works in place."""
        storage = storage or Storage(self.memory, n * width)
        for slot, _ in gradients:
            if slot is not None:
                out = Slot()
                self.nodes.append(((out,), saved, gradients, scratch))
                return Value(storage, n, width, out)
        return Value(storage, n, width, None)

    def cast(self, x: Value, width: int) -> Value:
        """x in another type (nothing to do where it has it already)."""
        if x.width == width:
            return x
        return self.record(x.n, width, None, ((x.slot, x.n * x.width),))

    def copy(self, x: Value) -> Value:
        """A contiguous copy, of a transposed view say. Its gradient is a view of the incoming one."""
        return self.record(x.n, x.width, None, ((x.slot, PASS),))

    def to_float32(self, x: Value) -> Value:
        """What autocast does to the inputs of softmax, layer_norm, pow, ...; nothing without autocast."""
        return self.cast(x, FULL) if self.half else x

    def end_autocast(self) -> None:
        """Cast weights live on only where a node keeps them."""
        self.casts.clear()
        self.cast_phantoms.clear()

    def backward(self, until: int = 0) -> None:
        """Play the nodes back, the latest first, down to number `until`."""
        nodes, memory = self.nodes, self.memory
        while len(nodes) > until:
            node = nodes.pop()
            if callable(node):
                node()
                continue
            slots, saved, gradients, scratch = node
            del node
            incoming: Any = [slot.gradient for slot in slots]
            for slot in slots:
                slot.gradient = None
            if not any(incoming):
                continue
            made: list[tuple[Slot, Storage]] = []
            if callable(saved):
                saved(incoming)
            else:
                for to, size in gradients:
                    if to is not None:
                        made.append((to, incoming[0] if size == PASS else Flow(memory, size)))
                if scratch:
                    Flow(memory, scratch)
            saved = incoming = None
            for i, (slot, storage) in enumerate(made):
                made[i] = None  # type: ignore[call-overload]
                self.deliver(slot, storage)
                del storage

    def deliver(self, slot: Slot, gradient: Storage) -> None:
        """Add to what has arrived there before; autograd does so out of place unless it is sure to own both."""
        if slot.gradient is not None:
            if type(slot) is Leaf:
                self.memory.gradients -= gradient.size  # the sum takes the place of the first
            slot.gradient = Flow(self.memory, gradient.size)
        else:
            slot.gradient = gradient
        if type(slot) is Leaf:
            _keep(self.memory, slot.gradient)


def _keep(memory: Memory, gradient: Storage) -> None:
    """From now on it is the gradient of a parameter."""
    alive = memory.live - memory.gradients + gradient.size
    if alive > memory.accumulating:
        memory.accumulating = alive
    if type(gradient) is Flow:
        memory.flow -= gradient.size
        gradient.__class__ = Storage  # type: ignore[assignment]
    memory.gradients += gradient.size
