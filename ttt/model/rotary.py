"""Angles of text and image positions, and the rotation by them. Knows no attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt.config import DalleConfig

FAR_FROM_TEXT = 8192.0
"""Text position of every code."""
FAR_FROM_IMAGE = -10.0
"""Row and column of every text token; codes lie in [-1, 1]."""


def angles(config: DalleConfig) -> Tensor:
    """Radians [1, n, r] of all positions, the last code included, as in rotary-embedding-torch 0.1.5.

    A third of the channels r goes to the position in the text, a third to the row, a third to the column;
    the two channels of a pair have the same angle.
    """
    text_len, fmap, dim = config.text_len, config.image_fmap_size, config.dim_head // 3
    text_speed = 1.0 / (10_000 ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))
    axis_speed = torch.linspace(1.0, 5.0, dim // 2) * pi

    place = torch.cat((torch.arange(text_len).float(), torch.full((fmap**2,), FAR_FROM_TEXT)))
    axis = torch.linspace(-1, 1, steps=fmap)
    apart = torch.full((text_len,), FAR_FROM_IMAGE)
    rows = torch.cat((apart, axis.repeat_interleave(fmap)))
    columns = torch.cat((apart, axis.repeat(fmap)))
    parts = (torch.outer(place, text_speed), torch.outer(rows, axis_speed), torch.outer(columns, axis_speed))
    return torch.cat(parts, dim=-1).repeat_interleave(2, dim=-1)[None]


def rotary_channels(config: DalleConfig) -> int:
    """Number r of channels of a head that are rotated: a third each for text, row and column, in pairs."""
    return 6 * (config.dim_head // 6)


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
    rotated = torch.addcmul(head * cos.to(x.dtype), swapped, sin.to(x.dtype))
    return rotated if r == x.shape[-1] else torch.cat((rotated, x[..., r:]), dim=-1)


def rotation(pos_emb: Tensor, dim_head: int) -> Callable[[Tensor], Tensor]:
    """`rotate` by the angles [1, n, r], as a function of x [..., n, dim_head].

    Where the two channels of a pair turn alike and dim_head is even it is one complex product, several times as fast.
    """
    cos, sin = rotary_tables(pos_emb)
    alike = pos_emb.device.type not in ("mps", "meta") and torch.equal(pos_emb[..., 0::2], pos_emb[..., 1::2])
    if dim_head % 2 or not alike:
        return partial(rotate, cos=cos, sin=sin)
    turns = F.pad(torch.complex(cos[:, 1::2], sin[:, 1::2]), (0, (dim_head - cos.shape[-1]) // 2), value=1)
    return partial(_rotate_complex, turns=turns)


def _rotate_complex(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
