"""The complete tape: elementwise operations, and those that have parameters."""

from __future__ import annotations

from calculator.tape.elementwise import Elementwise
from calculator.tape.storage import Storage
from calculator.tape.values import FLOAT32, Gradient, Parameter, Slot, Value


class Tape(Elementwise):
    """Linear layers, norms, embeddings and matrix products, with or without autocast."""

    def weight(self, parameter: Parameter) -> tuple[Slot | None, Storage | None]:
        """Return a weight's slot, and the storage of its autocast copy (cached until autocast ends)."""
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
        """x [rows, in] -> [rows, out]. 4-bit weights are dequantised temporarily; an adapter adds its two products."""
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
        if down.n * out != up.n * (weight.n // out):  # the weight is transposed, as in GPT-2's Conv1D
            down, up = up, down
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
        """RMSNorm as T5 and Llama compute it: `weight * (x32 * rsqrt(mean(x32 ** 2) + eps))`.

        back: the normalised value is converted to x's dtype (Llama) instead of the weight's dtype (T5).
        """
        h = self._normalised(x, rows, back=back)
        h = self.cast(h, x.width if back else weight.width)
        saved = h.storage if weight.slot else None
        width = max(h.width, weight.width)
        gradients = ((h.slot, h.n * h.width), (weight.slot, weight.n * weight.width))
        return self.record(x.n, width, saved, gradients, scratch=x.n * width)

    def gemma_norm(self, x: Value, weight: Parameter, rows: int) -> Value:
        """RMSNorm as Gemma computes it: `(normalised * (1 + weight)).to(x.dtype)`, in float32 until the end."""
        h = self._normalised(x, rows, back=True)
        saved = h.storage if weight.slot else None
        gradients = ((h.slot, h.n * FLOAT32), (weight.slot, weight.n * FLOAT32))
        h = self.record(x.n, FLOAT32, saved, gradients, scratch=x.n * FLOAT32)
        return self.cast(h, x.width)

    def _normalised(self, x: Value, rows: int, *, back: bool) -> Value:
        """`x32 * rsqrt(mean(x32 ** 2) + eps)` in float32; without `back`, the factor is x in its own dtype."""
        wide = self.cast(x, FLOAT32)
        square = self.power(wide)
        mean = self.record(rows, FLOAT32, None, ((square.slot, square.n * FLOAT32),))
        del square
        root = self.function(self.shift(mean), keeps_input=False, scratch=2 * rows * FLOAT32)
        factor = wide if back else x
        gradients = ((factor.slot, x.n * factor.width), (root.slot, rows * FLOAT32))
        return self.record(x.n, FLOAT32, (factor.storage, root.storage), gradients, scratch=x.n * FLOAT32)

    def embedding(self, table: Parameter, rows: int, dim: int) -> Value:
        return self.record(rows * dim, table.width, None, ((table.slot, table.n * table.width),))
