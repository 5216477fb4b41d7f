"""GPT-2 and GPT-3: transformers' GPT2LMHeadModel."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, attention, linear, norm, task_head, task_loss
from calculator.tape import FLOAT32, PASS_THROUGH, Value

LAYER = "transformer.h.{}."


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n = a.hidden, a.feed_forward, a.layers
    head = [] if a.tied else linear("lm_head", a.vocabulary, d, bias=False)
    if a.head != "default":
        head = task_head(a)
    return [
        Tensor("transformer.wte.weight", (a.vocabulary, d)),
        Tensor("transformer.wpe.weight", (a.positions, d)),
        *norm(LAYER + "ln_1", d, repeat=n),
        *_conv1d(LAYER + "attn.c_attn", d, 3 * d, n),
        *_conv1d(LAYER + "attn.c_proj", d, d, n),
        *norm(LAYER + "ln_2", d, repeat=n),
        *_conv1d(LAYER + "mlp.c_fc", d, f, n),
        *_conv1d(LAYER + "mlp.c_proj", f, d, n),
        *norm("transformer.ln_f", d),
        *head,
    ]


def _conv1d(name: str, rows: int, columns: int, repeat: int) -> list[Tensor]:
    """transformers' Conv1D: a linear layer with a transposed weight."""
    return [Tensor(f"{name}.weight", (rows, columns), repeat), Tensor(f"{name}.bias", (columns,), repeat)]


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and labels."""
    return 8 * b * 2 * s


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    mask = t.new(c.b * c.s * c.s) if c.eager else None
    x = c.drop(_embed(c))
    x = c.layers(x, lambda x: _layer(c, x, mask), a.layers)
    c.head()
    x = c.layer_norm(x, "transformer.ln_f", a.hidden)
    if a.head != "default":
        return task_loss(c, x)
    head = c.p("transformer.wte.weight" if a.tied else "lm_head.weight")
    logits = t.linear(x, head, a.vocabulary)
    del x
    return t.cross_entropy(t.cast(logits, FLOAT32))


def _embed(c: Context) -> Value:
    a, t = c.a, c.tape
    tokens = t.embedding(c.p("transformer.wte.weight"), c.b * c.s, a.hidden)
    positions = t.embedding(c.p("transformer.wpe.weight"), c.s, a.hidden)
    gradients = ((tokens.slot, PASS_THROUGH), (positions.slot, positions.n * positions.width))
    return t.record(tokens.n, tokens.width, None, gradients)


def _layer(c: Context, x: Value, mask: Value | None) -> Value:
    a, t = c.a, c.tape
    residual = x
    h = c.layer_norm(x, LAYER + "ln_1", a.hidden)
    h = t.add(_attention(c, h), residual)
    residual = h
    h = c.layer_norm(h, LAYER + "ln_2", a.hidden)
    h = c.linear(h, LAYER + "mlp.c_fc", a.feed_forward)
    h = activation(c, h, a.activation)
    h = c.drop(c.linear(h, LAYER + "mlp.c_proj", a.hidden))
    return t.add(residual, h)


def _attention(c: Context, x: Value) -> Value:
    d = c.a.hidden
    q, k, v = c.tape.split(c.linear(x, LAYER + "attn.c_attn", 3 * d), (x.n,) * 3)
    h = attention(c, q, k, v, c.s, c.s, mask=True, cast_before_dropout=True)
    return c.drop(c.linear(h, LAYER + "attn.c_proj", d))
