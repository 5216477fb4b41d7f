"""A PyTorch of sizes only: which bytes a training step has alive at every moment. Knows no model.

The forward functions in `families` are written like PyTorch code. Every operation here allocates what PyTorch's
kernel allocates, keeps what its autograd node saves (torch/tools/autograd/derivatives.yaml), and on the way back
allocates the gradients it returns. A tensor lives as long as something refers to it, exactly as in PyTorch: the
storage counts itself in when it is made, and out when Python drops its last reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF, FULL = 2, 4


class Memory:
    """Bytes alive now, and the most there were.

    live: all; gradients: of parameters, thereof; flow: of activations, thereof. `peak` is the largest `live`, with
    the other two as they were then; `without_gradients` the largest of what is left without those of parameters;
    `accumulating` the same where each new gradient of a parameter is added to an older one.
    """

    __slots__ = (
        "accumulating",
        "flow",
        "gradients",
        "live",
        "peak",
        "peak_flow",
        "peak_gradients",
        "without_gradients",
    )

    def __init__(self) -> None:
        self.live = self.gradients = self.flow = 0
        self.restart()

    def restart(self) -> None:
        """Forget the peaks so far."""
        self.peak, self.peak_gradients, self.peak_flow = self.live, self.gradients, self.flow
        self.without_gradients = self.accumulating = self.live - self.gradients

    def peaks(self) -> Peaks:
        return (self.peak, self.peak_gradients, self.peak_flow), self.without_gradients, self.accumulating

    def set_peaks(self, *candidates: Peaks) -> None:
        self.peak, self.peak_gradients, self.peak_flow = max(c[0] for c in candidates)
        self.without_gradients = max(c[1] for c in candidates)
        self.accumulating = max(c[2] for c in candidates)


Peaks = tuple[tuple[int, int, int], int, int]


class Storage:
    """`size` bytes of a memory, from now until the last reference is gone."""

    __slots__ = ("memory", "size")

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory, self.size = memory, size
        live = memory.live = memory.live + size
        if live > memory.peak:
            memory.peak, memory.peak_gradients, memory.peak_flow = live, memory.gradients, memory.flow
        live -= memory.gradients
        if live > memory.without_gradients:
            memory.without_gradients = live

    def __del__(self) -> None:
        self.memory.live -= self.size


class Flow(Storage):
    """The gradient of an activation."""

    __slots__ = ()

    def __init__(self, memory: Memory, size: int) -> None:
        memory.flow += size
        super().__init__(memory, size)

    def __del__(self) -> None:
        self.memory.flow -= self.size
        self.memory.live -= self.size


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


class Tape:
    """Records a forward pass and plays it back.

    width: bytes of a parameter; half: bytes of autocast's type, or None without autocast.
    """

    def __init__(self, memory: Memory, *, width: int, half: int | None) -> None:
        self.memory, self.width, self.half = memory, width, half
        self.nodes: list[Node] = []
        self.casts: dict[Parameter, Value] = {}
        self.cast_bytes = 0
        """Of the weights cast while playing; `all_cast_bytes`: of all layers' weights."""
        self.all_cast_bytes = 0
        self.layers_end = 0
        self.phantoms: list[Storage] = []
        self.cast_phantoms: list[Storage] = []

    # -- values ---------------------------------------------------------------------------------------------------

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

    # -- elementwise ----------------------------------------------------------------------------------------------

    def scale(self, x: Value) -> Value:
        """x times a number, or negated."""
        return self.record(x.n, x.width, None, ((x.slot, x.n * x.width),))

    def scale_by(self, x: Value, y: Value) -> Value:
        """x times a broadcast tensor without a gradient, which is kept."""
        width = max(x.width, y.width)
        scratch = x.n * width if x.width != width else 0
        return self.record(x.n, width, y.storage, ((x.slot, x.n * x.width),), scratch)

    def shift(self, x: Value, width: int = 0) -> Value:
        """x plus a number, or plus a tensor (of `width`) without a gradient."""
        width = max(x.width, width)
        return self.record(x.n, width, None, ((x.slot, _sum(x, width)),))

    def add(self, x: Value, y: Value) -> Value:
        width = max(x.width, y.width)
        return self.record(x.n, width, None, ((x.slot, _sum(x, width)), (y.slot, _sum(y, width))))

    def multiply(self, x: Value, y: Value) -> Value:
        """Elementwise. Each factor is kept where the other one needs its gradient."""
        width = max(x.width, y.width)
        saved = (x.storage if y.slot else None, y.storage if x.slot else None)
        scratch = x.n * width if x.width != y.width and (x.slot or y.slot) else 0
        return self.record(x.n, width, saved, ((x.slot, x.n * x.width), (y.slot, y.n * y.width)), scratch)

    def function(self, x: Value, *, keeps_input: bool, scratch: int = 0) -> Value:
        """gelu, silu (keep their input), tanh, sigmoid, relu (keep their output)."""
        out = self.record(x.n, x.width, None, ((x.slot, x.n * x.width),), scratch)
        if x.slot is not None:
            slots, _, gradients, scratch = self.nodes[-1]
            self.nodes[-1] = (slots, x.storage if keeps_input else out.storage, gradients, scratch)
        return out

    def power(self, x: Value) -> Value:
        """x to a constant power: `grad * (e * x ** (e - 1))`."""
        x = self.to_float32(x)
        return self.function(x, keeps_input=True, scratch=x.n * x.width)

    def dropout(self, x: Value, on: bool = True) -> Value:
        """CUDA's fused kernel keeps one byte an element."""
        if not on:
            return x
        mask = Storage(self.memory, x.n)
        return self.record(x.n, x.width, mask, ((x.slot, x.n * x.width),))

    def softmax(self, x: Value) -> Value:
        return self.function(self.to_float32(x), keeps_input=False)

    # -- with parameters ------------------------------------------------------------------------------------------

    def weight(self, parameter: Parameter) -> tuple[Slot | None, Storage | None]:
        """Where a weight's gradient goes, and its cast copy under autocast (one for all uses until autocast ends)."""
        if not self.half or parameter.width == self.half:
            return parameter.slot, None
        value = self.casts.get(parameter)
        if value is None:
            value = self.record(parameter.n, self.half, None, ((parameter.slot, parameter.n * parameter.width),))
            if parameter.slot is not None:
                self.casts[parameter] = value
                self.cast_bytes += parameter.n * self.half
        return value.slot, value.storage

    def linear(self, x: Value, weight: Parameter, out: int, bias: Parameter | None = None) -> Value:
        """x [rows, in] -> [rows, out]; 4-bit weights are unpacked for the moment; an adapter adds its two products."""
        width = self.half or weight.width
        x = self.cast(x, width)
        rows = x.n * out // weight.n
        slot, cast = self.weight(weight)
        gradients: list[Gradient] = [(x.slot, x.n * width), (slot, weight.n * width)]
        if bias is not None:
            bias_slot, _ = self.weight(bias)
            gradients.append((bias_slot, bias.n * width))
        unpacked = weight.n * width if weight.quantized else 0
        if unpacked:
            Storage(self.memory, unpacked + rows * out * width)
        y = self.record(rows * out, width, (x.storage if slot else None, cast), gradients, unpacked)
        if weight.adapter is None:
            return y
        down, up = weight.adapter
        h = self.linear(x, down, down.n * rows // x.n)
        h = self.scale(self.linear(h, up, out))
        return self.cast(self.add(y, h), width)

    def batched_matmul(self, x: Value, y: Value, n: int) -> Value:
        width = self.half or self.width
        x, y = self.cast(x, width), self.cast(y, width)
        saved = (x.storage if y.slot else None, y.storage if x.slot else None)
        return self.record(n, width, saved, ((x.slot, x.n * width), (y.slot, y.n * width)))

    def layer_norm(self, x: Value, weight: Parameter, bias: Parameter, rows: int) -> Value:
        x = self.to_float32(x)
        statistics = Storage(self.memory, 2 * rows * x.width)
        gradients = ((x.slot, x.n * x.width), (weight.slot, weight.n * weight.width), (bias.slot, bias.n * bias.width))
        return self.record(x.n, x.width, (x.storage, statistics), gradients)

    def rms_norm(self, x: Value, weight: Parameter, rows: int, *, back: bool) -> Value:
        """The unfused one of T5 and Llama: `weight * (x32 * rsqrt(mean(x32 ** 2) + eps))`.

        back: the result before the weight returns to x's type (Llama), and not only to the weight's (T5).
        """
        wide = self.cast(x, FULL)
        square = self.power(wide)
        mean = self.record(rows, FULL, None, ((square.slot, square.n * FULL),))
        del square
        root = self.function(self.shift(mean), keeps_input=False, scratch=2 * rows * FULL)
        factor = wide if back else x
        saved: Any = (factor.storage, root.storage)
        h = self.record(
            x.n, FULL, saved, ((factor.slot, x.n * factor.width), (root.slot, rows * FULL)), scratch=x.n * FULL
        )
        del wide, factor, mean
        h = self.cast(h, x.width if back else weight.width)
        saved = (h.storage if weight.slot else None,)
        width = max(h.width, weight.width)
        gradients = ((h.slot, h.n * h.width), (weight.slot, weight.n * weight.width))
        return self.record(x.n, width, saved, gradients, scratch=x.n * width)

    def embedding(self, table: Parameter, rows: int, dim: int) -> Value:
        return self.record(rows * dim, table.width, None, ((table.slot, table.n * table.width),))

    # -- several results ------------------------------------------------------------------------------------------

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        """Views of one tensor; their gradients are put together again in a new one."""
        if x.slot is None:
            return [Value(x.storage, n, x.width, None) for n in sizes]
        slots = [Slot() for _ in sizes]
        self.nodes.append((slots, None, ((x.slot, x.n * x.width),), 0))
        return [Value(x.storage, n, x.width, slot) for n, slot in zip(sizes, slots, strict=True)]

    def slice(self, x: Value, n: int) -> Value:
        """A view of a part; its gradient is written into zeros of the whole."""
        return self.record(n, x.width, None, ((x.slot, x.n * x.width),), storage=x.storage)

    def join(self, *parts: Value) -> Value:
        """`torch.cat`: the gradients of the parts are views of the incoming one."""
        n, width = sum(p.n for p in parts), max(p.width for p in parts)
        return self.record(n, width, None, [(p.slot, PASS) for p in parts])

    def cross_entropy(self, logits: Value) -> Value:
        log = self.softmax(logits)
        return self.record(1, log.width, log.storage, ((log.slot, log.n * log.width),))

    def end_autocast(self) -> None:
        """Cast weights live on only where a node keeps them."""
        self.casts.clear()
        self.cast_phantoms.clear()

    # -- the way back ---------------------------------------------------------------------------------------------

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


def _sum(x: Value, width: int) -> int:
    return PASS if x.width == width else x.n * x.width
