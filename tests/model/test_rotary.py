"""Both ways to rotate agree, for whole sequences and for one code, and the angles keep their precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ttt.config import DEMO
from ttt.model.dalle import Dalle
from ttt.model.rotary import Rotary, angles, rotary_channels, rotary_tables, rotate

TINY = replace(DEMO, dim=8, depth=2, heads=1, dim_head=18, text_seq_len=5, image_fmap_size=4)


@pytest.mark.parametrize("dim_head", [6, 7, 18, 32, 64])
def test_both_ways_to_rotate_agree(dim_head: int) -> None:
    pos_emb = angles(replace(TINY, dim_head=dim_head))
    x = torch.randn(2, 3, pos_emb.shape[1], dim_head)
    rotary, expected = Rotary(pos_emb, dim_head), rotate(x, *rotary_tables(pos_emb))
    torch.testing.assert_close(rotary(x), expected)
    torch.testing.assert_close(rotary(x[:, :, :4]), expected[:, :, :4])
    for position in range(3, 6):
        codes = x[:, :, position]  # [b, g, d]
        for at in (position, torch.tensor([position])):
            rotated = rotary.rotate_code(codes, rotary.at(at))
            torch.testing.assert_close(rotated, expected[:, :, position].transpose(0, 1))
            assert rotated.is_contiguous()


@pytest.mark.parametrize("dim_head", [6, 7, 18, 32, 64])
def test_the_number_of_rotated_channels(dim_head: int) -> None:
    config = replace(TINY, dim_head=dim_head)
    assert rotary_channels(config) == angles(config).shape[-1]


def test_the_complex_product_is_used_only_if_pairs_have_one_angle() -> None:
    pos_emb = angles(TINY)
    assert Rotary(pos_emb, 18).factors is not None
    pos_emb[0, 3, 2] += 0.5
    assert Rotary(pos_emb, 18).factors is None


def test_channels_without_an_angle_stay() -> None:
    pos_emb = angles(replace(TINY, dim_head=64))
    x = torch.randn(pos_emb.shape[1], 64)
    turned = Rotary(pos_emb, 64)(x)
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
