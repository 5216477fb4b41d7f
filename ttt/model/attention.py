"""Self-attention; which keys a query sees is data (a mask). Knows no layers and no image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ttt.model.rotary import rotate


class Attention(nn.Module):
    """`to_qkv` and `to_out` around masked dot-product attention; queries, keys and values are all rotated."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [b, n, c], tables [n, r] of its positions -> rotated queries, keys and values, each [b, h, n, d]."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, self.dim_head)).permute(2, 0, 3, 1, 4)  # [3, b, h, n, d]
        q, k, v = rotate(qkv, cos, sin).unbind(0)
        return q, k, v

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [b, n, c], mask bool [n, n] (True where a query, the row, sees a key), tables [n, r] -> [b, n, c]."""
        q, k, v = self.qkv(x, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(out.transpose(1, 2).flatten(2))
