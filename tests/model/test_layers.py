"""Token shift against a plain loop, and the initial values of LayerScale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ttt.model.layers import initial_scale, shift_tokens


def shift_one_by_one(x: Tensor, text_len: int, fmap: int) -> Tensor:
    half, quarter = x.shape[-1] // 2, x.shape[-1] // 4
    out = x.clone()
    nothing = torch.zeros_like(x[:, 0])
    for i in range(x.shape[1]):
        if i < text_len:
            out[:, i, :half] = (x[:, i - 1] if i else nothing)[:, :half]
            continue
        row, column = divmod(i - text_len, fmap)
        out[:, i, :quarter] = (x[:, i - fmap] if row else nothing)[:, :quarter]
        out[:, i, quarter:half] = (x[:, i - 1] if column else nothing)[:, quarter:half]
    return out


@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 8, 9])
@pytest.mark.parametrize("text_len", [1, 5])
def test_token_shift(m: int, text_len: int) -> None:
    x = torch.randn(2, text_len + m, 12)
    assert torch.equal(shift_tokens(x, text_len, 3), shift_one_by_one(x, text_len, 3))


def test_layerscale_of_deep_layers_starts_close_to_zero() -> None:
    assert [initial_scale(i) for i in (0, 17, 18, 23, 24, 63)] == [0.1, 0.1, 1e-5, 1e-5, 1e-6, 1e-6]
