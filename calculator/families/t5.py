"""T5, mT5 and UMT5: transformers' T5ForConditionalGeneration (1.0: relu, tied; 1.1: gated gelu, untied)."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, attention, linear
from calculator.tape import FLOAT32, Value

BUCKETS = 32


def tensors(a: Architecture) -> list[Tensor]:
    head = [] if a.tied or a.head == "none" else linear("lm_head", a.vocabulary, a.hidden, bias=False)
    decoder = _stack(a, "decoder") if a.decoder_layers else []
    return [Tensor("shared.weight", (a.vocabulary, a.hidden)), *_stack(a, "encoder"), *decoder, *head]


def _stack(a: Architecture, stack: str) -> list[Tensor]:
    d, f, decoder = a.hidden, a.feed_forward, stack == "decoder"
    n = a.decoder_layers if decoder else a.layers
    names = ["SelfAttention", "EncDecAttention"] if decoder else ["SelfAttention"]
    block, result = f"{stack}.block.{{}}.layer.", []
    for i, name in enumerate(names):
        for part in ("q", "k", "v"):
            result += linear(f"{block}{i}.{name}.{part}", a.inner, d, False, n)
        result += linear(f"{block}{i}.{name}.o", d, a.inner, False, n)
        result.append(Tensor(f"{block}{i}.layer_norm.weight", (d,), n))
    last = f"{block}{len(names)}."
    for name in ("wi_0", "wi_1") if a.gated else ("wi",):
        result += linear(f"{last}DenseReluDense.{name}", f, d, False, n)
    result += linear(f"{last}DenseReluDense.wo", d, f, False, n)
    return [
        *result,
        Tensor(f"{last}layer_norm.weight", (d,), n),
        _bias_table(a, stack, n),
        Tensor(f"{stack}.final_layer_norm.weight", (d,)),
    ]


def _bias_table(a: Architecture, stack: str, layers: int) -> Tensor:
    """The position bias of the first layer, shared by the others; in UMT5, every layer has its own."""
    layer = "{}" if a.variant == "umt5" else "0"
    name = f"{stack}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
    return Tensor(name, (BUCKETS, a.heads), layers if a.variant == "umt5" else 1, is_lookup=True)


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens of the encoder, labels of the decoder."""
    return 8 * b * (s + t)


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    encoded = _run(c, "encoder", None)
    if not a.decoder_layers:
        c.head()
        return t.mean(encoded)
    x = _run(c, "decoder", encoded)
    del encoded
    c.head()
    if a.head == "none":
        return t.mean(x)
    if a.tied:
        x = t.scale(x)
    head = c.p("shared.weight" if a.tied else "lm_head.weight")
    logits = t.linear(x, head, a.vocabulary)
    del x
    return t.cross_entropy(logits)


def _run(c: Context, stack: str, encoded: Value | None) -> Value:
    a, t = c.a, c.tape
    decoder = encoded is not None
    s, n = (c.t, a.decoder_layers) if decoder else (c.s, a.layers)
    x = c.drop(t.embedding(c.p("shared.weight"), c.b * s, a.hidden))
    each = a.variant == "umt5"
    shared = None if each else _bias(c, stack, s)
    mask = t.new(c.b * s * s) if decoder and c.eager else None
    zeros = t.new(a.heads * s * c.s, t.half or t.width) if decoder else None

    def layer(x: Value) -> Value:
        _ = mask
        block = f"{stack}.block.{{}}.layer."
        bias = shared or _bias(c, stack, s)
        x = _attend(c, x, x, f"{block}0.", "SelfAttention", s, s, bias, decoder)
        if encoded is not None:
            x = _attend(c, x, encoded, f"{block}1.", "EncDecAttention", s, c.s, zeros, False)
        return _feed(c, x, f"{block}{2 if decoder else 1}.")

    x = c.layers(x, layer, n)
    return c.drop(_norm(c, x, f"{stack}.final_layer_norm.weight"))


def _bias(c: Context, stack: str, s: int) -> Value:
    """The learned position bias [heads, s, s], shared by the layers except in UMT5."""
    layer = "{}" if c.a.variant == "umt5" else "0"
    table = c.p(f"{stack}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight")
    buckets = c.tape.new(s * s, 8)
    gradients = ((table.slot, table.n * table.width),)
    return c.tape.record(s * s * c.a.heads, table.width, buckets.storage, gradients)


def _norm(c: Context, x: Value, name: str) -> Value:
    return c.tape.rms_norm(x, c.p(name), x.n // c.a.hidden, back=False)


def _attend(
    c: Context, x: Value, other: Value, block: str, name: str, s: int, s_other: int, bias: Value | None, causal: bool
) -> Value:
    a, t = c.a, c.tape
    h = _norm(c, x, block + "layer_norm.weight")
    source = other if other is not x else h
    q = c.linear(h, f"{block}{name}.q", a.inner, bias=False)
    k, v = (c.linear(source, f"{block}{name}.{part}", a.inner, bias=False) for part in ("k", "v"))
    h = attention(c, q, k, v, s, s_other, bias=bias, mask=causal, scaled=True)
    del q, k, v
    h = c.linear(h, f"{block}{name}.o", a.hidden, bias=False)
    return _clamp(c, t.add(x, c.drop(h)))


def _feed(c: Context, x: Value, block: str) -> Value:
    a, t = c.a, c.tape
    dense = block + "DenseReluDense."
    h = _norm(c, x, block + "layer_norm.weight")
    if a.gated:
        gate = activation(c, c.linear(h, dense + "wi_0", a.feed_forward, bias=False), a.activation)
        h = t.multiply(gate, c.linear(h, dense + "wi_1", a.feed_forward, bias=False))
    else:
        h = activation(c, c.linear(h, dense + "wi", a.feed_forward, bias=False), a.activation)
    h = c.drop(h)
    if h.width != t.width:
        h = t.cast(h, t.width)
    h = c.linear(h, dense + "wo", a.hidden, bias=False)
    return _clamp(c, t.add(x, c.drop(h)))


def _clamp(c: Context, x: Value) -> Value:
    """16-bit activations are clamped against infinities, which saves the input."""
    return c.tape.function(x, keeps_input=True) if x.width < FLOAT32 and c.tape.width < FLOAT32 else x
