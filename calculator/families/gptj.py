"""GPT-J: transformers' GPTJForCausalLM, with parallel attention and feed-forward, and attention scores in float32."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, linear, norm, task_head, task_loss
from calculator.tape import FLOAT32, Value

LAYER = "transformer.h.{}."


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n = a.hidden, a.feed_forward, a.layers
    return [
        Tensor("transformer.wte.weight", (a.vocabulary, d)),
        *norm(LAYER + "ln_1", d, repeat=n),
        *(x for name in ("k", "v", "q", "out") for x in linear(f"{LAYER}attn.{name}_proj", d, d, False, n)),
        *linear(LAYER + "mlp.fc_in", f, d, repeat=n),
        *linear(LAYER + "mlp.fc_out", d, f, repeat=n),
        *norm("transformer.ln_f", d),
        *(task_head(a) if a.head != "default" else _lm_head(a)),
    ]


def _lm_head(a: Architecture) -> list[Tensor]:
    weight = [] if a.tied else linear("lm_head", a.vocabulary, a.hidden, bias=False)
    return [*weight, Tensor("lm_head.bias", (a.vocabulary,))]


def buffers(a: Architecture, width: int) -> int:
    """Bytes of the rotary tables, one per layer."""
    return a.layers * a.positions * (a.rotary or a.hidden) * FLOAT32


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and labels."""
    return 8 * b * 2 * s


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    mask = t.new(c.b * c.s * c.s)
    x = c.drop(t.embedding(c.p("transformer.wte.weight"), c.b * c.s, a.hidden))
    x = c.layers(x, lambda x: _layer(c, x, mask), a.layers)
    c.head()
    x = c.layer_norm(x, "transformer.ln_f", a.hidden)
    if a.head != "default":
        return task_loss(c, x)
    head = c.p("transformer.wte.weight" if a.tied else "lm_head.weight")
    logits = t.linear(x, head, a.vocabulary, c.p("lm_head.bias"))
    del x
    return t.cross_entropy(t.cast(logits, FLOAT32))


def _layer(c: Context, x: Value, mask: Value) -> Value:
    a, t = c.a, c.tape
    residual = x
    h = c.layer_norm(x, LAYER + "ln_1", a.hidden)
    attended = _attention(c, h)
    h = activation(c, c.linear(h, LAYER + "mlp.fc_in", a.feed_forward), a.activation)
    h = c.drop(c.linear(h, LAYER + "mlp.fc_out", a.hidden))
    return t.add(t.add(attended, h), residual)


def _attention(c: Context, x: Value) -> Value:
    a, t = c.a, c.tape
    q, k, v = (c.linear(x, f"{LAYER}attn.{name}_proj", a.hidden, bias=False) for name in ("q", "k", "v"))
    angles = t.new(c.b * c.s * a.rotary, q.width)
    k, q = _rotate(c, k, angles), _rotate(c, q, angles)
    w = _weights(c, q, k, v.width)
    vs = t.copy(v) if c.b > 1 else v
    h = t.batched_matmul(w, vs, c.b * c.s * a.hidden)
    del vs
    h = t.copy(h)
    return c.drop(c.linear(h, LAYER + "attn.out_proj", a.hidden, bias=False))


def _rotate(c: Context, x: Value, angles: Value) -> Value:
    a, t = c.a, c.tape
    n = c.b * c.s * a.heads * a.rotary
    passed, turned = t.slice(x, x.n - n), t.slice(x, n)
    sin, cos = t.new(angles.n, x.width), t.new(angles.n, x.width)
    first = t.scale_by(turned, cos)
    swapped = t.join(t.scale(t.slice(turned, n // 2)), t.slice(turned, n // 2))
    turned = t.add(first, t.scale_by(swapped, sin))
    return t.join(turned, passed)


def _weights(c: Context, q: Value, k: Value, width: int) -> Value:
    t, n = c.tape, c.b * c.a.heads * c.s * c.s
    q, k = t.cast(q, FLOAT32), t.cast(k, FLOAT32)
    qs, ks = (t.copy(q), t.copy(k)) if c.b > 1 else (q, k)
    if t.half:
        w = t.batched_matmul(qs, ks, n)
    else:
        w = t.record(n, FLOAT32, (qs.storage, ks.storage), ((qs.slot, qs.n * FLOAT32), (ks.slot, ks.n * FLOAT32)))
    del qs, ks, q, k
    w = t.shift(t.scale(w), c.tape.width)
    w = t.cast(t.softmax(w), width)
    return t.dropout(w, c.attention_dropout)
