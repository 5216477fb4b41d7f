"""BERT, RoBERTa and DistilBERT, with the heads of transformers' classes; BERT's default is BertForPreTraining."""

from __future__ import annotations

from dataclasses import dataclass

from calculator.architectures import Architecture
from calculator.families.common import (
    HEAD,
    Context,
    Tensor,
    activation,
    attention,
    linear,
    norm,
    task_loss,
)
from calculator.tape import PASS_THROUGH, Value


@dataclass(frozen=True)
class Names:
    """Names of the tensors in one of the variants; `{}` stands for the layer."""

    embeddings: str
    layer: str
    query: str
    key: str
    value: str
    attention_out: str
    attention_norm: str
    feed_in: str
    feed_out: str
    feed_norm: str
    lm_transform: str
    lm_norm: str
    lm_decoder: str
    lm_bias: str
    """The output bias with tied embeddings."""
    pooler: str = ""


def _bert(model: str, **lm: str) -> Names:
    layer = f"{model}.encoder.layer.{{}}."
    attention = layer + "attention."
    return Names(
        embeddings=f"{model}.embeddings.", layer=layer, query=attention + "self.query", key=attention + "self.key",
        value=attention + "self.value", attention_out=attention + "output.dense",
        attention_norm=attention + "output.LayerNorm", feed_in=layer + "intermediate.dense",
        feed_out=layer + "output.dense", feed_norm=layer + "output.LayerNorm", pooler=f"{model}.pooler.dense", **lm,
    )  # fmt: skip


_DISTIL = "distilbert.transformer.layer.{}."
NAMES = {
    "": _bert("bert", lm_transform="cls.predictions.transform.dense", lm_norm="cls.predictions.transform.LayerNorm",
              lm_decoder="cls.predictions.decoder", lm_bias="cls.predictions.bias"),
    "roberta": _bert("roberta", lm_transform="lm_head.dense", lm_norm="lm_head.layer_norm",
                     lm_decoder="lm_head.decoder", lm_bias="lm_head.bias"),
    "distilbert": Names(
        embeddings="distilbert.embeddings.", layer=_DISTIL, query=_DISTIL + "attention.q_lin",
        key=_DISTIL + "attention.k_lin", value=_DISTIL + "attention.v_lin", attention_out=_DISTIL + "attention.out_lin",
        attention_norm=_DISTIL + "sa_layer_norm", feed_in=_DISTIL + "ffn.lin1", feed_out=_DISTIL + "ffn.lin2",
        feed_norm=_DISTIL + "output_layer_norm", lm_transform="vocab_transform", lm_norm="vocab_layer_norm",
        lm_decoder="vocab_projector", lm_bias="vocab_projector.bias",
    ),
}  # fmt: skip


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n, x = a.hidden, a.feed_forward, a.layers, NAMES[a.variant]
    types = [Tensor(x.embeddings + "token_type_embeddings.weight", (a.token_types, d))] if a.token_types else []
    return [
        Tensor(x.embeddings + "word_embeddings.weight", (a.vocabulary, d)),
        Tensor(x.embeddings + "position_embeddings.weight", (a.positions, d)),
        *types,
        *norm(x.embeddings + "LayerNorm", d),
        *(t for name in (x.query, x.key, x.value, x.attention_out) for t in linear(name, d, d, repeat=n)),
        *norm(x.attention_norm, d, repeat=n),
        *linear(x.feed_in, f, d, repeat=n),
        *linear(x.feed_out, d, f, repeat=n),
        *norm(x.feed_norm, d, repeat=n),
        *_head(a, x),
    ]


def _pools(a: Architecture) -> bool:
    """BERT pools for its two pretraining losses, a bare model, and one label per sequence; RoBERTa for a bare model."""
    return (a.head == "none" and a.variant != "distilbert") or (a.head in ("default", "sequence") and not a.variant)


