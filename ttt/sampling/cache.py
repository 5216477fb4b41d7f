"""Caches of sampling: the prompt's keys, shared by all candidates; per candidate, only the keys that each layer's mask
needs; and the channels that token shift carries over.

Per candidate, a row layer keeps the current row, a column layer all codes (of which it reads one column), a
convolutional layer as many rows as its kernel is high, and full attention all codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt.config import AttentionKind, DalleConfig

READ_MULTIPLE = 16
"""Full attention reads keys in multiples of this, because CPU libraries are slow on tiny matrices (8 keys took four
times as long as 16). Other kinds read all their slots: reading a part of them would copy it first."""


@dataclass(frozen=True)
class PrefillResult:
    """Keys, values and logits of a prompt. Read-only, so all candidates and threads share them."""

    keys: list[Tensor]
    """Rotated keys of every layer, [h, t, d]."""
    values: list[Tensor]
    logits: Tensor
    """Logits of the first code, [v] float32."""


class ImageKeys:
    """Keys and values of the codes in one layer: buffer [groups, 2, h * b, slots, d], written in place.

    Keys are rotated by their position before they are stored, so their order in the buffer does not matter. The buffer
    starts with zeros because slots that are not written yet are read too, with probability 0.
    """

    def __init__(
        self, kind: AttentionKind, config: DalleConfig, b: int, dtype: torch.dtype, device: torch.device, hidden: Tensor
    ) -> None:
        """hidden: `slot_mask` of the kind."""
        self.kind, self.fmap, self.window, self.hidden = kind, config.image_fmap_size, window_of(config), hidden
        groups, slots = slots_of(kind, config)
        self.buffer = torch.zeros(groups, 2, config.heads * b, slots, config.dim_head, dtype=dtype, device=device)

    def add(self, kv: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store kv [2, h * b, d] of the code at `position`.

        Returns keys and values [2, h * b, k, d] of its group, and bool [k], True for those that the code must not see.
        """
        group, slot = slot_of(self.kind, position, self.fmap, self.window)
        keys, hidden = self.buffer[group], self.hidden[position if self.kind == "conv" else slot]
        keys[:, :, slot] = kv
        if self.kind == "full":
            read = -(-(slot + 1) // READ_MULTIPLE) * READ_MULTIPLE
            return keys[:, :, :read], hidden[:read]
        return keys, hidden


class ShiftState:
    """The channels that token shift brings from above and from the left into one branch of one layer."""

    def __init__(self, config: DalleConfig, b: int, dtype: torch.dtype, device: torch.device) -> None:
        self.half, self.quarter = config.dim // 2, config.dim // 4
        self.above = torch.zeros(config.image_fmap_size, b, self.quarter, dtype=dtype, device=device)
        self.zeros = torch.zeros(b, self.quarter, dtype=dtype, device=device)
        self.left = self.zeros

    def shift(self, x: Tensor, column: int) -> Tensor:
        """x [b, c] of the current code -> first quarter from above, second from the left, the rest unchanged."""
        above = self.above[column]
        shifted = torch.cat((above, self.left if column else self.zeros, x[:, self.half :]), dim=-1)
        above.copy_(x[:, : self.quarter])
        self.left = x[:, self.quarter : self.half]
        return shifted


class Cache:
    """Everything that `decode_one_code` keeps of `b` candidates between codes."""

    def __init__(
        self, config: DalleConfig, prompt: PrefillResult, b: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.prompt, self.b, self.fmap = prompt, b, config.image_fmap_size
        hidden = {kind: slot_mask(kind, config).to(device) for kind in set(config.layer_kinds)}
        self.images = [ImageKeys(kind, config, b, dtype, device, hidden[kind]) for kind in config.layer_kinds]
        self.attention_shifts = [ShiftState(config, b, dtype, device) for _ in config.layer_kinds]
        self.feed_forward_shifts = [ShiftState(config, b, dtype, device) for _ in config.layer_kinds]


def window_of(config: DalleConfig) -> int:
    """Rows of codes, including its own, that a code of a convolutional layer sees."""
    return min(config.conv_kernel, config.image_fmap_size)


def slots_of(kind: AttentionKind, config: DalleConfig) -> tuple[int, int]:
    """(groups, slots per group) of the keys that a layer keeps of one candidate; a code sees keys of one group."""
    fmap = config.image_fmap_size
    ring = window_of(config) * fmap
    return {"row": (1, fmap), "column": (fmap, fmap), "conv": (1, ring), "full": (1, fmap * fmap)}[kind]


def slot_of(kind: AttentionKind, position: int, fmap: int, window: int) -> tuple[int, int]:
    """(group, slot) of the key of the code at `position`."""
    row, column = divmod(position, fmap)
    if kind == "conv":  # a ring of rows: each new row overwrites the oldest
        return 0, row % window * fmap + column
    return {"row": (0, column), "column": (column, row), "full": (0, position)}[kind]


def slot_mask(kind: AttentionKind, config: DalleConfig) -> Tensor:
    """True for the slots of its group that a code must not see.

    Bool [slots, slots], indexed by the slot of the code; for the convolution [n, slots], indexed by its position,
    because a slot of the ring holds other rows over time.
    """
    fmap, (_, slots) = config.image_fmap_size, slots_of(kind, config)
    if kind != "conv":
        return torch.ones(slots, slots, dtype=torch.bool).triu(1)
    window = window_of(config)
    lines = torch.arange(fmap)
    # [row, window]: how many rows ago each row of the ring was written, when the code is in `row`.
    age = (lines[:, None] - torch.arange(window)) % window
    visible_rows = lines[:, None] >= age  # older than the first row: not written yet
    # [column, column]: distance to the left; negative to the right, where nothing is visible.
    distance = lines[:, None] - lines
    visible_columns = (distance >= 0) & (distance < window)
    return ~(visible_rows[:, None, :, None] & visible_columns[None, :, None, :]).view(fmap * fmap, slots)


def bytes_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Size of the caches of one candidate."""
    keys = sum(math.prod(slots_of(kind, config)) for kind in config.layer_kinds)
    shifts = 2 * config.depth * config.image_fmap_size * (config.dim // 4)
    return (2 * keys * config.heads * config.dim_head + shifts) * dtype.itemsize
