"""FakePainter: streams drawn pictures like the real pipeline, for running a tab alone. Knows no model and no gradio."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

from PIL import Image, ImageDraw

from ttt.errors import Cancelled, InvalidInput
from ttt.sampling.params import SamplingParams
from ttt.types import Progress, RankedImage

SIDE, ROWS = 128, 16
COLOURS = ("#c0392b", "#2666b0", "#2e8b57", "#d9a400", "#7d3c98", "#e67e22", "#16818a", "#444444")


class FakePainter:
    """Deterministic in prompt and seed; `delay` seconds pass between two rows."""

    name = "fake"

    def __init__(self, delay: float = 0.05) -> None:
        self.delay = delay

    def stream(self, prompt: str, params: SamplingParams, cancel: threading.Event | None = None) -> Iterator[Progress]:
        if prompt.isascii() is False:
            raise InvalidInput("the fake model reads only ASCII letters")
        pictures = [picture(prompt, params.seed, i) for i in range(params.candidates)]
        yield Progress("reading", 0.0)
        yield Progress("painting", 0.0, contact_sheet(pictures, 0.02))
        for row, next_row in pairwise(range(ROWS + 1)):
            if cancel is not None and cancel.wait(self.delay):
                raise Cancelled("stopped on request")
            if cancel is None:
                time.sleep(self.delay)
            yield Progress("painting", 0.9 * next_row / ROWS, contact_sheet(pictures, (row + 1) / ROWS))
        yield Progress("ranking", 0.95)
        scores = [random.Random(f"{prompt}/{params.seed}/{i}").uniform(15, 35) for i in range(len(pictures))]
        order = sorted(range(len(pictures)), key=lambda i: (-scores[i], i))
        ranking = tuple(RankedImage(pictures[i], scores[i], i, params.seed) for i in order)
        yield Progress("done", 1.0, contact_sheet(pictures, 1.0), ranking[: params.keep], ranking)


def picture(prompt: str, seed: int, candidate: int) -> Image.Image:
    """A shape on a plain ground, chosen by the words and the numbers."""
    rng = random.Random(hashlib.sha256(f"{prompt}/{seed}/{candidate}".encode()).digest())
    image = Image.new("RGB", (SIDE, SIDE), rng.choice(("#ffffff", "#e9edf2", "#f6efe2", "#dfe8df")))
    draw = ImageDraw.Draw(image)
    for _ in range(2):
        r, x, y = rng.randint(14, 30), rng.randint(30, 98), rng.randint(30, 98)
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape((x - r, y - r, x + r, y + r), fill=rng.choice(COLOURS))
    return image


def contact_sheet(pictures: list[Image.Image], painted: float, columns: int = 16) -> Image.Image:
    """All pictures in a grid, only their upper `painted` part drawn."""
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "#d4d4d8")
    height = max(1, int(SIDE * painted))
    for i, image in enumerate(pictures):
        sheet.paste(image.crop((0, 0, SIDE, height)), (i % columns * SIDE, i // columns * SIDE))
    return sheet
