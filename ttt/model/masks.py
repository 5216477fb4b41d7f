"""Attention masks: which positions each position may see, for every kind of attention."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ttt.config import AttentionKind, DalleConfig


def image_mask(kind: AttentionKind, fmap: int, kernel: int = 5) -> Tensor:
    """Mask among codes: causal, bool [n, n] with n = fmap ** 2, True where a query (the row) sees a key."""
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
    """Mask over the codes of the same and the k - 1 previous lines, which are rows, or columns for "column".

    Bool [1, w, w] for "row" and "column", which see only their own line; [l, w, k * w] for "conv".
    """
    w = config.image_fmap_size
    index = torch.arange(w, device="cpu")
    left = index[:, None] - index  # [w, w]: distance to the left
    if kind != "conv":
        return (left >= 0)[None]
    k = config.conv_kernel
    exists = index[:, None] + torch.arange(k, device="cpu") >= k - 1  # [l, k]: line l - (k - 1) + i is in the image
    sees = exists[:, None, :, None] & ((left >= 0) & (left < k))[:, None]
    return sees.flatten(2)


@lru_cache(maxsize=32)
def mask_on(kind: AttentionKind, config: DalleConfig, device: torch.device) -> Tensor:
    """`line_mask`, or `attention_mask` for "full", cached per device; read only."""
    with torch.inference_mode(False):  # a tensor of inference mode cannot be saved for a backward pass
        return (attention_mask if kind == "full" else line_mask)(kind, config).to(device)
