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
"""Keys of full attention are read in multiples of this: tiny matrices take a slow path in CPU libraries (measured:
8 keys cost four times what 16 cost). The other kinds read all their slots, for a part of them would be copied first."""


@dataclass(frozen=True)
class PrefillResult:
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
        self, kind: AttentionKind, config: DalleConfig, b: int, dtype: torch.dtype, device: torch.device, unseen: Tensor
    ) -> None:
        """unseen: the kind's own of `unseen_slots`."""
        self.kind, self.fmap, self.window, self.unseen = kind, config.image_fmap_size, window_of(config), unseen
        groups, slots = slots_of(kind, config)
        self.buffer = torch.zeros(groups, 2, config.heads * b, slots, config.dim_head, dtype=dtype, device=device)

    def add(self, kv: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store kv [2, h * b, d] of the code at `position`; -> keys and values [2, h * b, k, d] of its group, and
        which of these the code does not see, bool [k]; itself it sees.
        """
        group, slot = place_of(self.kind, position, self.fmap, self.window)
        keys, unseen = self.buffer[group], self.unseen[position if self.kind == "conv" else slot]
        keys[:, :, slot] = kv
        if self.kind == "full":
            read = -(-(slot + 1) // READ_MULTIPLE) * READ_MULTIPLE
            return keys[:, :, :read], unseen[:read]
        return keys, unseen


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

    def __init__(
        self, config: DalleConfig, prompt: PrefillResult, b: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.prompt, self.b, self.fmap = prompt, b, config.image_fmap_size
        unseen = {kind: unseen_slots(kind, config).to(device) for kind in set(config.layer_kinds)}
        self.images = [ImageKeys(kind, config, b, dtype, device, unseen[kind]) for kind in config.layer_kinds]
        self.attention_shifts = [ShiftState(config, b, dtype, device) for _ in config.layer_kinds]
        self.feed_forward_shifts = [ShiftState(config, b, dtype, device) for _ in config.layer_kinds]


def window_of(config: DalleConfig) -> int:
    """Rows of codes, its own among them, that a code of a convolutional layer sees."""
    return min(config.conv_kernel, config.image_fmap_size)


def slots_of(kind: AttentionKind, config: DalleConfig) -> tuple[int, int]:
    """(groups, slots in a group) of keys that a layer keeps of one candidate."""
    fmap = config.image_fmap_size
    ring = window_of(config) * fmap
    return {"row": (1, fmap), "column": (fmap, fmap), "conv": (1, ring), "full": (1, fmap * fmap)}[kind]


def place_of(kind: AttentionKind, position: int, fmap: int, window: int) -> tuple[int, int]:
    """(group, slot) of the key of the code at `position`."""
    row, column = divmod(position, fmap)
    if kind == "conv":
        return 0, row % window * fmap + column
    return {"row": (0, column), "column": (column, row), "full": (0, position)}[kind]


def unseen_slots(kind: AttentionKind, config: DalleConfig) -> Tensor:
    """Which slots of its group a code does not see: bool [slots, slots] by the slot of the code, and of the
    convolution, whose slots are a ring of rows, [n, slots] by its position.
    """
    fmap, (_, slots) = config.image_fmap_size, slots_of(kind, config)
    if kind != "conv":
        return torch.ones(slots, slots, dtype=torch.bool).triu(1)
    window = window_of(config)
    lines = torch.arange(fmap)
    age = (lines[:, None] - torch.arange(window)) % window  # of each line of the ring, when row `lines` is painted
    behind = lines[:, None] - lines  # columns to the right, or not yet painted, are negative
    seen_rows = lines[:, None] >= age  # [row, window]
    seen_columns = (behind >= 0) & (behind < window)  # [column, columns]
    return ~(seen_rows[:, None, :, None] & seen_columns[None, :, None, :]).view(fmap * fmap, slots)


def bytes_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Size of the caches of one candidate."""
    keys = sum(math.prod(slots_of(kind, config)) for kind in config.layer_kinds)
    shifts = 2 * config.depth * config.image_fmap_size * (config.dim // 4)
    return (2 * keys * config.heads * config.dim_head + shifts) * dtype.itemsize
