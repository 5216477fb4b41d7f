"""Previews: all candidates as tiles of one contact sheet. Independent of sampling.

Decoding 128 partly sampled images again and again would take longer than sampling them. A palette holds what each code
looks like on its own, so drawing a preview is a table look-up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ttt.workers import WorkerPool

if TYPE_CHECKING:
    from ttt.model.vqgan import Vqgan

MAX_WIDTH = 1100
MAX_TILE = 256
GAP = 2
NOT_SAMPLED = (190, 190, 190)
BACKGROUND = (255, 255, 255)
EXACT_CODES = 1024
"""Codes that are decoded at most; in larger code books a linear fit gives the colours of the others."""
_BATCH = 64


class ContactSheet:
    """Tiles of `count` candidates; `show_codes` and `show_image` draw, `image` returns a copy."""

    def __init__(self, count: int, fmap: int, palette: Tensor) -> None:
        """palette [v, 3] of each code's colour, or [v, 3, p, p] with more detail, in [0, 1]."""
        self.count, self.fmap = count, fmap
        self.columns = columns_of(count)
        self.rows = math.ceil(count / self.columns)
        room = (MAX_WIDTH + GAP) // self.columns - GAP
        self.patch = max(1, min(MAX_TILE, room) // fmap)
        self.tile = self.patch * fmap
        self.palette = _patches(palette, self.patch)
        step = self.tile + GAP
        self._array = np.full((self.rows * step, self.columns * step, 3), BACKGROUND, dtype=np.uint8)
        tiles = self._array.reshape(self.rows, step, self.columns, step, 3).transpose(0, 2, 1, 3, 4)
        self._tiles = tiles[:, :, : self.tile, : self.tile]  # a view [rows, columns, tile, tile, 3]
        self._decoded: set[int] = set()

    def show_codes(self, codes: NDArray[np.int64], counts: Sequence[int]) -> None:
        """Draw the first `counts[i]` codes of each candidate i; codes [count, n]."""
        f, p = self.fmap, self.patch
        known = np.arange(codes.shape[1]) < np.asarray(counts)[:, None]
        drawn = self.palette[np.where(known, codes, len(self.palette) - 1)]  # [count, n, p, p, 3]
        drawn = drawn.reshape(-1, f, f, p, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, self.tile, self.tile, 3)
        if not self._decoded:
            for row in range(self.rows):
                part = drawn[row * self.columns : (row + 1) * self.columns]
                self._tiles[row, : len(part)] = part
            return
        for i in set(range(self.count)) - self._decoded:
            self._tiles[divmod(i, self.columns)] = drawn[i]

    def show_image(self, candidate: int, image: NDArray[np.uint8]) -> None:
        """Replace the candidate's codes by its image [h, w, 3]."""
        small = Image.fromarray(image).resize((self.tile, self.tile), Image.Resampling.BICUBIC, reducing_gap=2.0)
        self._tiles[divmod(candidate, self.columns)] = np.asarray(small)
        self._decoded.add(candidate)

    def image(self) -> Image.Image:
        return Image.fromarray(self._array[: self._array.shape[0] - GAP, : self._array.shape[1] - GAP])


def columns_of(count: int) -> int:
    """Columns of a grid about twice as wide as high with few empty tiles: 16 for 128, 8 for 32, 4 for 8 or 4."""
    ideal = math.sqrt(2 * count)
    if count <= 4:
        return max(1, count)
    choices = range(math.ceil(math.sqrt(count)), min(count, math.floor(1.5 * ideal)) + 1)
    return min(choices, key=lambda c: (-(-count // c) * c - count, abs(c - ideal)))


def code_palette(vqgan: Vqgan, device: torch.device) -> Tensor:
    """Image of each code: float [v, 3, f, f] in [0, 1] on the CPU; [v, 3, 1, 1] for large code books."""
    embed = vqgan.quantize.embed.weight.detach().float().cpu()  # [v, c]
    v = len(embed)
    codes = torch.linspace(0, v - 1, min(v, EXACT_CODES)).round().long()
    # Decode each code in a 2x2 field of copies, where it looks as in an even area, and keep one cell.
    fields = codes[:, None, None].expand(-1, 2, 2) if v <= EXACT_CODES else codes[:, None, None]
    cells = _cells(vqgan, fields, device)
    if v <= EXACT_CODES:
        return cells
    # Too many codes to decode for a preview: predict their colour from the embedding by ridge regression.
    x, y = _with_one(embed[codes]), cells.mean(dim=(2, 3))
    ridge = 1e-2 * len(codes) * torch.eye(x.shape[1])
    fit = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    colours = (_with_one(embed) @ fit).clamp(0, 1)
    colours[codes] = y
    return colours[:, :, None, None]


def _cells(vqgan: Vqgan, fields: Tensor, device: torch.device) -> Tensor:
    """Decode fields of codes [v, h, w] and keep the upper left cell of each: [v, 3, f, f]."""
    f = vqgan.config.downscale
    cells = torch.zeros(len(fields), 3, f, f)

    def work(piece: range, pool: WorkerPool) -> None:
        part = slice(piece.start, piece.stop)
        cells[part] = vqgan.decode(fields[part].to(device))[..., :f, :f].float().cpu()

    for _ in WorkerPool(len(fields), _BATCH, work, device).run():
        pass
    return cells


def _with_one(x: Tensor) -> Tensor:
    x = (x - x.mean(dim=0)) / (x.std() + 1e-8)
    return F.pad(x, (0, 1), value=1.0)


def _patches(palette: Tensor, patch: int) -> NDArray[np.uint8]:
    """[v, 3] or [v, 3, p, p] -> uint8 [v + 1, patch, patch, 3]; the last patch stands for codes not sampled yet."""
    palette = palette if palette.ndim == 4 else palette[:, :, None, None]
    if palette.shape[-1] > patch:
        palette = F.adaptive_avg_pool2d(palette, patch)
    elif palette.shape[-1] < patch:
        palette = F.interpolate(palette, size=patch, mode="nearest")
    patches = palette.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    grey = np.full((1, patch, patch, 3), NOT_SAMPLED, dtype=np.uint8)
    return np.concatenate((patches, grey))
