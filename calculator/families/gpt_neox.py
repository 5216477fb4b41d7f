"""GPT-NeoX and Pythia: transformers' GPTNeoXForCausalLM."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import (
    Context,
    Tensor,
    activation,
    attention,
    linear,
    norm,
    rotate,
    task_head,
    task_loss,
)
from calculator.tape import FLOAT32, Value

LAYER = "gpt_neox.layers.{}."


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n = a.hidden, a.feed_forward, a.layers
    lm = a.head == "default"
    return [
        Tensor("gpt_neox.embed_in.weight", (a.vocabulary, d)),
        *norm(LAYER + "input_layernorm", d, repeat=n),
        *norm(LAYER + "post_attention_layernorm", d, repeat=n),
        *linear(LAYER + "attention.query_key_value", 3 * d, d, a.query_bias, n),
        *linear(LAYER + "attention.dense", d, d, a.output_bias, n),
        *linear(LAYER + "mlp.dense_h_to_4h", f, d, repeat=n),
        *linear(LAYER + "mlp.dense_4h_to_h", d, f, repeat=n),
        *norm("gpt_neox.final_layer_norm", d),
        *([] if lm else task_head(a)),
        *(linear("lm_head", a.vocabulary, d, bias=False) if lm and not a.tied else []),
    ]


def buffers(a: Architecture, width: int) -> int:
    """Bytes of the rotary frequencies."""
    return 2 * (a.rotary // 2) * FLOAT32


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and labels."""
    return 8 * b * 2 * s


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    mask = t.new(c.b * c.s * c.s) if c.eager else None
    x = c.drop(t.embedding(c.p("gpt_neox.embed_in.weight"), c.b * c.s, a.hidden))
    angles = t.new(c.s * a.rotary, x.width), t.new(c.s * a.rotary, x.width)
    x = c.layers(x, lambda x: _layer(c, x, angles, mask), a.layers)
    c.head()
    x = c.layer_norm(x, "gpt_neox.final_layer_norm", a.hidden)
    if a.head != "default":
        return task_loss(c, x)
    logits = t.linear(x, c.p("gpt_neox.embed_in.weight" if a.tied else "lm_head.weight"), a.vocabulary)
    del x
    return t.cross_entropy(t.cast(logits, FLOAT32))


def _layer(c: Context, x: Value, angles: tuple[Value, Value], mask: Value | None) -> Value:
    a, t = c.a, c.tape
    attended = c.drop(_attention(c, c.layer_norm(x, LAYER + "input_layernorm", a.hidden), angles))
    if not a.parallel:
        x = t.add(attended, x)
    h = c.layer_norm(x, LAYER + "post_attention_layernorm", a.hidden)
    h = activation(c, c.linear(h, LAYER + "mlp.dense_h_to_4h", a.feed_forward), a.activation)
    h = c.drop(c.linear(h, LAYER + "mlp.dense_4h_to_h", a.hidden))
    return t.add(t.add(h, attended), x) if a.parallel else t.add(h, x)


def _attention(c: Context, x: Value, angles: tuple[Value, Value]) -> Value:
    a, t = c.a, c.tape
    qkv = c.linear(x, LAYER + "attention.query_key_value", 3 * a.hidden, a.query_bias)
    q, k, v = t.split(qkv, (x.n,) * 3)
    del qkv
    q, k = rotate(c, q, angles, a.rotary), rotate(c, k, angles, a.rotary)
    h = attention(c, q, k, v, c.s, c.s, mask=True, softmax32=True)
    return c.linear(h, LAYER + "attention.dense", a.hidden, a.output_bias)
