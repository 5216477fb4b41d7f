"""Contact sheets that show a person whether a stage learns: images in rows, with text below each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ttt.atomic import atomic_file

GAP, LINE, LINES = 6, 12, 3


def write_sheet(path: Path, rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], columns: int = 3) -> None:
    """Write a PNG of `rows`: a text and images [h, w, 3] of one size each; `columns` rows stand side by side."""
    side = rows[0][1][0].shape[0]
    width = max(len(images) for _, images in rows) * side + GAP
    height = side + LINES * LINE + GAP
    sheet = Image.new("RGB", (columns * width + GAP, -(-len(rows) // columns) * height + GAP), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for i, (text, images) in enumerate(rows):
        left, top = GAP + i % columns * width, GAP + i // columns * height
        for k, pixels in enumerate(images):
            sheet.paste(Image.fromarray(pixels), (left + k * side, top))
        for k, line in enumerate(textwrap.wrap(text, (width - GAP) // 6)[:LINES]):
            canvas.text((left, top + side + k * LINE), line, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        sheet.save(partial, format="PNG")
