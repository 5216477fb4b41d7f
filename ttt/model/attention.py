"""Self-attention. The caller passes how queries see keys (`Attend`) and how both are rotated."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.model.rotary import Rotary

Attend = Callable[[Tensor], Tensor]
"""Rotated queries, keys and values in one tensor [3, b, h, n, d] -> [b, n, h, d]."""


class Attention(nn.Module):
    """`to_qkv` and `to_out` around dot-product attention; queries, keys and values are all rotated."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, attend: Attend, rotary: Rotary) -> Tensor:
        """x [b, n, c] -> [b, n, c]."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, self.dim_head))  # [b, n, 3, h, d]
        qkv = rotary(qkv.permute(2, 0, 3, 1, 4)).contiguous()  # [3, b, h, n, d]
        return self.to_out(attend(qkv).flatten(2))


def attend_masked(qkv: Tensor, mask: Tensor) -> Tensor:
    """Dense attention under mask bool [n, n], True where a query (the row) sees a key."""
    q, k, v = qkv.unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_lines(qkv: Tensor, text_len: int, fmap: int, mask: Tensor, columns: bool = False) -> Tensor:
    """Attention of each code to the text and to the codes in its own line and the `reach` - 1 lines before it.

    Lines are the rows of the image, or its columns. mask: bool [fmap or 1, fmap, reach * fmap], from `masks.line_mask`.
    Equal to `attend_masked` with the whole mask, but several times as fast, because most keys are never read.
    """
    n, d = qkv.shape[-2:]
    m = n - text_len
    text, codes = qkv.split((text_len, m), dim=3)
    # Text sees only earlier text, so it needs no mask but the causal one.
    q_text, k_text, v_text = text.unbind(0)
    text_out = F.scaled_dot_product_attention(q_text, k_text, v_text, is_causal=True).transpose(1, 2)
    if m == 0:
        return text_out
    q, k, v = _lines(codes, fmap, columns).unbind(0)  # [b, h, lines, width, d]
    lines, width, reach = *q.shape[2:4], mask.shape[-1] // fmap
    mask = mask[:lines, :width, : reach * width]
    q, k, v = q * d**-0.5, _with_lines_before(k, reach), _with_lines_before(v, reach)
    # One softmax over both kinds of keys: [b, h, lines * width, text_len + reach * width].
    to_line = (q @ k.transpose(-2, -1)).masked_fill(~mask, -torch.inf).flatten(2, 3)  # [b, h, lines * width, k]
    to_text = q.flatten(2, 3) @ k_text.transpose(-2, -1)
    weights = torch.cat((to_text, to_line), dim=-1).softmax(dim=-1).to(v.dtype)
    from_line = weights[..., text_len:].unflatten(2, (lines, width)) @ v
    out = (weights[..., :text_len] @ v_text).view_as(from_line) + from_line
    image_out = (out.transpose(2, 3) if columns else out).flatten(2, 3)[:, :, :m].transpose(1, 2)
    return torch.cat((text_out, image_out), dim=1)


def _lines(codes: Tensor, fmap: int, columns: bool) -> Tensor:
    """[..., m, d] -> [..., lines, width, d], padded with zeros after the last code."""
    grid = F.pad(codes, (0, 0, 0, -codes.shape[-2] % fmap)).unflatten(-2, (-1, fmap))
    return grid.transpose(-3, -2) if columns else grid


def _with_lines_before(x: Tensor, reach: int) -> Tensor:
    """[..., lines, width, d] -> [..., lines, reach * width, d]: each line and those before it, or zeros."""
    if reach == 1:
        return x
    padded = F.pad(x, (0, 0, 0, 0, reach - 1, 0))
    return torch.cat([padded.narrow(-3, i, x.shape[-3]) for i in range(reach)], dim=-2)
