"""The transformer of "Training Transformers Together" (Borzunov et al. 2022), operation by operation as `ttt` runs it.

Row, column and convolutional attention read the text and one line of codes (the last layer: five lines), so the
scores are [b, h, codes, text + lines * width]. Layers can share attention and feed-forward, but not norms and
LayerScale.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, linear, norm
from calculator.layers import LayerFunction, run_layers, run_reversible
from calculator.tape import FLOAT32, PASS_THROUGH, Parameter, Storage, Value

LAYER = "transformer.layers.{}."
CONV_LINES = 5


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n = a.hidden, a.feed_forward, a.layers
    attention, feed = "transformer.attentions.{}.", "transformer.feed_forwards.{}."
    return [
        *linear(attention + "to_qkv", 3 * a.inner, d, False, n),
        *linear(attention + "to_out", d, a.inner, True, n),
        *linear(feed + "up", 2 * f, d, True, n),
        *linear(feed + "down", d, f, True, n),
        Tensor(LAYER + "attention_scale", (d,), n, shared=False),
        Tensor(LAYER + "feed_forward_scale", (d,), n, shared=False),
        *norm(LAYER + "attention_norm", d, repeat=n, shared=False),
        *norm(LAYER + "feed_forward_norm", d, repeat=n, shared=False),
        *norm("norm", d),
        *linear("to_logits", a.vocabulary, d),
    ]


def buffers(a: Architecture, width: int) -> int:
    """Bytes of the rotary angles of all positions."""
    return (a.positions + 1) * a.rotary * FLOAT32


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: text tokens and image codes."""
    return 8 * b * s


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    table = c.p("to_logits.weight")
    x = t.embedding(table, c.b * c.s, a.hidden)
    others = (lambda x: _attend(c, x, 1), lambda x: _feed(c, x))
    last_parameters = {name: Parameter(p.n, p.width) for name, p in c.parameters.items()}
    c.parameters.update(
        {f"last {name}": p for name, p in last_parameters.items()}
    )  # keep their gradients alive after this function
    end = replace(c, parameters=last_parameters)
    last = (lambda x: _attend(end, x, CONV_LINES), lambda x: _feed(end, x))
    count, groups = a.layers - 1, max(1, (c.groups or a.layers) - 1)
    blocks = [(*others, count, min(groups, count)), (*last, 1, 1)]
    if c.reversible:
        x = run_reversible(t, x, [block for block in blocks if block[2]])
    else:
        if count:
            x = run_layers(t, x, lambda x: _plain(c, x, others), count, groups=min(groups, count), every=c.every)
        x = run_layers(t, x, lambda x: _plain(c, x, last), 1, every=c.every and 1)
        x = t.scale(t.add(x, x))
    c.head()
    return _losses(c, x, table)


def _plain(c: Context, x: Value, branches: tuple[LayerFunction, LayerFunction]) -> Value:
    attend, feed = branches
    x = c.tape.add(x, attend(x))
    return c.tape.add(x, feed(x))


def _losses(c: Context, x: Value, table: Parameter) -> Value:
    """Text predicts text and codes predict codes: two slices of the output layer, each with a full-size gradient."""
    a, t = c.a, c.tape
    texts = c.b * a.text_positions
    logits = []
    for rows, size in ((texts, a.vocabulary - a.image_vocabulary), (c.b * c.s - texts, a.image_vocabulary)):
        part = t.slice(x, rows * a.hidden)
        part = c.layer_norm(t.copy(part) if c.b > 1 else part, "norm", a.hidden)
        weight = Parameter(size * a.hidden, table.width)
        whole = t.record(weight.n, table.width, None, ((table.slot, table.n * table.width),), storage=x.storage)
        weight.slot = whole.slot
        logits.append(t.linear(part, weight, size))
    losses = [t.cross_entropy(t.cast(x, FLOAT32)) for x in logits]
    return t.add(*losses)


