"""Llama, Mistral, Qwen2 and Qwen3: transformers' LlamaForCausalLM and its relatives (GQA, SwiGLU, RMSNorm, rotary)."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, attention, linear
from calculator.tape import FLOAT32, Value

LAYER = "model.layers.{}."


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n, kv = a.hidden, a.feed_forward, a.layers, a.key_value
    norms = [Tensor(f"{LAYER}self_attn.{x}_norm.weight", (a.head_size,), n) for x in ("q", "k") if a.query_norm]
    return [
        Tensor("model.embed_tokens.weight", (a.vocabulary, d)),
        *linear(LAYER + "self_attn.q_proj", a.inner, d, a.query_bias, n),
        *linear(LAYER + "self_attn.k_proj", kv, d, a.query_bias, n),
        *linear(LAYER + "self_attn.v_proj", kv, d, a.query_bias, n),
        *linear(LAYER + "self_attn.o_proj", d, a.inner, a.output_bias, n),
        *norms,
        *linear(LAYER + "mlp.gate_proj", f, d, a.feed_forward_bias, n),
        *linear(LAYER + "mlp.up_proj", f, d, a.feed_forward_bias, n),
        *linear(LAYER + "mlp.down_proj", d, f, a.feed_forward_bias, n),
        Tensor(LAYER + "input_layernorm.weight", (d,), n),
        Tensor(LAYER + "post_attention_layernorm.weight", (d,), n),
        Tensor("model.norm.weight", (d,)),
        *([] if a.tied else linear("lm_head", a.vocabulary, d, bias=False)),
    ]


def buffers(a: Architecture, width: int) -> int:
    """Bytes of the rotary frequencies."""
    return 2 * (a.head_size // 2) * FLOAT32


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and labels."""
    return 8 * b * 2 * s


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    x = t.embedding(c.p("model.embed_tokens.weight"), c.b * c.s, a.hidden)
    mask = t.new(c.b * c.s * c.s) if c.eager else None
    angles = t.new(c.s * a.head_size, x.width), t.new(c.s * a.head_size, x.width)
    x = c.layers(x, lambda x: _layer(c, x, angles, mask), a.layers)
    c.head()
    x = t.rms_norm(x, c.p("model.norm.weight"), c.b * c.s, back=True)
    head = c.p("model.embed_tokens.weight" if a.tied else "lm_head.weight")
    logits = t.linear(x, head, a.vocabulary)
    del x
    return t.cross_entropy(t.cast(logits, FLOAT32))


def _layer(c: Context, x: Value, angles: tuple[Value, Value], mask: Value | None) -> Value:
    t, rows = c.tape, c.b * c.s
    residual = x
    h = t.rms_norm(x, c.p(LAYER + "input_layernorm.weight"), rows, back=True)
    h = t.add(residual, _attention(c, h, angles))
    residual = h
    h = t.rms_norm(h, c.p(LAYER + "post_attention_layernorm.weight"), rows, back=True)
    return t.add(residual, _feed(c, h))


def _feed(c: Context, x: Value) -> Value:
    a, bias = c.a, c.a.feed_forward_bias
    gate = activation(c, c.linear(x, LAYER + "mlp.gate_proj", a.feed_forward, bias), a.activation)
    h = c.tape.multiply(gate, c.linear(x, LAYER + "mlp.up_proj", a.feed_forward, bias))
    del gate
    return c.linear(h, LAYER + "mlp.down_proj", a.hidden, bias)


def _attention(c: Context, x: Value, angles: tuple[Value, Value]) -> Value:
    a, t = c.a, c.tape
    q = c.linear(x, LAYER + "self_attn.q_proj", a.inner, a.query_bias)
    k = c.linear(x, LAYER + "self_attn.k_proj", a.key_value, a.query_bias)
    v = c.linear(x, LAYER + "self_attn.v_proj", a.key_value, a.query_bias)
    if a.query_norm:
        q = t.rms_norm(q, c.p(LAYER + "self_attn.q_norm.weight"), q.n // a.head_size, back=True)
        k = t.rms_norm(k, c.p(LAYER + "self_attn.k_norm.weight"), k.n // a.head_size, back=True)
    q, k = _rotate(c, q, angles), _rotate(c, k, angles)
    groups = a.heads // a.key_value_heads
    h = attention(c, q, k, v, c.s, c.s, groups=groups, mask=True, softmax32=True)
    return c.linear(h, LAYER + "self_attn.o_proj", a.hidden, a.output_bias)


def _rotate(c: Context, x: Value, angles: tuple[Value, Value]) -> Value:
    """`x * cos + rotate_half(x) * sin`"""
    t, (cos, sin) = c.tape, angles
    first = t.scale_by(x, cos)
    half = t.join(t.scale(t.slice(x, x.n // 2)), t.slice(x, x.n // 2))
    return t.add(first, t.scale_by(half, sin))