def _head(a: Architecture, x: Names) -> list[Tensor]:
    d = a.hidden
    pooler = linear(x.pooler, d, d) if _pools(a) else []
    if a.head in ("default", "masked-lm"):
        # With an untied output layer, BERT and RoBERTa still have the bias of the tied one.
        untied = [] if a.tied else linear(x.lm_decoder, a.vocabulary, d)
        bias = [] if untied and a.variant == "distilbert" else [Tensor(x.lm_bias, (a.vocabulary,))]
        order = linear("cls.seq_relationship", 2, d) if a.head == "default" and not a.variant else []
        return [*pooler, *bias, *linear(x.lm_transform, d, d), *norm(x.lm_norm, d), *order, *untied]
    hidden = linear("classifier.dense", d, d) if a.head == "sequence" and a.variant else []
    if a.head == "none":
        return pooler
    return [*pooler, *hidden, *linear(HEAD, a.outputs, d)]


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and labels."""
    return 8 * b * (2 * s + (0 if a.variant else 1))


def loss(c: Context) -> Value:
    a, t, names = c.a, c.tape, NAMES[c.a.variant]
    x = _embed(c, names)
    x = c.layers(x, lambda x: _layer(c, x, names), a.layers)
    c.head()
    if a.head not in ("default", "masked-lm"):
        return _task_loss(c, x, names)
    pooled = _pool(c, x, names) if _pools(a) else None
    head = c.p(names.embeddings + "word_embeddings.weight" if a.tied else names.lm_decoder + ".weight")
    h = activation(c, c.linear(x, names.lm_transform, a.hidden), a.activation)
    h = c.layer_norm(h, names.lm_norm, a.hidden)
    logits = t.linear(h, head, a.vocabulary, c.p(names.lm_bias if a.tied else names.lm_decoder + ".bias"))
    del h
    if pooled is None:
        return t.cross_entropy(logits)
    order = c.linear(pooled, "cls.seq_relationship", 2)
    return t.add(t.cross_entropy(logits), t.cross_entropy(order))


def _task_loss(c: Context, x: Value, names: Names) -> Value:
    a, t = c.a, c.tape
    if a.head != "sequence":
        return task_loss(c, x)
    if _pools(a):
        x = _pool(c, x, names)
    else:
        x = c.linear(c.drop(t.slice(x, c.b * a.hidden)), "classifier.dense", a.hidden)
        x = t.function(x, keeps_input=False)
    return task_loss(c, c.drop(x), sequences_only=True)


def _pool(c: Context, x: Value, names: Names) -> Value:
    first = c.tape.slice(x, c.b * c.a.hidden)
    return c.tape.function(c.linear(first, names.pooler, c.a.hidden), keeps_input=False)


def _embed(c: Context, names: Names) -> Value:
    a, t = c.a, c.tape
    x = t.embedding(c.p(names.embeddings + "word_embeddings.weight"), c.b * c.s, a.hidden)
    if a.token_types:
        x = t.add(x, t.embedding(c.p(names.embeddings + "token_type_embeddings.weight"), c.b * c.s, a.hidden))
    rows = c.b * c.s if a.variant == "roberta" else c.s  # RoBERTa's positions depend on the padding
    positions = t.embedding(c.p(names.embeddings + "position_embeddings.weight"), rows, a.hidden)
    x = t.record(x.n, x.width, None, ((x.slot, PASS_THROUGH), (positions.slot, positions.n * positions.width)))
    return c.drop(c.layer_norm(x, names.embeddings + "LayerNorm", a.hidden))


def _layer(c: Context, x: Value, names: Names) -> Value:
    a, t = c.a, c.tape
    h = _attention(c, x, names)
    h = c.linear(h, names.attention_out, a.hidden)
    h = c.drop(h) if a.variant != "distilbert" else h
    x = c.layer_norm(t.add(h, x), names.attention_norm, a.hidden)
    h = activation(c, c.linear(x, names.feed_in, a.feed_forward), a.activation)
    h = c.drop(c.linear(h, names.feed_out, a.hidden))
    return c.layer_norm(t.add(h, x), names.feed_norm, a.hidden)


def _attention(c: Context, x: Value, names: Names) -> Value:
    q, k, v = (c.linear(x, name, c.a.hidden) for name in (names.query, names.key, names.value))
    return attention(c, q, k, v, c.s, c.s)
