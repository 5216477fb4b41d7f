"""Parts that the families share: the tensor type, the context of a forward pass, attention and activations."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from calculator.architectures import Architecture
from calculator.layers import LayerFunction, run_layers
from calculator.tape import FLOAT32, Parameter, Slot, Storage, Tape, Value

HEAD = "head"
"""Name of a classifier's output layer; transformers calls it score, classifier or qa_outputs, by model."""


@dataclass(frozen=True)
class Tensor:
    """A parameter, or `repeat` identical ones, one per layer; `{}` in the name stands for the layer's number.

    shared: layers that share weights also share this one.
    """

    name: str
    shape: tuple[int, ...]
    repeat: int = 1
    shared: bool = True
    is_lookup: bool = False
    """A table that is indexed, not multiplied with."""

    @property
    def n(self) -> int:
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """True for the matrices of the layers: LoRA adapts them, and QLoRA quantises them."""
        return len(self.shape) == 2 and self.repeat > 1 and not self.is_lookup


def linear(name: str, rows: int, columns: int, bias: bool = True, repeat: int = 1) -> list[Tensor]:
    weight = Tensor(f"{name}.weight", (rows, columns), repeat)
    return [weight, Tensor(f"{name}.bias", (rows,), repeat)] if bias else [weight]


def norm(name: str, size: int, bias: bool = True, repeat: int = 1, shared: bool = True) -> list[Tensor]:
    weight = Tensor(f"{name}.weight", (size,), repeat, shared)
    return [weight, Tensor(f"{name}.bias", (size,), repeat, shared)] if bias else [weight]


