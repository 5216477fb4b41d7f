"""Llama and its relatives: Mistral, Mixtral, Qwen2, Qwen3, Gemma 1 to 3 and Phi-3 (GQA, SwiGLU, RMSNorm, rotary)."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import (
    Context,
    Tensor,
    activation,
    attention,
    linear,
    rotate,
    task_head,
    task_loss,
)
from calculator.tape import FLOAT32, Value

LAYER = "model.layers.{}."
GEMMA = ("gemma", "gemma2", "gemma3")
NORMS_AFTER = ("gemma2", "gemma3")
"""Variants with a norm before and after attention, and before and after the feed-forward."""


def tensors(a: Architecture) -> list[Tensor]:
    d, n = a.hidden, a.layers
    lm = a.head == "default"
    names = ["input_layernorm", "post_attention_layernorm"]
    if a.variant in NORMS_AFTER:
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    return [
        Tensor("model.embed_tokens.weight", (a.vocabulary, d)),
        *_attention_tensors(a),
        *_feed_tensors(a),
        *(Tensor(f"{LAYER}{name}.weight", (d,), n) for name in names),
        Tensor("model.norm.weight", (d,)),
        *([] if lm else task_head(a)),
        *(linear("lm_head", a.vocabulary, d, bias=False) if lm and not a.tied else []),
    ]


def _attention_tensors(a: Architecture) -> list[Tensor]:
    d, n, kv, prefix = a.hidden, a.layers, a.key_value, LAYER + "self_attn."
    norms = [Tensor(f"{prefix}{x}_norm.weight", (a.head_size,), n) for x in ("q", "k") if a.query_norm]
    if a.variant == "phi3":
        return [
            *linear(prefix + "o_proj", d, a.inner, False, n),
            *linear(prefix + "qkv_proj", a.inner + 2 * kv, d, False, n),
        ]
    return [
        *linear(prefix + "q_proj", a.inner, d, a.query_bias, n),
        *linear(prefix + "k_proj", kv, d, a.query_bias, n),
        *linear(prefix + "v_proj", kv, d, a.query_bias, n),
        *linear(prefix + "o_proj", d, a.inner, a.output_bias, n),
        *norms,
    ]


def _feed_tensors(a: Architecture) -> list[Tensor]:
    d, f, n, bias, prefix = a.hidden, a.feed_forward, a.layers, a.feed_forward_bias, LAYER + "mlp."
    if a.variant == "phi3":
        return [*linear(prefix + "gate_up_proj", 2 * f, d, False, n), *linear(prefix + "down_proj", d, f, False, n)]
    if a.variant == "mixtral":
        return [
            Tensor(prefix + "gate.weight", (a.experts, d), n),
            Tensor(prefix + "experts.gate_up_proj", (a.experts, 2 * f, d), n),
            Tensor(prefix + "experts.down_proj", (a.experts, d, f), n),
        ]
    return [
        *linear(prefix + "gate_proj", f, d, bias, n),
        *linear(prefix + "up_proj", f, d, bias, n),
        *linear(prefix + "down_proj", d, f, bias, n),
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
    if a.variant in GEMMA:
        x = t.scale(x)
    mask = t.new(c.b * c.s * c.s) if c.eager else None
    angles = t.new(c.s * a.head_size, x.width), t.new(c.s * a.head_size, x.width)
    x = c.layers(x, lambda x: _layer(c, x, angles, mask), a.layers)
    c.head()
    x = _norm(c, x, "model.norm")
    if a.head != "default":
        return task_loss(c, x)
    head = c.p("model.embed_tokens.weight" if a.tied else "lm_head.weight")
    logits = t.linear(x, head, a.vocabulary)
    del x
    if a.logit_softcap:
        logits = t.scale(t.function(t.scale(logits), keeps_input=False))
    return t.cross_entropy(t.cast(logits, FLOAT32))


def _norm(c: Context, x: Value, name: str, channels: int = 0) -> Value:
    weight, rows = c.p(name + ".weight"), x.n // (channels or c.a.hidden)
    if c.a.variant in GEMMA:
        return c.tape.gemma_norm(x, weight, rows)
    return c.tape.rms_norm(x, weight, rows, back=True)


def _layer(c: Context, x: Value, angles: tuple[Value, Value], mask: Value | None) -> Value:
    a, t = c.a, c.tape
    after = a.variant in NORMS_AFTER
    residual = x
    h = _attention(c, _norm(c, x, LAYER + "input_layernorm"), angles)
    if after:
        h = _norm(c, h, LAYER + "post_attention_layernorm")
    h = t.add(residual, c.drop(h))
    residual = h
    h = _norm(c, h, LAYER + ("pre_feedforward_layernorm" if after else "post_attention_layernorm"))
    h = _experts(c, h) if a.variant == "mixtral" else _feed(c, h)
    if after:
        h = _norm(c, h, LAYER + "post_feedforward_layernorm")
    return t.add(residual, c.drop(h))


def _feed(c: Context, x: Value) -> Value:
    a, t, bias = c.a, c.tape, c.a.feed_forward_bias
    n = x.n // a.hidden * a.feed_forward
    if a.variant == "phi3":
        gate, up = t.split(c.linear(x, LAYER + "mlp.gate_up_proj", 2 * a.feed_forward, bias=False), (n, n))
        h = t.multiply(up, activation(c, gate, a.activation))
        del gate, up
        return c.linear(h, LAYER + "mlp.down_proj", a.hidden, bias=False)
    gate = activation(c, c.linear(x, LAYER + "mlp.gate_proj", a.feed_forward, bias), a.activation)
    h = t.multiply(gate, c.linear(x, LAYER + "mlp.up_proj", a.feed_forward, bias))
    del gate
    return c.linear(h, LAYER + "mlp.down_proj", a.hidden, bias)


def _experts(c: Context, x: Value) -> Value:
    """Mixture of experts with grouped matrix products: every token is copied to each of its experts."""
    a, t = c.a, c.tape
    routed = x.n * a.experts_per_token
    rows = routed // a.hidden
    scores = t.softmax(t.cast(t.linear(x, c.p(LAYER + "mlp.gate.weight"), a.experts), FLOAT32))
    weights = t.record(rows, FLOAT32, None, ((scores.slot, scores.n * FLOAT32),))
    del scores
    h = t.record(routed, x.width, None, ((x.slot, x.n * x.width),))
    h = _grouped(c, h, LAYER + "mlp.experts.gate_up_proj", rows * 2 * a.feed_forward)
    gate, up = t.split(h, (h.n // 2,) * 2)
    del h
    h = t.multiply(activation(c, gate, a.activation), up)
    del gate, up
    h = _grouped(c, h, LAYER + "mlp.experts.down_proj", routed)
    h = t.multiply(h, t.record(h.n, h.width, None, ((weights.slot, rows * FLOAT32),), storage=weights.storage))
    return t.record(x.n, x.width, None, ((h.slot, h.n * h.width),))


def _grouped(c: Context, x: Value, name: str, n: int) -> Value:
    t, weight = c.tape, c.p(name)
    width = t.half or weight.width
    x = t.cast(x, width)
    slot, cast = t.weight(weight)
    gradients = ((x.slot, x.n * width), (slot, weight.n * width))
    return t.record(n, width, (x.storage if slot else None, cast), gradients)


def _attention(c: Context, x: Value, angles: tuple[Value, Value]) -> Value:
    a, t, prefix = c.a, c.tape, LAYER + "self_attn."
    rows = x.n // a.hidden
    if a.variant == "phi3":
        qkv = c.linear(x, prefix + "qkv_proj", a.inner + 2 * a.key_value, bias=False)
        q, k, v = (t.slice(qkv, rows * n) for n in (a.inner, a.key_value, a.key_value))
        del qkv
    else:
        q = c.linear(x, prefix + "q_proj", a.inner, a.query_bias)
        k = c.linear(x, prefix + "k_proj", a.key_value, a.query_bias)
        v = c.linear(x, prefix + "v_proj", a.key_value, a.query_bias)
    if a.query_norm:
        q, k = _norm(c, q, prefix + "q_norm", a.head_size), _norm(c, k, prefix + "k_norm", a.head_size)
    q, k = rotate(c, q, angles), rotate(c, k, angles)
    groups = a.heads // a.key_value_heads
    h = attention(c, q, k, v, c.s, c.s, groups=groups, mask=True, softmax32=True, softcap=a.attention_softcap)
    return c.linear(h, prefix + "o_proj", a.hidden, a.output_bias)
