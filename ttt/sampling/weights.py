"""The weights of a Dalle in the form that sampling uses: cast and packed, one set per shared group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttt.config import AttentionKind, DalleConfig
from ttt.linear import Int8Linear, PackedLinear
from ttt.model.attention import Attention
from ttt.model.dalle import Dalle
from ttt.model.layers import FeedForward, Layer
from ttt.model.rotary import Rotary

Linear = PackedLinear | Int8Linear


@dataclass(frozen=True)
class Norm:
    """LayerNorm in float32."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Norm:
        return cls(norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class LayerWeights:
    """One layer; layers of a shared group hold the same four products."""

    kind: AttentionKind
    attention_norm: Norm
    attention_scale: Tensor
    to_qkv: Linear
    to_out: Linear
    feed_forward_norm: Norm
    feed_forward_scale: Tensor
    up: Linear
    down: Linear


class DecoderWeights:
    """The weights that prefill and the steps read. Norms, scales, embedding and logits are always float32."""

    def __init__(self, dalle: Dalle, dtype: torch.dtype = torch.float32, *, pack: bool = True) -> None:
        """dtype: of products with weights and of the rest; int8 means int8 products and bfloat16 for the rest."""
        in_8_bits = dtype == torch.int8
        self.dalle, self.dtype = dalle, cache_dtype(dtype)
        self.config: DalleConfig = dalle.config
        self.device = dalle.to_logits.weight.device
        groups: dict[int, Linear] = {}  # by id of the module, so that layers of a shared group share packed weights

        def linear(module: nn.Linear, weight: Tensor | None = None) -> Linear:
            if id(module) not in groups:
                bias = None if module.bias is None else module.bias.detach().to(self.dtype)
                weight = module.weight.detach() if weight is None else weight
                groups[id(module)] = (
                    Int8Linear(weight, bias) if in_8_bits else PackedLinear(weight.to(self.dtype), bias, pack=pack)
                )
            return groups[id(module)]

        self.layers = [_layer(layer, linear) for layer in dalle.transformer.layers]  # type: ignore[arg-type]
        # Sampling embeds and predicts codes only, so it needs just their rows of the shared matrix.
        rows = dalle.to_logits.weight.detach()[self.config.text_vocab :].float().contiguous()
        self.embedding = rows
        self.norm = Norm.of(dalle.norm)
        self.to_logits = PackedLinear(rows, dalle.to_logits.bias.detach()[self.config.text_vocab :].float(), pack=pack)
        self.rotary = Rotary(dalle.transformer.pos_emb, self.config.dim_head)


def cache_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of activations, keys and values if the products with weights are in `dtype`."""
    return torch.bfloat16 if dtype == torch.int8 else dtype


def _layer(layer: Layer, linear: Callable[..., Linear]) -> LayerWeights:
    attention: Attention = layer.attention
    feed_forward: FeedForward = layer.feed_forward
    return LayerWeights(
        kind=layer.kind,
        attention_norm=Norm.of(layer.attention_norm),
        attention_scale=layer.attention_scale.detach().float(),
        to_qkv=linear(attention.to_qkv, _scaled_queries(attention)),
        to_out=linear(attention.to_out),
        feed_forward_norm=Norm.of(layer.feed_forward_norm),
        feed_forward_scale=layer.feed_forward_scale.detach().float(),
        up=linear(feed_forward.up),
        down=linear(feed_forward.down),
    )


def _scaled_queries(attention: Attention) -> Tensor:
    """The weight of `to_qkv` with the rows of the queries divided by sqrt(d), which commutes with the rotation."""
    weight = attention.to_qkv.weight.detach().clone()
    weight[: attention.heads * attention.dim_head] *= attention.dim_head**-0.5
    return weight