@dataclass
class Context:
    """Arguments of a family's forward pass. b: batch; s: sequence length; t: sequence length of the decoder."""

    tape: Tape
    parameters: dict[str, Parameter]
    a: Architecture
    b: int
    s: int
    t: int
    eager: bool
    dropout: bool
    attention_dropout: bool
    groups: int | None
    every: int | None
    reversible: bool
    kept_after_layers: int = 0
    """Live bytes when the head starts; separates activations from logits in the breakdown."""

    def p(self, name: str) -> Parameter:
        return self.parameters[name]

    def linear(self, x: Value, name: str, out: int, bias: bool = True) -> Value:
        p = self.parameters
        return self.tape.linear(x, p[name + ".weight"], out, p[name + ".bias"] if bias else None)

    def layer_norm(self, x: Value, name: str, size: int) -> Value:
        p = self.parameters
        return self.tape.layer_norm(x, p[name + ".weight"], p[name + ".bias"], x.n // size)

    def drop(self, x: Value) -> Value:
        return self.tape.dropout(x, self.dropout)

    def layers(self, x: Value, layer: LayerFunction, count: int) -> Value:
        groups = None if self.groups is None else min(self.groups, count)
        if x.slot is None:  # frozen embeddings: treat all layers like the first one that has a gradient
            x = Value(x.storage, x.n, x.width, Slot())
        return run_layers(self.tape, x, layer, count, groups=groups, every=self.every)

    def head(self) -> None:
        """Mark the end of the layers and the start of the head."""
        self.kept_after_layers = self.tape.memory.live
        self.tape.layers_end = len(self.tape.nodes)


def task_head(a: Architecture, channels: int = 0) -> list[Tensor]:
    """The linear output layer of a classifier; for a label per sequence, it has no bias (as in transformers)."""
    if a.head == "none":
        return []
    return linear(HEAD, a.outputs, channels or a.hidden, bias=a.head != "sequence")


def task_loss(c: Context, x: Value, *, sequences_only: bool = False) -> Value:
    """Loss of a model without its default head, from the last hidden state x [b, s, hidden].

    sequences_only: x [b, hidden] is already one vector per sequence.
    """
    a, t = c.a, c.tape
    if a.head == "none":
        return t.mean(x)
    if a.head == "tokens":
        x = c.drop(x)
    logits = c.linear(x, HEAD, a.outputs, bias=HEAD + ".bias" in c.parameters)
    if a.head == "sequence" and not sequences_only:
        logits = t.slice(logits, c.b * a.outputs)
    return t.cross_entropy(logits)


def attention(
    c: Context,
    q: Value,
    k: Value,
    v: Value,
    rows: int,
    columns: int,
    *,
    groups: int = 1,
    mask: bool = False,
    bias: Value | None = None,
    scaled: bool = True,
    softmax32: bool = False,
    cast_before_dropout: bool = False,
    contiguous: bool = False,
    softcap: bool = False,
) -> Value:
    """Queries and keys as views [b, h, rows or columns, d] of [b, s, h, d] -> [b, rows, inner].

    groups: query heads per key head; bias: learned [1, h, rows, columns]; softmax32: `softmax(dtype=float32)`, then
    converted back; contiguous: q and k are not views (they come from `cat`); softcap: scores are limited with tanh.
    """
    if not c.eager:
        return _fused(c, q, k, v, rows, bias and _additive(c, bias))
    t = c.tape
    n = c.b * c.a.heads * rows * columns
    w = _scores(c, q, k, n, groups, scaled, contiguous)
    if softcap:
        w = t.scale(t.function(t.scale(w), keeps_input=False))
    if bias is not None:
        width = max(w.width, bias.width)
        w = t.record(
            n, width, None, ((w.slot, -1 if w.width == width else n * w.width), (bias.slot, bias.n * bias.width))
        )
    if mask:
        w = t.shift(w, t.width)
    w = t.softmax(t.cast(w, FLOAT32) if softmax32 else w)
    if softmax32 or cast_before_dropout:
        w = t.cast(w, v.width)
    w = t.dropout(w, c.attention_dropout)
    vs = repeat_heads(c, v, groups) if groups > 1 else t.copy(v) if c.b > 1 else v
    out = t.batched_matmul(w, vs, c.b * rows * c.a.inner)
    del vs, w
    return t.copy(out)


def _scores(c: Context, q: Value, k: Value, n: int, groups: int, scaled: bool, contiguous: bool) -> Value:
    t = c.tape
    k = repeat_heads(c, k, groups) if groups > 1 else k
    copies = c.b > 1
    ks = t.copy(k) if copies and groups == 1 else k
    qs = t.copy(q) if copies else q
    w = t.batched_matmul(qs, ks, n)
    del qs, ks, k
    return t.scale(w) if scaled else w


def repeat_heads(c: Context, x: Value, groups: int) -> Value:
    """Repeat keys or values for every query head; the backward pass sums the gradients of a group."""
    return c.tape.record(x.n * groups, x.width, None, ((x.slot, x.n * x.width),))


def rotate(c: Context, x: Value, angles: tuple[Value, Value], channels: int = 0) -> Value:
    """Rotary positions: `x * cos + rotate_half(x) * sin`, on the first `channels` of each head (0: all)."""
    t, (cos, sin) = c.tape, angles
    rest = None
    if channels and channels < c.a.head_size:
        n = x.n // c.a.head_size * channels
        x, rest = t.slice(x, n), t.slice(x, x.n - n)
    first = t.scale_by(x, cos)
    half = t.join(t.scale(t.slice(x, x.n // 2)), t.slice(x, x.n // 2))
    x = t.add(first, t.scale_by(half, sin))
    del first, half
    return x if rest is None else t.join(x, rest)


def _additive(c: Context, bias: Value) -> Value:
    """Add the mask to the bias: one new tensor per layer."""
    t = c.tape
    x = t.record(bias.n, bias.width, None, ((bias.slot, bias.n * bias.width),))
    return t.cast(x, t.half or x.width)


def _fused(c: Context, q: Value, k: Value, v: Value, rows: int, bias: Value | None = None) -> Value:
    """Flash (16-bit) and memory-efficient attention save their inputs, the output and one number per row."""
    t = c.tape
    width = t.half or q.width
    q, k, v = t.cast(q, width), t.cast(k, width), t.cast(v, width)
    padded = rows if width < FLOAT32 and bias is None else -(-rows // 32) * 32
    out = t.new(c.b * rows * c.a.inner, width)
    row_sums = Storage(t.memory, FLOAT32 * c.b * c.a.heads * padded)
    saved = [q.storage, k.storage, v.storage, out.storage, row_sums]
    gradients = [(x.slot, x.n * width) for x in (q, k, v)]
    scratch = 0
    if bias is not None:
        saved.append(bias.storage)
        gradients.append((bias.slot, bias.n * width))
        scratch = bias.n * width * c.b if c.b > 1 and bias.slot else 0
    return t.record(out.n, width, saved, gradients, scratch, storage=out.storage)


def activation(c: Context, x: Value, name: str) -> Value:
    """An activation function; transformers computes some of them from elementary operations."""
    t = c.tape
    if name == "gelu_fast":  # 0.5 * x * (1 + tanh(x * 0.8 * (1 + 0.04 * x * x)))
        inner = t.shift(t.multiply(t.scale(x), x))
        return t.multiply(t.scale(x), t.shift(t.function(t.multiply(t.scale(x), inner), keeps_input=False)))
    if name == "gelu_python":  # x * 0.5 * (1 + erf(x / sqrt(2)))
        return t.multiply(t.scale(x), t.shift(t.function(t.scale(x), keeps_input=True)))
    if name == "gelu_new":
        h, u = t.scale(x), t.scale(t.power(x))
        u = t.scale(t.add(x, u))
        u = t.function(u, keeps_input=False)
        return t.multiply(h, t.shift(u))
    if name == "quick_gelu":
        return t.multiply(x, t.function(t.scale(x), keeps_input=False))
    return t.function(x, keeps_input=name not in ("relu", "tanh"))
