"""Rotary embeddings: the angles of text and image positions, and the rotation of queries, keys and values by them."""

from __future__ import annotations

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.config import DalleConfig

FAR_FROM_TEXT = 8192.0
"""Text position of every code."""
FAR_FROM_IMAGE = -10.0
"""Row and column of every text token; those of codes lie in [-1, 1]."""


def angles(config: DalleConfig) -> Tensor:
    """Radians [1, n, r] of all positions, including the last code's, as in rotary-embedding-torch 0.1.5.

    A third of the r channels depends on the position in the text, a third on the row, a third on the column; the two
    channels of a pair have the same angle.
    """
    text_len, fmap, dim = config.text_len, config.image_fmap_size, config.dim_head // 3
    text_speed = 1.0 / (10_000 ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))
    axis_speed = torch.linspace(1.0, 5.0, dim // 2) * pi

    text_position = torch.cat((torch.arange(text_len).float(), torch.full((fmap**2,), FAR_FROM_TEXT)))
    axis = torch.linspace(-1, 1, steps=fmap)
    outside = torch.full((text_len,), FAR_FROM_IMAGE)
    rows = torch.cat((outside, axis.repeat_interleave(fmap)))
    columns = torch.cat((outside, axis.repeat(fmap)))
    parts = (torch.outer(text_position, text_speed), torch.outer(rows, axis_speed), torch.outer(columns, axis_speed))
    return torch.cat(parts, dim=-1).repeat_interleave(2, dim=-1)[None]


def rotary_channels(config: DalleConfig) -> int:
    """Number r of channels of a head that are rotated: a third each for text, row and column, in pairs."""
    return 6 * (config.dim_head // 6)


class Rotary:
    """Rotation by the angles [1, n, r] of `pos_emb`, computed in float32.

    If the two channels of every pair have the same angle and dim_head is even, the rotation is one complex product,
    several times as fast as the general formula.
    """

    def __init__(self, pos_emb: Tensor, dim_head: int) -> None:
        self.cos, self.sin = rotary_tables(pos_emb)
        self.factors: Tensor | None = None
        """Complex numbers [n, d / 2] of absolute value 1; None if the general formula is needed."""
        complex_works = pos_emb.device.type not in ("mps", "meta")
        if dim_head % 2 == 0 and complex_works and torch.equal(pos_emb[..., ::2], pos_emb[..., 1::2]):
            factors = torch.complex(self.cos[:, 1::2].contiguous(), self.sin[:, 1::2].contiguous())
            self.factors = F.pad(factors, (0, dim_head // 2 - factors.shape[1]), value=1)  # the others are not rotated

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., m, d] at the first m positions -> the same, rotated, in the dtype of x."""
        m = x.shape[-2]
        if self.factors is None:
            return rotate(x.float(), self.cos[:m], self.sin[:m]).to(x.dtype)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # [..., m, d / 2]
        return torch.view_as_real(pairs * self.factors[:m]).flatten(-2).to(x.dtype)

    def at(self, position: int | Tensor) -> tuple[Tensor, ...]:
        """Tables of one position for `rotate_code`. A position int64 [1] stays on its device."""
        tables = (self.cos, self.sin) if self.factors is None else (self.factors,)
        return tuple(t[position] if isinstance(position, int) else t.index_select(0, position) for t in tables)

    def rotate_code(self, qkv: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """[b, g, ..., d] of codes at one position -> [g, b, ..., d], rotated, float32, contiguous.

        The complex product writes its result in the new order, which saves a copy.
        """
        if self.factors is None:
            return rotate(qkv.float().transpose(0, 1).contiguous(), *tables)
        pairs = torch.view_as_complex(qkv.float().view(*qkv.shape[:-1], -1, 2)).transpose(0, 1)
        out = torch.empty(pairs.shape, dtype=torch.complex64, device=qkv.device)
        return torch.view_as_real(torch.mul(pairs, tables[0], out=out)).flatten(-2)


def rotary_tables(pos_emb: Tensor) -> tuple[Tensor, Tensor]:
    """Angles [1, n, r] -> float32 cosines and sines [n, r]; the first channel of a pair has its sine negated."""
    cos, sin = pos_emb[0].float().cos(), pos_emb[0].float().sin()
    sign = torch.tensor([-1.0, 1.0], device=sin.device).repeat(sin.shape[-1] // 2)
    return cos, sin * sign


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first r channels of x [..., d] in pairs; cos, sin [..., r] broadcast against them."""
    r = cos.shape[-1]
    head = x[..., :r]
    swapped = head.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    rotated = torch.addcmul(head * cos, swapped, sin)
    return rotated if r == x.shape[-1] else torch.cat((rotated, x[..., r:]), dim=-1)
