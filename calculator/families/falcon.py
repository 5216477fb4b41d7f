"""Falcon: transformers' FalconForCausalLM, in the old and the new decoder architecture, with rotary positions."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import (
    Context,
    Tensor,
    activation,
    attention,
    linear,
    norm,
    repeat_heads,
    rotate,
    task_head,
    task_loss,
)
from calculator.tape import FLOAT32, Value

LAYER = "transformer.h.{}."


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n, bias = a.hidden, a.feed_forward, a.layers, a.query_bias
    lm = a.head == "default"
    return [
        Tensor("transformer.word_embeddings.weight", (a.vocabulary, d)),
        *linear(LAYER + "self_attention.query_key_value", d + 2 * a.key_value, d, bias, n),
        *linear(LAYER + "self_attention.dense", d, d, bias, n),
        *linear(LAYER + "mlp.dense_h_to_4h", f, d, bias, n),
        *linear(LAYER + "mlp.dense_4h_to_h", d, f, bias, n),
        *(x for name in _norms(a) for x in norm(LAYER + name, d, repeat=n)),
        *norm("transformer.ln_f", d),
        *([] if lm else task_head(a)),
        *(linear("lm_head", a.vocabulary, d, bias=False) if lm and not a.tied else []),
    ]


def _norms(a: Architecture) -> tuple[str, ...]:
    if not a.parallel:
        return "input_layernorm", "post_attention_layernorm"
    return ("ln_attn", "ln_mlp") if a.norms == 2 else ("input_layernorm",)


def buffers(a: Architecture, width: int) -> int:
    """Bytes of the rotary frequencies."""
    return 2 * (a.head_size // 2) * FLOAT32


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and labels."""
    return 8 * b * 2 * s


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    mask = t.new(c.b * c.s * c.s) if c.eager else None
    x = t.embedding(c.p("transformer.word_embeddings.weight"), c.b * c.s, a.hidden)
    angles = t.new(c.s * a.head_size, x.width), t.new(c.s * a.head_size, x.width)
    x = c.layers(x, lambda x: _layer(c, x, angles, mask), a.layers)
    c.head()
    x = c.layer_norm(x, "transformer.ln_f", a.hidden)
    if a.head != "default":
        return task_loss(c, x)
    logits = t.linear(x, c.p("transformer.word_embeddings.weight" if a.tied else "lm_head.weight"), a.vocabulary)
    del x
    return t.cross_entropy(t.cast(logits, FLOAT32))


def _layer(c: Context, x: Value, angles: tuple[Value, Value], mask: Value | None) -> Value:
    a, t, names = c.a, c.tape, _norms(c.a)
    h = c.layer_norm(x, LAYER + names[0], a.hidden)
    feed = h
    if a.parallel and a.norms == 2:
        feed = c.layer_norm(x, LAYER + names[1], a.hidden)
    attended = _attention(c, h, angles)
    del h
    if not a.parallel:
        x = t.add(x, c.drop(attended))
        feed = c.layer_norm(x, LAYER + names[1], a.hidden)
    feed = activation(c, c.linear(feed, LAYER + "mlp.dense_h_to_4h", a.feed_forward, a.query_bias), a.activation)
    feed = c.linear(feed, LAYER + "mlp.dense_4h_to_h", a.hidden, a.query_bias)
    if a.parallel:
        feed = t.add(feed, attended)
    return t.add(x, c.drop(feed))


def _attention(c: Context, x: Value, angles: tuple[Value, Value]) -> Value:
    a, t = c.a, c.tape
    keys = x.n // a.hidden * a.key_value
    qkv = c.linear(x, LAYER + "self_attention.query_key_value", a.hidden + 2 * a.key_value, a.query_bias)
    q, k, v = t.split(qkv, (x.n, keys, keys))
    del qkv
    groups = a.heads // a.key_value_heads
    if a.broadcast_keys:
        q, k, v, groups = t.copy(q), repeat_heads(c, k, groups), repeat_heads(c, v, groups), 1
    q, k = rotate(c, q, angles), rotate(c, k, angles)
    if groups > 1 and not c.eager:
        # One key head for all query heads: the kernels need a full copy.
        k, v, groups = repeat_heads(c, k, groups), repeat_heads(c, v, groups), 1
    h = attention(c, q, k, v, c.s, c.s, groups=groups, mask=True)
    return c.linear(h, LAYER + "self_attention.dense", a.hidden, a.query_bias)
