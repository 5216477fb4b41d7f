"""Both ways to rotate agree, and the angles keep their precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ttt.config import DEMO
from ttt.model.dalle import Dalle
from ttt.model.rotary import _rotate_complex, angles, rotary_channels, rotary_tables, rotate, rotation

TINY = replace(DEMO, dim=8, depth=2, heads=1, dim_head=18, text_seq_len=5, image_fmap_size=4)


@pytest.mark.parametrize("dim_head", [6, 7, 18, 32, 64])
def test_both_ways_to_rotate_agree(dim_head: int) -> None:
    pos_emb = angles(replace(TINY, dim_head=dim_head))
    x = torch.randn(2, 3, pos_emb.shape[1], dim_head)
    torch.testing.assert_close(rotation(pos_emb, dim_head)(x), rotate(x, *rotary_tables(pos_emb)))


@pytest.mark.parametrize("dim_head", [6, 7, 18, 32, 64])
def test_the_number_of_rotated_channels(dim_head: int) -> None:
    config = replace(TINY, dim_head=dim_head)
    assert rotary_channels(config) == angles(config).shape[-1]


def test_the_fast_way_is_taken_only_where_pairs_turn_alike() -> None:
    pos_emb = angles(TINY)
    assert rotation(pos_emb, 18).func is _rotate_complex  # type: ignore[attr-defined]
    pos_emb[0, 3, 2] += 0.5
    assert rotation(pos_emb, 18).func is rotate  # type: ignore[attr-defined]


def test_channels_without_an_angle_stay() -> None:
    pos_emb = angles(replace(TINY, dim_head=64))
    x = torch.randn(pos_emb.shape[1], 64)
    turned = rotation(pos_emb, 64)(x)
    assert torch.equal(turned[:, 60:], x[:, 60:])
    assert not torch.allclose(turned[1:, :60], x[1:, :60])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_angles_stay_float32_when_the_model_does_not() -> None:
    dalle = Dalle(TINY)
    before = dalle.transformer.pos_emb.clone()
    dalle.to(torch.bfloat16)
    assert dalle.to_logits.weight.dtype == torch.bfloat16
    assert torch.equal(dalle.transformer.pos_emb, before)
    assert dalle(torch.zeros(1, 5, dtype=torch.long)).dtype == torch.bfloat16
