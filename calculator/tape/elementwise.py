"""Operations without parameters: what each saves, and what its backward pass allocates."""

from __future__ import annotations

from collections.abc import Sequence

from calculator.tape.graph import GraphRecorder
from calculator.tape.storage import Storage
from calculator.tape.values import PASS_THROUGH, Slot, Value


class Elementwise(GraphRecorder):
    """Sums, products, elementwise functions, softmax and dropout; views and concatenation."""

    def scale(self, x: Value) -> Value:
        """Multiply by a constant, or negate."""
        return self.record(x.n, x.width, None, ((x.slot, x.n * x.width),))

    def scale_by(self, x: Value, y: Value) -> Value:
        """Multiply by a broadcast tensor that needs no gradient; that tensor is saved."""
        width = max(x.width, y.width)
        scratch = x.n * width if x.width != width else 0
        return self.record(x.n, width, y.storage, ((x.slot, x.n * x.width),), scratch)

    def shift(self, x: Value, width: int = 0) -> Value:
        """Add a constant, or a tensor of `width` bytes per element that needs no gradient."""
        width = max(x.width, width)
        return self.record(x.n, width, None, ((x.slot, _sum(x, width)),))

    def add(self, x: Value, y: Value) -> Value:
        width = max(x.width, y.width)
        return self.record(x.n, width, None, ((x.slot, _sum(x, width)), (y.slot, _sum(y, width))))

    def multiply(self, x: Value, y: Value) -> Value:
        """Multiply elementwise. Each factor is saved if the other one needs a gradient."""
        width = max(x.width, y.width)
        saved = (x.storage if y.slot else None, y.storage if x.slot else None)
        scratch = x.n * width if x.width != y.width and (x.slot or y.slot) else 0
        return self.record(x.n, width, saved, ((x.slot, x.n * x.width), (y.slot, y.n * y.width)), scratch)

    def function(self, x: Value, *, keeps_input: bool, scratch: int = 0) -> Value:
        """An elementwise function: gelu and silu save their input; tanh, sigmoid and relu save their output."""
        out = self.record(x.n, x.width, None, ((x.slot, x.n * x.width),), scratch)
        if x.slot is not None:
            slots, _, gradients, scratch = self.nodes[-1]
            self.nodes[-1] = (slots, x.storage if keeps_input else out.storage, gradients, scratch)
        return out

    def power(self, x: Value) -> Value:
        """Raise to a constant power; the backward pass computes `grad * (e * x ** (e - 1))`."""
        x = self.to_float32(x)
        return self.function(x, keeps_input=True, scratch=x.n * x.width)

    def dropout(self, x: Value, on: bool = True) -> Value:
        """Dropout; CUDA's fused kernel saves a mask of one byte per element."""
        if not on:
            return x
        mask = Storage(self.memory, x.n)
        return self.record(x.n, x.width, mask, ((x.slot, x.n * x.width),))

    def softmax(self, x: Value) -> Value:
        return self.function(self.to_float32(x), keeps_input=False)

    def split(self, x: Value, sizes: Sequence[int]) -> list[Value]:
        """Split into views; the backward pass concatenates their gradients in a new tensor."""
        if x.slot is None:
            return [Value(x.storage, n, x.width, None) for n in sizes]
        slots = [Slot() for _ in sizes]
        self.nodes.append((slots, None, ((x.slot, x.n * x.width),), 0))
        return [Value(x.storage, n, x.width, slot) for n, slot in zip(sizes, slots, strict=True)]

    def slice(self, x: Value, n: int) -> Value:
        """A view of a part; the backward pass writes its gradient into a zero tensor of the full size."""
        return self.record(n, x.width, None, ((x.slot, x.n * x.width),), storage=x.storage)

    def join(self, *parts: Value) -> Value:
        """`torch.cat`; the gradients of the parts are views of the incoming gradient."""
        n, width = sum(p.n for p in parts), max(p.width for p in parts)
        return self.record(n, width, None, [(p.slot, PASS_THROUGH) for p in parts])

    def mean(self, x: Value) -> Value:
        """The mean over all elements."""
        return self.record(1, x.width, None, ((x.slot, x.n * x.width),))

    def cross_entropy(self, logits: Value) -> Value:
        log = self.softmax(logits)
        return self.record(1, log.width, log.storage, ((log.slot, log.n * log.width),))


def _sum(x: Value, width: int) -> int:
    return PASS_THROUGH if x.width == width else x.n * x.width