def _shift(c: Context, x: Value) -> Value:
    """Token shift: parts of x are shifted and concatenated."""
    width = x.n * x.width
    moved = Storage(c.tape.memory, width // 2)
    x = c.tape.record(x.n, x.width, None, ((x.slot, width),), scratch=width)
    del moved
    return x


def _scaled(c: Context, x: Value, name: str) -> Value:
    scale, t = c.p(LAYER + name), c.tape
    width = max(x.width, scale.width)
    gradients = ((x.slot, x.n * x.width), (scale.slot, scale.n * scale.width))
    return t.record(x.n, width, x.storage, gradients, scratch=x.n * width)


def _feed(c: Context, x: Value) -> Value:
    a, t = c.a, c.tape
    h = _shift(c, c.layer_norm(x, LAYER + "feed_forward_norm", a.hidden))
    h = c.linear(h, "transformer.feed_forwards.{}.up", 2 * a.feed_forward)
    value, gate = t.slice(h, h.n // 2), t.slice(h, h.n // 2)
    h = c.linear(t.multiply(value, t.function(gate, keeps_input=True)), "transformer.feed_forwards.{}.down", a.hidden)
    del value, gate
    return _scaled(c, h, "feed_forward_scale")


def _attend(c: Context, x: Value, reach: int) -> Value:
    a, t = c.a, c.tape
    h = _shift(c, c.layer_norm(x, LAYER + "attention_norm", a.hidden))
    h = c.linear(h, "transformer.attentions.{}.to_qkv", 3 * a.inner, bias=False)
    width = h.width
    h = t.cast(h, FLOAT32)
    h = t.cast(t.scale(h), width)
    h = _lines(c, t.copy(h), reach)
    h = c.linear(h, "transformer.attentions.{}.to_out", a.hidden)
    return _scaled(c, h, "attention_scale")


def _lines(c: Context, qkv: Value, reach: int) -> Value:
    """Queries, keys and values [3, b, h, n, d] -> [b, n, inner]."""
    a, t = c.a, c.tape
    text = a.text_positions + 1
    fmap = isqrt(a.positions - a.text_positions)
    codes, texts = c.b * a.inner * fmap**2, c.b * a.inner * text
    parts = [t.slice(qkv, 3 * texts), t.slice(qkv, qkv.n - 3 * texts)]
    q_text, k_text, v_text = t.split(parts[0], (texts,) * 3)
    text_out = _text(c, q_text, k_text, v_text, texts, text)
    grid = t.record(3 * codes, qkv.width, None, ((parts[1].slot, PASS_THROUGH),))
    del parts, q_text
    q, k, v = t.split(grid, (codes,) * 3)
    del grid
    q = t.scale(q)
    k, v = (_with_lines(c, x, codes, reach) for x in (k, v))
    scores, positions = c.b * a.heads * fmap**2, reach * fmap
    to_line = t.shift(t.batched_matmul(q, k, scores * positions))
    to_text = t.batched_matmul(q, k_text, scores * text)
    w = t.softmax(t.join(to_text, to_line))
    w = t.cast(w, v.width)
    del q, k, k_text
    from_line = t.batched_matmul(t.slice(w, scores * positions), v, codes)
    from_text = t.batched_matmul(t.slice(w, scores * text), v_text, codes)
    out = t.add(from_text, from_line)
    return t.join(text_out, t.slice(out, qkv.n // 3 - texts))


def _with_lines(c: Context, x: Value, codes: int, reach: int) -> Value:
    if reach == 1:
        return x
    t = c.tape
    padded = t.copy(x)
    return t.record(codes * reach, x.width, None, ((padded.slot, codes * x.width),), scratch=codes * x.width)


def _text(c: Context, q: Value, k: Value, v: Value, n: int, rows: int) -> Value:
    """Fused causal attention within the text."""
    t = c.tape
    width = t.half or q.width
    out = t.new(n, width)
    sums = Storage(t.memory, FLOAT32 * c.b * c.a.heads * -(-rows // 32) * 32)
    gradients = [(x.slot, x.n * width) for x in (q, k, v)]
    return t.record(n, width, (q.storage, k.storage, v.storage, out.storage, sums), gradients, storage=out.storage)
