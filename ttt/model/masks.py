"""Which positions each position may see, per kind of attention. Knows no weights."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ttt.config import AttentionKind, DalleConfig


def image_mask(kind: AttentionKind, fmap: int, kernel: int = 5) -> Tensor:
    """Which codes each code sees: bool [n, n], n = fmap ** 2, rows are queries; always causal."""
    position = torch.arange(fmap**2, device="cpu")
    rows, columns = position // fmap, position % fmap
    up = rows[:, None] - rows
    left = columns[:, None] - columns
    sees = {
        "row": up == 0,
        "column": left == 0,
        "conv": (up >= 0) & (up < kernel) & (left >= 0) & (left < kernel),
        "full": torch.ones_like(up, dtype=torch.bool),
    }[kind]
    return sees.tril()


def attention_mask(kind: AttentionKind, config: DalleConfig) -> Tensor:
    """Bool [n, n] over `<bos>`, the text and all codes: text sees text, codes see all text and `image_mask`."""
    n, text_len = config.text_len + config.image_seq_len, config.text_len
    mask = torch.ones(n, n, dtype=torch.bool, device="cpu").tril()
    mask[text_len:, text_len:] = image_mask(kind, config.image_fmap_size, config.conv_kernel)
    return mask


def line_mask(kind: AttentionKind, config: DalleConfig) -> Tensor:
    """Within lines of the image (rows, or columns for "column"), which codes of the last k lines a code sees.

    Bool [1, w, w] for "row" and "column", which look at their own line alone; [l, w, k * w] for "conv".
    """
    w = config.image_fmap_size
    place = torch.arange(w, device="cpu")
    left = place[:, None] - place
    if kind != "conv":
        return (left >= 0)[None]
    k = config.conv_kernel
    exists = place[:, None] + torch.arange(k, device="cpu") >= k - 1  # [l, k]: line l - (k - 1) + i is in the image
    sees = exists[:, None, :, None] & ((left >= 0) & (left < k))[:, None]
    return sees.flatten(2)


@lru_cache(maxsize=32)
def mask_on(kind: AttentionKind, config: DalleConfig, device: torch.device) -> Tensor:
    """`line_mask`, or `attention_mask` for "full", kept per device; do not write to it."""
    with torch.inference_mode(False):  # one made in inference mode could not be saved for a later backward
        return (attention_mask if kind == "full" else line_mask)(kind, config).to(device)


def visible_image_keys(kind: AttentionKind, fmap: int, position: int, kernel: int = 5) -> list[int]:
    """Codes that the code at `position` sees, itself the last."""
    row, column = divmod(position, fmap)
    above, before = {
        "row": (0, column),
        "column": (row, 0),
        "conv": (min(row, kernel - 1), min(column, kernel - 1)),
    }.get(kind, (-1, -1))
    if kind == "full":
        return list(range(position + 1))
    return [r * fmap + c for r in range(row - above, row + 1) for c in range(column - before, column + 1)]


def image_key_table(kind: AttentionKind, fmap: int, kernel: int = 5) -> tuple[Tensor, Tensor]:
    """`visible_image_keys` of every position as (index int64 [n, k], valid bool [n, k]); invalid entries index 0."""
    keys = [visible_image_keys(kind, fmap, position, kernel) for position in range(fmap**2)]
    k = max(map(len, keys))
    index = torch.tensor([row + [0] * (k - len(row)) for row in keys])
    valid = torch.arange(k) < torch.tensor([len(row) for row in keys])[:, None]
    return index, valid
