"""Contact sheets: the grid, where tiles are drawn, and the palette."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny import TINY_VQGAN, tiny_vqgan
from ttt.config import VqganConfig
from ttt.model.vqgan import Vqgan
from ttt.preview import GAP, MAX_WIDTH, NOT_SAMPLED, ContactSheet, code_palette, columns_of

PALETTE = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (4, 4), (8, 4), (12, 4), (16, 4), (32, 8), (64, 16), (100, 20), (128, 16)]
)
def test_grids_are_wide_and_full(count: int, columns: int):
    chosen = columns_of(count)
    rows = -(-count // chosen)
    assert rows * chosen - count < chosen
    assert chosen >= rows
    if count == 128:
        assert chosen == columns


@pytest.mark.parametrize("fmap", [4, 16, 32, 128])
@pytest.mark.parametrize("count", [1, 4, 7, 64, 128, 1024])
def test_a_sheet_is_bounded(count: int, fmap: int):
    sheet = ContactSheet(count, fmap, PALETTE)
    image = sheet.image()
    assert sheet.tile % fmap == 0
    assert image.width <= max(MAX_WIDTH, sheet.columns * (fmap + GAP))
    assert image.mode == "RGB"


def test_codes_are_drawn_where_they_belong_and_the_rest_is_grey():
    sheet = ContactSheet(3, 2, PALETTE)
    codes = np.array([[0, 1, 2, 0], [2, 2, 2, 2], [1, 1, 1, 1]])
    sheet.show_codes(codes, [3, 4, 0])
    image = np.asarray(sheet.image())
    step, p = sheet.tile + GAP, sheet.patch

    def colour(candidate: int, row: int, column: int) -> tuple[int, ...]:
        top, left = divmod(candidate, sheet.columns)
        y, x = top * step + row * p + p // 2, left * step + column * p + p // 2
        return tuple(int(v) for v in image[y, x])

    assert [colour(0, *rc) for rc in ((0, 0), (0, 1), (1, 0))] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert colour(0, 1, 1) == NOT_SAMPLED
    assert {colour(1, r, c) for r in (0, 1) for c in (0, 1)} == {(0, 0, 255)}
    assert colour(2, 0, 0) == NOT_SAMPLED


def test_a_decoded_image_stays_when_codes_are_drawn_again():
    sheet = ContactSheet(2, 2, PALETTE)
    codes = np.zeros((2, 4), dtype=np.int64)
    sheet.show_image(1, np.full((8, 8, 3), 99, dtype=np.uint8))
    sheet.show_codes(codes, [4, 4])
    image = np.asarray(sheet.image())
    assert (image[0, 0] == (255, 0, 0)).all()
    assert (image[0, -1] == 99).all()


def test_the_palette_is_what_the_decoder_shows_in_an_even_area():
    vqgan = tiny_vqgan()
    palette = code_palette(vqgan, torch.device("cpu"))
    assert palette.shape == (20, 3, 2, 2)
    with torch.inference_mode():
        expected = vqgan.decode(torch.full((1, 2, 2), 7))[0, :, :2, :2]
    torch.testing.assert_close(palette[7], expected, atol=1e-5, rtol=0)


def test_a_large_code_book_gets_estimated_colours():
    config = VqganConfig.from_dict({**TINY_VQGAN.to_dict(), "n_embed": 3000})
    torch.manual_seed(0)
    vqgan = Vqgan(config).eval()
    palette = code_palette(vqgan, torch.device("cpu"))
    assert palette.shape == (3000, 3, 1, 1)
    with torch.inference_mode():
        true = torch.cat([vqgan.decode(codes[:, None, None]) for codes in torch.arange(3000).split(500)]).mean((2, 3))
    error = (palette[:, :, 0, 0] - true).abs().mean()
    assert error < 0.7 * (true - true.mean(0)).abs().mean(), "better than one colour for all"
