"""The transformer: which layers there are, which weights they share, and how they run. Independent of tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ttt.config import AttentionKind, DalleConfig
from ttt.model.attention import Attend, Attention, attend_lines, attend_masked
from ttt.model.layers import FeedForward, Layer
from ttt.model.masks import mask_on
from ttt.model.reversible import Block, Branch, run_blocks
from ttt.model.rotary import Rotary, angles


class Transformer(nn.Module):
    """x [b, n, c] -> [b, n, c].

    attentions, feed_forwards: the unique weights, indexed by `config.weight_ids`. layers: norms and scales of every
    layer, and references to its weights. pos_emb: rotary angles [1, n, r] of all positions.
    """

    layers: nn.ModuleList
    pos_emb: Tensor

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.config = config
        ids = config.weight_ids
        self.attentions = nn.ModuleList(
            Attention(config.dim, config.heads, config.dim_head) for _ in range(max(ids) + 1)
        )
        self.feed_forwards = nn.ModuleList(FeedForward(config.dim, config.ff_mult) for _ in range(max(ids) + 1))
        self.layers = nn.ModuleList(
            Layer(config, index, kind, self.attentions[i], self.feed_forwards[i])  # type: ignore[arg-type]
            for index, (kind, i) in enumerate(zip(config.layer_kinds, ids, strict=True))
        )
        device = torch.get_default_device()
        with torch.device("cpu"):  # this arithmetic on the meta device would import a compiler, which takes seconds
            self.register_buffer("pos_emb", angles(config).to(device))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        rotary = Rotary(self.pos_emb[:, :n], self.config.dim_head)
        blocks = [self._block(layer, n, rotary) for layer in self.layers]  # type: ignore[arg-type]
        return run_blocks(blocks, x, reversible=self.config.reversible)

    def _block(self, layer: Layer, n: int, rotary: Rotary) -> Block:
        attention = partial(layer.attend, attend=self._attend(layer.kind, n), rotary=rotary)
        norm, feed_norm = layer.attention_norm, layer.feed_forward_norm
        return (
            Branch(attention, (layer.attention_scale, *norm.parameters(), *layer.attention.parameters())),
            Branch(layer.feed, (layer.feed_forward_scale, *feed_norm.parameters(), *layer.feed_forward.parameters())),
        )

    def _attend(self, kind: AttentionKind, n: int) -> Attend:
        config = self.config
        mask = mask_on(kind, config, self.pos_emb.device)
        if kind == "full":
            return partial(attend_masked, mask=mask[:n, :n])
        columns = kind == "column"
        return partial(attend_lines, text_len=config.text_len, fmap=config.image_fmap_size, mask=mask, columns=columns)

    def _apply(self, fn: Any, recurse: bool = True) -> Transformer:
        """Move or cast. The angles stay float32: 16 bits are too few for positions up to 8192."""
        before = self.pos_emb
        super()._apply(fn, recurse)
        if self.pos_emb.dtype != torch.float32:
            self.pos_emb = before.to(self.pos_emb.device)
        return self
