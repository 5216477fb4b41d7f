"""A layer: pre-norm, token shift, LayerScale and GEGLU around attention. Independent of the execution order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.config import AttentionKind, DalleConfig
from ttt.model.attention import Attend, Attention
from ttt.model.rotary import Rotary


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): `down(value * gelu(gate))`, both halves from one `up`."""

    def __init__(self, dim: int, mult: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * mult * dim)
        self.down = nn.Linear(mult * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class Layer(nn.Module):
    """Attention and feed-forward, each as `scale * body(shift(norm(x)))`.

    The layer owns norms and scales. The bodies may be shared with other layers; the transformer owns them.
    """

    def __init__(
        self, config: DalleConfig, index: int, kind: AttentionKind, attention: Attention, feed_forward: FeedForward
    ) -> None:
        super().__init__()
        self.kind = kind
        self.text_len, self.fmap = config.text_len, config.image_fmap_size
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention_scale = nn.Parameter(torch.full((config.dim,), initial_scale(index)))
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.feed_forward_scale = nn.Parameter(torch.full((config.dim,), initial_scale(index)))
        self._shared = (attention, feed_forward)  # a tuple is not registered, so a shared tensor has one name

    @property
    def attention(self) -> Attention:
        return self._shared[0]

    @property
    def feed_forward(self) -> FeedForward:
        return self._shared[1]

    def attend(self, x: Tensor, attend: Attend, rotary: Rotary) -> Tensor:
        """The residual of attention for the other stream: x [b, n, c] -> [b, n, c]."""
        shifted = shift_tokens(self.attention_norm(x), self.text_len, self.fmap)
        return self.attention(shifted, attend, rotary) * self.attention_scale

    def feed(self, x: Tensor) -> Tensor:
        """The residual of the feed-forward for the other stream: x [b, n, c] -> [b, n, c]."""
        shifted = shift_tokens(self.feed_forward_norm(x), self.text_len, self.fmap)
        return self.feed_forward(shifted) * self.feed_forward_scale


def initial_scale(index: int) -> float:
    """LayerScale of layer `index`, from 0 (Touvron et al. 2021, section 2): deep layers start close to zero."""
    return 0.1 if index < 18 else 1e-5 if index < 24 else 1e-6


def shift_tokens(x: Tensor, text_len: int, fmap: int) -> Tensor:
    """Take channels from neighbours: of text half from the left, of codes a quarter each from above and the left.

    x [b, n, c] with n >= text_len -> [b, n, c]. Nothing is shifted across the border of the text, the image or a row.
    """
    _, n, c = x.shape
    half, quarter = c // 2, c // 4
    text, codes = x[:, :text_len], x[:, text_len:]
    m = n - text_len
    text_left = F.pad(text[..., :half], (0, 0, 1, -1))
    if m == 0:
        return torch.cat((text_left, text[..., half:]), dim=-1)
    above = F.pad(codes[:, : max(m - fmap, 0), :quarter], (0, 0, min(m, fmap), 0))  # [b, m, c / 4]
    inside = (torch.arange(m, device=x.device) % fmap != 0)[:, None]
    left = F.pad(codes[..., quarter:half], (0, 0, 1, -1)) * inside
    moved = torch.cat((text_left, torch.cat((above, left), dim=-1)), dim=1)
    return torch.cat((moved, x[..., half:]), dim=-1)
