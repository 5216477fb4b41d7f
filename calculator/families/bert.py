"""BERT: transformers' BertForPreTraining with both of its losses."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, attention, linear, norm
from calculator.tape import PASS_THROUGH, Value

LAYER = "bert.encoder.layer.{}."
EMBEDDINGS = "bert.embeddings."


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n = a.hidden, a.feed_forward, a.layers
    return [
        Tensor(EMBEDDINGS + "word_embeddings.weight", (a.vocabulary, d)),
        Tensor(EMBEDDINGS + "position_embeddings.weight", (a.positions, d)),
        Tensor(EMBEDDINGS + "token_type_embeddings.weight", (a.token_types, d)),
        *norm(EMBEDDINGS + "LayerNorm", d),
        *linear(LAYER + "attention.self.query", d, d, repeat=n),
        *linear(LAYER + "attention.self.key", d, d, repeat=n),
        *linear(LAYER + "attention.self.value", d, d, repeat=n),
        *linear(LAYER + "attention.output.dense", d, d, repeat=n),
        *norm(LAYER + "attention.output.LayerNorm", d, repeat=n),
        *linear(LAYER + "intermediate.dense", f, d, repeat=n),
        *linear(LAYER + "output.dense", d, f, repeat=n),
        *norm(LAYER + "output.LayerNorm", d, repeat=n),
        *linear("bert.pooler.dense", d, d),
        Tensor("cls.predictions.bias", (a.vocabulary,)),
        *linear("cls.predictions.transform.dense", d, d),
        *norm("cls.predictions.transform.LayerNorm", d),
        *linear("cls.seq_relationship", 2, d),
        *([] if a.tied else linear("cls.predictions.decoder", a.vocabulary, d)),
    ]


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens, labels and next-sentence labels."""
    return 8 * b * (2 * s + 1)


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    x = _embed(c)
    x = c.layers(x, lambda x: _layer(c, x), a.layers)
    c.head()
    head = c.p(EMBEDDINGS + "word_embeddings.weight" if a.tied else "cls.predictions.decoder.weight")
    pooled = t.slice(x, c.b * a.hidden)
    pooled = t.function(c.linear(pooled, "bert.pooler.dense", a.hidden), keeps_input=False)
    h = activation(c, c.linear(x, "cls.predictions.transform.dense", a.hidden), a.activation)
    h = c.layer_norm(h, "cls.predictions.transform.LayerNorm", a.hidden)
    logits = t.linear(h, head, a.vocabulary, c.p("cls.predictions.bias" if a.tied else "cls.predictions.decoder.bias"))
    del h
    order = c.linear(pooled, "cls.seq_relationship", 2)
    return t.add(t.cross_entropy(logits), t.cross_entropy(order))


def _embed(c: Context) -> Value:
    a, t = c.a, c.tape
    words = t.embedding(c.p(EMBEDDINGS + "word_embeddings.weight"), c.b * c.s, a.hidden)
    types = t.embedding(c.p(EMBEDDINGS + "token_type_embeddings.weight"), c.b * c.s, a.hidden)
    x = t.add(words, types)
    positions = t.embedding(c.p(EMBEDDINGS + "position_embeddings.weight"), c.s, a.hidden)
    x = t.record(x.n, x.width, None, ((x.slot, PASS_THROUGH), (positions.slot, positions.n * positions.width)))
    return c.drop(c.layer_norm(x, EMBEDDINGS + "LayerNorm", a.hidden))


def _layer(c: Context, x: Value) -> Value:
    a, t = c.a, c.tape
    h = _attention(c, x)
    h = c.drop(c.linear(h, LAYER + "attention.output.dense", a.hidden))
    x = c.layer_norm(t.add(h, x), LAYER + "attention.output.LayerNorm", a.hidden)
    h = activation(c, c.linear(x, LAYER + "intermediate.dense", a.feed_forward), a.activation)
    h = c.drop(c.linear(h, LAYER + "output.dense", a.hidden))
    return c.layer_norm(t.add(h, x), LAYER + "output.LayerNorm", a.hidden)


def _attention(c: Context, x: Value) -> Value:
    d = c.a.hidden
    q, k, v = (c.linear(x, f"{LAYER}attention.self.{name}", d) for name in ("query", "key", "value"))
    return attention(c, q, k, v, c.s, c.s)
