"""ViT: transformers' ViTForImageClassification."""

from __future__ import annotations

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, attention, linear, norm
from calculator.tape import PASS_THROUGH, Value

LAYER = "vit.layers.{}."
EMBEDDINGS = "vit.embeddings."


def tensors(a: Architecture) -> list[Tensor]:
    d, f, n, i = a.hidden, a.feed_forward, a.layers, a.inner
    return [
        Tensor(EMBEDDINGS + "cls_token", (1, 1, d)),
        Tensor(EMBEDDINGS + "position_embeddings", (1, a.patches + 1, d)),
        Tensor(EMBEDDINGS + "patch_embeddings.projection.weight", (d, a.channels, a.patch_size, a.patch_size)),
        Tensor(EMBEDDINGS + "patch_embeddings.projection.bias", (d,)),
        *(x for name in "qkv" for x in linear(f"{LAYER}attention.{name}_proj", i, d, a.query_bias, n)),
        *linear(LAYER + "attention.o_proj", d, i, repeat=n),
        *norm(LAYER + "layernorm_before", d, repeat=n),
        *norm(LAYER + "layernorm_after", d, repeat=n),
        *linear(LAYER + "mlp.fc1", f, d, repeat=n),
        *linear(LAYER + "mlp.fc2", d, f, repeat=n),
        *norm("vit.layernorm", d),
        *(linear("vit.pooler.dense", d, d) if a.head == "none" else linear("classifier", a.labels, d)),
    ]


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: pixels and labels."""
    return b * (a.channels * a.image_size**2 * width + 8)


def loss(c: Context) -> Value:
    a, t = c.a, c.tape
    x = c.drop(_embed(c))
    x = c.layers(x, lambda x: _layer(c, x), a.layers)
    c.head()
    x = c.layer_norm(x, "vit.layernorm", a.hidden)
    first = t.slice(x, c.b * a.hidden)
    if a.head == "none":
        return t.mean(t.function(c.linear(first, "vit.pooler.dense", a.hidden), keeps_input=False))
    return t.cross_entropy(c.linear(first, "classifier", a.labels))


def _embed(c: Context) -> Value:
    a, t = c.a, c.tape
    width = t.half or t.width
    pixels = t.new(c.b * a.channels * a.image_size**2, width) if t.half else None
    weight = c.p(EMBEDDINGS + "patch_embeddings.projection.weight")
    slot, cast = t.weight(weight)
    bias = c.p(EMBEDDINGS + "patch_embeddings.projection.bias")
    gradients = ((slot, weight.n * width), (bias.slot, bias.n * bias.width))
    patches = t.record(c.b * a.patches * a.hidden, width, (pixels and pixels.storage, cast), gradients)
    token, positions = c.p(EMBEDDINGS + "cls_token"), c.p(EMBEDDINGS + "position_embeddings")
    n = c.b * (a.patches + 1) * a.hidden
    x = t.record(n, t.width, None, ((token.slot, token.n * token.width), (patches.slot, PASS_THROUGH)))
    return t.record(n, t.width, None, ((x.slot, PASS_THROUGH), (positions.slot, positions.n * positions.width)))


def _layer(c: Context, x: Value) -> Value:
    a, t = c.a, c.tape
    residual = x
    h = c.layer_norm(x, LAYER + "layernorm_before", a.hidden)
    h = c.drop(_attention(c, h))
    h = t.add(h, residual)
    residual = h
    h = c.layer_norm(h, LAYER + "layernorm_after", a.hidden)
    h = activation(c, c.linear(h, LAYER + "mlp.fc1", a.feed_forward), a.activation)
    h = c.drop(c.linear(h, LAYER + "mlp.fc2", a.hidden))
    return t.add(h, residual)


def _attention(c: Context, x: Value) -> Value:
    a, s = c.a, c.a.patches + 1
    q, k, v = (c.linear(x, f"{LAYER}attention.{name}_proj", a.inner, a.query_bias) for name in "qkv")
    h = attention(c, q, k, v, s, s, softmax32=True)
    return c.linear(h, LAYER + "attention.o_proj", a.hidden)
