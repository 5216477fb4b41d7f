"""The weights of a Dalle as decoding wants them: packed, cast, one set per shared group. Knows no cache."""

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
from ttt.model.rotary import rotary_tables, rotate

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
    """One layer; layers of a group hold the same four products."""

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
    """What prefill and decode_one_code read. Norms, scales, embedding and logits are float32 in any `dtype`."""

    def __init__(self, dalle: Dalle, dtype: torch.dtype = torch.float32, *, pack: bool = True) -> None:
        """dtype: of products with weights, and of the rest; int8 stands for such products beside bfloat16."""
        in_8_bits = dtype == torch.int8
        self.dalle, self.dtype = dalle, cache_dtype(dtype)
        self.config: DalleConfig = dalle.config
        self.device = dalle.to_logits.weight.device
        groups: dict[int, Linear] = {}

        def linear(module: nn.Linear, weight: Tensor | None = None) -> Linear:
            if id(module) not in groups:
                bias = None if module.bias is None else module.bias.detach().to(self.dtype)
                weight = module.weight.detach() if weight is None else weight
                groups[id(module)] = (
                    Int8Linear(weight, bias) if in_8_bits else PackedLinear(weight.to(self.dtype), bias, pack=pack)
                )
            return groups[id(module)]

        self.layers = [_layer(layer, linear) for layer in dalle.transformer.layers]  # type: ignore[arg-type]
        rows = dalle.to_logits.weight.detach()[self.config.text_vocab :].float().contiguous()
        self.embedding = rows
        self.norm = Norm.of(dalle.norm)
        self.to_logits = PackedLinear(rows, dalle.to_logits.bias.detach()[self.config.text_vocab :].float(), pack=pack)
        self.rotary = Rotary(dalle.transformer.pos_emb, self.config)


def cache_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of activations, keys and values, where the products with weights are in `dtype`."""
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
    """`to_qkv` with 1 / sqrt(d) in the rows of the queries (rotation commutes with it)."""
    weight = attention.to_qkv.weight.detach().clone()
    weight[: attention.heads * attention.dim_head] *= attention.dim_head**-0.5
    return weight


class Rotary:
    """Rotation of queries, keys and values, for many text positions or for one code."""

    def __init__(self, pos_emb: Tensor, config: DalleConfig) -> None:
        cos, sin = rotary_tables(pos_emb)  # [n, r]
        self.cos, self.sin, self.text_len = cos, sin, config.text_len
        # As a complex product one operation rotates and reorders; it needs whole pairs of equal angles.
        pairs = config.dim_head // 2
        alike = pos_emb.device.type != "mps" and torch.equal(pos_emb[..., ::2], pos_emb[..., 1::2])
        whole = config.dim_head % 2 == 0 and alike
        self.turns: Tensor | None = None
        if whole:
            self.turns = torch.ones(len(cos), pairs, dtype=torch.complex64, device=cos.device)
            self.turns[:, : cos.shape[1] // 2] = torch.complex(cos[:, 1::2].contiguous(), sin[:, 1::2].contiguous())

    def text(self, qkv: Tensor) -> Tensor:
        """[3, h, t, d] at the text positions -> the same, rotated, float32."""
        if self.turns is None:
            return rotate(qkv.float(), self.cos[: self.text_len], self.sin[: self.text_len])
        pairs = torch.view_as_complex(qkv.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turns[: self.text_len]).flatten(-2)

    def angle(self, position: int | Tensor) -> tuple[Tensor, ...]:
        """What `code` turns by, of the code at `position`: a number, or int64 [1], which stays on its device."""
        tables = (self.cos, self.sin) if self.turns is None else (self.turns,)
        place = self.text_len + position
        return tuple(t[place] if isinstance(place, int) else t.index_select(0, place) for t in tables)

    def code(self, qkv: Tensor, angle: tuple[Tensor, ...]) -> Tensor:
        """[b, g, ..., d] of codes at one position -> [g, b, ..., d], rotated, float32, contiguous."""
        if self.turns is None:
            return rotate(qkv.float().transpose(0, 1).contiguous(), *angle)
        pairs = torch.view_as_complex(qkv.float().view(*qkv.shape[:-1], -1, 2)).transpose(0, 1)
        out = torch.empty(pairs.shape, dtype=torch.complex64, device=qkv.device)
        return torch.view_as_real(torch.mul(pairs, angle[0], out=out)).flatten(-2)
