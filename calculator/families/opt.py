"""OPT: transformers' OPTForCausalLM, with its projected embeddings and its norms before or after each part."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, attention, linear, norm, task_head, task_loss
from calculator.tape import FLOAT32, PASS_THROUGH, Value

MODEL = "model.decoder."
LAYER = MODEL + "layers.{}."
POSITION_OFFSET = 2
"""OPT's position table has two unused rows."""


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n, e, bias = a.hidden, a.feed_forward, a.layers, a.embedding, a.query_bias
    lm = a.head == "default"
    names = [LAYER + "self_attn_layer_norm", LAYER + "final_layer_norm"] if a.norm_weights else []
    projected = [] if e == d else [Tensor(MODEL + "project_out.weight", (e, d)),
                                   Tensor(MODEL + "project_in.weight", (d, e))]  # fmt: skip
    return [
        Tensor(MODEL + "embed_tokens.weight", (a.vocabulary, e)),
        Tensor(MODEL + "embed_positions.weight", (a.positions + POSITION_OFFSET, d)),
        *projected,
        *(x for part in ("k", "v", "q", "out") for x in linear(f"{LAYER}self_attn.{part}_proj", d, d, bias, n)),
        *linear(LAYER + "fc1", f, d, bias, n),
        *linear(LAYER + "fc2", d, f, bias, n),
        *(x for name in names for x in norm(name, d, repeat=n)),
        *(norm(MODEL + "final_layer_norm", d) if a.final_norm and a.norm_weights else []),
        *([] if lm else task_head(a, e)),
        *(linear("lm_head", a.vocabulary, e, bias=False) if lm and not a.tied else []),
    ]


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and labels."""
    return 8 * b * 2 * s


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    mask = t.new(c.b * c.s * c.s) if c.eager else None
    x = t.embedding(c.p(MODEL + "embed_tokens.weight"), c.b * c.s, a.embedding)
    positions = t.embedding(c.p(MODEL + "embed_positions.weight"), c.b * c.s, a.hidden)
    if a.embedding != a.hidden:
        x = c.linear(x, MODEL + "project_in", a.hidden, bias=False)
    x = t.record(
        positions.n, max(x.width, positions.width), None, ((x.slot, PASS_THROUGH), (positions.slot, PASS_THROUGH))
    )
    del positions
    x = c.layers(x, lambda x: _layer(c, x, mask), a.layers)
    c.head()
    if a.final_norm:
        x = _norm(c, x, MODEL + "final_layer_norm")
    if a.embedding != a.hidden:
        x = c.linear(x, MODEL + "project_out", a.embedding, bias=False)
    if a.head != "default":
        return task_loss(c, x)
    logits = t.linear(x, c.p(MODEL + "embed_tokens.weight" if a.tied else "lm_head.weight"), a.vocabulary)
    del x
    return t.cross_entropy(t.cast(logits, FLOAT32))


def _norm(c: Context, x: Value, name: str) -> Value:
    if c.a.norm_weights:
        return c.layer_norm(x, name, c.a.hidden)
    x = c.tape.to_float32(x)
    return c.tape.function(x, keeps_input=True)


def _layer(c: Context, x: Value, mask: Value | None) -> Value:
    a, t, bias = c.a, c.tape, c.a.query_bias
    first, last = LAYER + "self_attn_layer_norm", LAYER + "final_layer_norm"
    h = c.drop(_attention(c, _norm(c, x, first) if a.norm_first else x))
    x = t.add(x, h)
    if not a.norm_first:
        x = _norm(c, x, first)
    h = _norm(c, x, last) if a.norm_first else x
    h = activation(c, c.linear(h, LAYER + "fc1", a.feed_forward, bias), a.activation)
    x = t.add(x, c.drop(c.linear(h, LAYER + "fc2", a.hidden, bias)))
    return x if a.norm_first else _norm(c, x, last)


def _attention(c: Context, x: Value) -> Value:
    d, bias, t = c.a.hidden, c.a.query_bias, c.tape
    q = t.scale(c.linear(x, LAYER + "self_attn.q_proj", d, bias))
    k, v = (c.linear(x, f"{LAYER}self_attn.{name}_proj", d, bias) for name in "kv")
    h = attention(c, q, k, v, c.s, c.s, mask=True, softmax32=True)
    return c.linear(h, LAYER + "self_attn.out_proj", d, bias)
