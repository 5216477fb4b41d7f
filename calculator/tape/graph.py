"""The autograd graph: records the nodes of a forward pass and runs the backward pass over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calculator.tape.storage import ActivationGradient, Memory, Storage
from calculator.tape.values import FLOAT32, PASS_THROUGH, Gradient, Leaf, Node, Parameter, Slot, Value


class GraphRecorder:
    """Records a forward pass and runs its backward pass.

    width: bytes of a parameter; half: bytes of autocast's dtype, None without autocast; gradient_parts: GPUs that
    share the gradients of the layers; ahead: extra bytes in the backward pass of a layer (see `SimulatedStep`).
    """

    def __init__(
        self, memory: Memory, *, width: int, half: int | None, gradient_parts: int = 1, ahead: int = 0
    ) -> None:
        self.memory, self.width, self.half = memory, width, half
        self.gradient_parts, self.ahead = gradient_parts, ahead
        self.nodes: list[Node] = []
        self.casts: dict[Parameter, Value] = {}
        self.cast_bytes = 0
        """Bytes of autocast's weight copies in the simulated layer; `all_cast_bytes` counts those of all layers."""
        self.all_cast_bytes = 0
        self.layers_end = 0
        self.placeholders: list[Storage] = []
        self.cast_placeholders: list[Storage] = []

    def new(self, n: int, width: int | None = None) -> Value:
        """Allocate a tensor that needs no gradient."""
        width = self.width if width is None else width
        return Value(Storage(self.memory, n * width), n, width, None)

    def record(
        self, n: int, width: int, saved: Any, gradients: Sequence[Gradient], scratch: int = 0, storage: Any = None
    ) -> Value:
        """Append the node of an operation and return its result; pass `storage` for views and in-place operations."""
        storage = storage or Storage(self.memory, n * width)
        for slot, _ in gradients:
            if slot is not None:
                out = Slot()
                self.nodes.append(((out,), saved, gradients, scratch))
                return Value(storage, n, width, out)
        return Value(storage, n, width, None)

    def cast(self, x: Value, width: int) -> Value:
        """Convert x to another width; returns x itself if it already has it."""
        if x.width == width:
            return x
        return self.record(x.n, width, None, ((x.slot, x.n * x.width),))

    def copy(self, x: Value) -> Value:
        """A contiguous copy, for example of a transposed view. Its gradient is a view of the incoming one."""
        return self.record(x.n, x.width, None, ((x.slot, PASS_THROUGH),))

    def to_float32(self, x: Value) -> Value:
        """Convert to float32, as autocast does for softmax, layer_norm and pow; a no-op without autocast."""
        return self.cast(x, FLOAT32) if self.half else x

    def end_autocast(self) -> None:
        """Drop autocast's cache of weight copies; those that a node saved stay alive."""
        self.casts.clear()
        self.cast_placeholders.clear()

    def backward(self, until: int = 0) -> None:
        """Run the backward pass from the last node down to node number `until`."""
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
            if not any(incoming):  # no gradient reached this node, for example of a slice that was not used
                continue
            made: list[tuple[Slot, Storage]] = []
            if callable(saved):
                saved(incoming)
            else:
                for to, size in gradients:
                    if to is not None:
                        made.append((to, incoming[0] if size == PASS_THROUGH else ActivationGradient(memory, size)))
                if scratch:
                    ActivationGradient(memory, scratch)
            # From here on, Python's reference counts free what autograd would free at this moment.
            saved = incoming = None
            for i, (slot, storage) in enumerate(made):
                made[i] = None  # type: ignore[call-overload]  # the slot alone owns the gradient now
                self.deliver(slot, storage)
                del storage

    def deliver(self, slot: Slot, gradient: Storage) -> None:
        """Accumulate a gradient. Autograd adds out of place unless it owns both tensors, so the sum is a new one."""
        if slot.gradient is not None:
            if type(slot) is Leaf:
                self.memory.gradients -= gradient.size  # the sum replaces the first gradient
            slot.gradient = ActivationGradient(self.memory, gradient.size)
        else:
            slot.gradient = gradient
        if type(slot) is Leaf:
            _retain(self.memory, slot.gradient)


def _retain(memory: Memory, gradient: Storage) -> None:
    """Count a gradient as that of a parameter from now on."""
    # Were it added to an older gradient, both would be alive now.
    alive = memory.live - memory.gradients + gradient.size
    if alive > memory.accumulating:
        memory.accumulating = alive
    if type(gradient) is ActivationGradient:
        memory.activation_gradients -= gradient.size
        gradient.__class__ = Storage  # type: ignore[assignment]
    memory.gradients += gradient.size
