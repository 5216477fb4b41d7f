"""Masks against drawings, and everything that is derived from masks against the masks."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from ttt.config import AttentionKind, DalleConfig
from ttt.model.attention import attend_lines, attend_masked
from ttt.model.masks import attention_mask, image_mask, line_mask

KINDS = get_args(AttentionKind)
CONFIG = DalleConfig(
    dim=8, depth=1, heads=1, dim_head=8, text_seq_len=2, image_fmap_size=3, num_text_tokens=4, num_image_tokens=4,
    conv_kernel=3,
)  # fmt: skip

# <bos> and two text tokens, then three rows of three codes.
DRAWINGS = {
    "row": """
        100 000 000 000
        110 000 000 000
        111 000 000 000
        111 100 000 000
        111 110 000 000
        111 111 000 000
        111 000 100 000
        111 000 110 000
        111 000 111 000
        111 000 000 100
        111 000 000 110
        111 000 000 111
    """,
    "column": """
        100 000 000 000
        110 000 000 000
        111 000 000 000
        111 100 000 000
        111 010 000 000
        111 001 000 000
        111 100 100 000
        111 010 010 000
        111 001 001 000
        111 100 100 100
        111 010 010 010
        111 001 001 001
    """,
    "conv": """
        100 000 000 000
        110 000 000 000
        111 000 000 000
        111 100 000 000
        111 110 000 000
        111 111 000 000
        111 100 100 000
        111 110 110 000
        111 111 111 000
        111 100 100 100
        111 110 110 110
        111 111 111 111
    """,
    "full": """
        100 000 000 000
        110 000 000 000
        111 000 000 000
        111 100 000 000
        111 110 000 000
        111 111 000 000
        111 111 100 000
        111 111 110 000
        111 111 111 000
        111 111 111 100
        111 111 111 110
        111 111 111 111
    """,
}


def drawn(drawing: str) -> torch.Tensor:
    return torch.tensor(
        [[mark == "1" for mark in line.replace(" ", "")] for line in drawing.split("\n") if line.strip()]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_drawing(kind: AttentionKind) -> None:
    assert torch.equal(attention_mask(kind, CONFIG), drawn(DRAWINGS[kind]))


def test_the_convolution_reaches_no_further_than_its_kernel() -> None:
    seen = image_mask("conv", 7, 5)[6 * 7 + 5].view(7, 7)
    assert torch.equal(
        seen,
        drawn("""
            0000000
            0000000
            0111110
            0111110
            0111110
            0111110
            0111110
        """),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fmap", "kernel"), [(1, 5), (4, 5), (6, 3), (9, 5)])
def test_visible_keys_are_the_row_of_the_mask(kind: AttentionKind, fmap: int, kernel: int) -> None:
    for position, row in enumerate(image_mask(kind, fmap, kernel)):
        assert visible_image_keys(kind, fmap, position, kernel) == row.nonzero()[:, 0].tolist()


def visible_image_keys(kind: AttentionKind, fmap: int, position: int, kernel: int) -> list[int]:
    """The oracle: the codes that the code at `position` sees, counted by rows and columns."""
    row, column = divmod(position, fmap)
    if kind == "full":
        return list(range(position + 1))
    above, left = {
        "row": (0, column),
        "column": (row, 0),
        "conv": (min(row, kernel - 1), min(column, kernel - 1)),
    }[kind]
    return [r * fmap + c for r in range(row - above, row + 1) for c in range(column - left, column + 1)]


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_attention_by_lines_equals_masked_attention(kind: AttentionKind, kernel: int) -> None:
    config = replace(CONFIG, text_seq_len=6, image_fmap_size=4, conv_kernel=kernel)
    torch.manual_seed(0)
    for m in range(config.image_seq_len + 1):
        n = config.text_len + m
        qkv = torch.randn(3, 2, 3, n, 8, dtype=torch.float64)
        slow, fast = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
        expected = attend_masked(slow, attention_mask(kind, config)[:n, :n])
        found = attend_lines(
            fast, config.text_len, config.image_fmap_size, line_mask(kind, config), columns=kind == "column"
        )
        torch.testing.assert_close(found, expected)
        towards = torch.randn_like(expected)
        (expected * towards).sum().backward()
        (found * towards).sum().backward()
        torch.testing.assert_close(fast.grad, slow.grad)
