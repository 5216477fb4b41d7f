"""CLIP: transformers' CLIPModel with its contrastive loss. The architecture is the text tower, `vision` the other."""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import Architecture
from calculator.families.common import Context, Tensor, activation, attention, linear, norm
from calculator.tape import PASS_THROUGH, Value


def tensors(a: Architecture) -> list[Tensor]:
    v = a.vision
    assert v is not None  # checked by Architecture
    text, vision = "text_model.embeddings.", "vision_model.embeddings."
    return [
        Tensor("logit_scale", ()),
        Tensor(text + "token_embedding.weight", (a.vocabulary, a.hidden)),
        Tensor(text + "position_embedding.weight", (a.positions, a.hidden)),
        *_layers(a, "text_model"),
        *norm("text_model.final_layer_norm", a.hidden),
        Tensor(vision + "class_embedding", (v.hidden,)),
        Tensor(vision + "patch_embedding.weight", (v.hidden, v.channels, v.patch_size, v.patch_size)),
        Tensor(vision + "position_embedding.weight", (v.patches + 1, v.hidden)),
        *norm("vision_model.pre_layrnorm", v.hidden),
        *_layers(v, "vision_model"),
        *norm("vision_model.post_layernorm", v.hidden),
        *linear("visual_projection", a.projection, v.hidden, bias=False),
        *linear("text_projection", a.projection, a.hidden, bias=False),
    ]


def _layers(a: Architecture, tower: str) -> list[Tensor]:
    layer, d, n = f"{tower}.encoder.layers.{{}}.", a.hidden, a.layers
    return [
        *(x for p in ("k", "v", "q", "out") for x in linear(f"{layer}self_attn.{p}_proj", d, d, repeat=n)),
        *norm(layer + "layer_norm1", d, repeat=n),
        *linear(layer + "mlp.fc1", a.feed_forward, d, repeat=n),
        *linear(layer + "mlp.fc2", d, a.feed_forward, repeat=n),
        *norm(layer + "layer_norm2", d, repeat=n),
    ]


def inputs(a: Architecture, b: int, s: int, t: int, width: int) -> int:
    """Bytes of a batch: tokens and pixels."""
    assert a.vision is not None  # checked by Architecture
    return b * (8 * s + a.vision.channels * a.vision.image_size**2 * width)


def loss(c: Context) -> Value:
    a, t, v = c.a, c.tape, c.a.vision
    assert v is not None
    images = _image(replace(c, a=v), v)
    image = c.linear(images, "visual_projection", a.projection, bias=False)
    texts = _text(c)
    c.head()
    text = c.linear(texts, "text_projection", a.projection, bias=False)
    logits = t.batched_matmul(_unit(c, text), _unit(c, image), c.b * c.b)
    return t.add(t.cross_entropy(logits), t.cross_entropy(logits))


def _unit(c: Context, x: Value) -> Value:
    t = c.tape
    x = t.to_float32(x)
    return t.multiply(x, t.power(x))


def _image(c: Context, a: Architecture) -> Value:
    t, width = c.tape, c.tape.half or c.tape.width
    pixels = t.new(c.b * a.channels * a.image_size**2, width) if t.half else None
    weight = c.p("vision_model.embeddings.patch_embedding.weight")
    slot, cast = t.weight(weight)
    patches = t.record(
        c.b * a.patches * a.hidden, width, (pixels and pixels.storage, cast), ((slot, weight.n * width),)
    )
    token, s = c.p("vision_model.embeddings.class_embedding"), a.patches + 1
    n = c.b * s * a.hidden
    x = t.record(n, t.width, None, ((token.slot, token.n * token.width), (patches.slot, PASS_THROUGH)))
    positions = t.embedding(c.p("vision_model.embeddings.position_embedding.weight"), s, a.hidden)
    x = t.record(n, t.width, None, ((x.slot, PASS_THROUGH), (positions.slot, positions.n * positions.width)))
    x = c.layer_norm(x, "vision_model.pre_layrnorm", a.hidden)
    x = c.layers(x, lambda x: _layer(c, a, x, "vision_model.encoder.layers.{}.", s, False), a.layers)
    return c.layer_norm(t.slice(x, c.b * a.hidden), "vision_model.post_layernorm", a.hidden)


def _text(c: Context) -> Value:
    a, t = c.a, c.tape
    tokens = t.embedding(c.p("text_model.embeddings.token_embedding.weight"), c.b * c.s, a.hidden)
    positions = t.embedding(c.p("text_model.embeddings.position_embedding.weight"), c.s, a.hidden)
    gradients = ((tokens.slot, PASS_THROUGH), (positions.slot, positions.n * positions.width))
    x = t.record(tokens.n, tokens.width, None, gradients)
    mask = t.new(c.b * c.s * c.s) if c.eager else None
    x = c.layers(x, lambda x: _layer(c, a, x, "text_model.encoder.layers.{}.", c.s, mask is not None), a.layers)
    x = c.layer_norm(x, "text_model.final_layer_norm", a.hidden)
    return t.slice(x, c.b * a.hidden)


def _layer(c: Context, a: Architecture, x: Value, layer: str, s: int, causal: bool) -> Value:
    t = c.tape
    residual = x
    h = _attention(c, a, c.layer_norm(x, layer + "layer_norm1", a.hidden), layer, s, causal)
    h = t.add(residual, h)
    residual = h
    h = c.layer_norm(h, layer + "layer_norm2", a.hidden)
    h = activation(c, c.linear(h, layer + "mlp.fc1", a.feed_forward), a.activation)
    h = c.linear(h, layer + "mlp.fc2", a.hidden)
    return t.add(residual, h)


def _attention(c: Context, a: Architecture, x: Value, layer: str, s: int, causal: bool) -> Value:
    q, k, v = (c.linear(x, f"{layer}self_attn.{name}_proj", a.hidden) for name in "qkv")
    h = attention(c, q, k, v, s, s, mask=causal, softmax32=True)
    return c.linear(h, layer + "self_attn.out_proj", a.hidden)
