"""Preallocated caches: the prompt's keys, one copy for all candidates, and just the image keys that each
layer's mask needs; and what token shift remembers. Knows no weights.

Per candidate a row layer keeps the current row, a column layer all codes (it reads one column of them), the
convolution as many rows as its window is high, full attention all codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.config import AttentionKind, DalleConfig

READ_MULTIPLE = 16
"""Keys are read in multiples of this: tiny matrices take a slow path in CPU libraries (measured: 8 keys cost
four times what 16 cost)."""


@dataclass(frozen=True)
class Prompt:
    """A prefilled prompt. Read-only, so any number of candidates and threads may share it."""

    keys: list[Tensor]
    """Of every layer, [h, t, d], rotated."""
    values: list[Tensor]
    logits: Tensor
    """Of the first code, [v] float32."""


class ImageKeys:
    """Keys and values of one layer's codes: buffer [groups, 2, h * b, slots, d], written in place.

    Keys carry their position inside (rotary), so their order in the buffer is free. It begins as zeros because
    slots that are not written yet are read, too, with a probability of zero.
    """

    def __init__(
        self, kind: AttentionKind, config: DalleConfig, b: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kind, self.fmap = kind, config.image_fmap_size
        self.window = min(config.conv_kernel, config.image_fmap_size)
        groups, slots = slots_of(kind, config)
        self.buffer = torch.zeros(groups, 2, config.heads * b, slots, config.dim_head, dtype=dtype, device=device)

    def add(self, kv: Tensor, position: int) -> tuple[Tensor, int]:
        """Store kv [2, h * b, d] of the code at `position`; -> keys and values [2, h * b, slots, d], and how many
        of these slots, from the first, the code sees; itself is among them.
        """
        row, column = divmod(position, self.fmap)
        if self.kind == "conv":
            return self._add_to_window(kv, row, column)
        group, slot = {"row": (0, column), "column": (column, row), "full": (0, position)}[self.kind]
        keys = self.buffer[group]
        keys[:, :, slot] = kv
        return keys[:, :, : -(-(slot + 1) // READ_MULTIPLE) * READ_MULTIPLE], slot + 1

    def _add_to_window(self, kv: Tensor, row: int, column: int) -> tuple[Tensor, int]:
        """A ring of rows: the slot of the row that has left the window takes the new one, from the left on."""
        ring = self.buffer[0].unflatten(2, (self.window, self.fmap))  # [2, h * b, rows, columns, d]
        ring[:, :, row % self.window, column] = kv
        first = max(0, column - self.window + 1)
        seen = ring[:, :, : min(row + 1, self.window), first : column + 1].flatten(2, 3)
        return seen, seen.shape[2]


class ShiftState:
    """What token shift brings from above and from the left into one branch of one layer."""

    def __init__(self, config: DalleConfig, b: int, dtype: torch.dtype, device: torch.device) -> None:
        self.half, self.quarter = config.dim // 2, config.dim // 4
        self.above = torch.zeros(config.image_fmap_size, b, self.quarter, dtype=dtype, device=device)
        self.nothing = torch.zeros(b, self.quarter, dtype=dtype, device=device)
        self.left = self.nothing

    def shift(self, x: Tensor, column: int) -> Tensor:
        """x [b, c] of the next code -> its first quarter from above, its second from the left, the rest its own."""
        above = self.above[column]
        shifted = torch.cat((above, self.left if column else self.nothing, x[:, self.half :]), dim=-1)
        above.copy_(x[:, : self.quarter])
        self.left = x[:, self.quarter : self.half]
        return shifted


class Cache:
    """All that decoding remembers of `b` candidates."""

    def __init__(self, config: DalleConfig, prompt: Prompt, b: int, dtype: torch.dtype, device: torch.device) -> None:
        self.prompt, self.b, self.fmap = prompt, b, config.image_fmap_size
        self.images = [ImageKeys(kind, config, b, dtype, device) for kind in config.layer_kinds]
        self.attention_shifts = [ShiftState(config, b, dtype, device) for _ in config.layer_kinds]
        self.feed_forward_shifts = [ShiftState(config, b, dtype, device) for _ in config.layer_kinds]


def slots_of(kind: AttentionKind, config: DalleConfig) -> tuple[int, int]:
    """(groups, slots in a group) of keys that a layer keeps of one candidate."""
    fmap = config.image_fmap_size
    window = min(config.conv_kernel, fmap)
    return {"row": (1, fmap), "column": (fmap, fmap), "conv": (1, window * fmap), "full": (1, fmap * fmap)}[kind]


def bytes_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Size of the caches of one candidate."""
    keys = sum(math.prod(slots_of(kind, config)) for kind in config.layer_kinds)
    shifts = 2 * config.depth * config.image_fmap_size * (config.dim // 4)
    return (2 * keys * config.heads * config.dim_head + shifts) * dtype.itemsize
