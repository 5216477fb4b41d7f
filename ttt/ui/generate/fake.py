"""FakeGenerator: streams drawn images like the real pipeline, to run the tab alone. Independent of model and Gradio."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

from PIL import Image

from ttt.errors import Cancelled, InvalidInput
from ttt.sampling.params import SamplingParams
from ttt.types import Progress, RankedImage
from ttt.ui.fake_images import SIDE, draw_image

ROWS = 16


class FakeGenerator:
    """Deterministic in prompt and seed; takes `delay` seconds for each row of an image."""

    name = "fake"

    def __init__(self, delay: float = 0.05) -> None:
        self.delay = delay

    def stream(self, prompt: str, params: SamplingParams, cancel: threading.Event | None = None) -> Iterator[Progress]:
        if prompt.isascii() is False:
            raise InvalidInput("the fake model reads only ASCII letters")
        images = [draw_image(prompt, params.seed, i) for i in range(params.candidates)]
        yield Progress("prefill", 0.0)
        yield Progress("sampling", 0.0, contact_sheet(images, 0.02))
        for row, next_row in pairwise(range(ROWS + 1)):
            if cancel is not None and cancel.wait(self.delay):
                raise Cancelled("stopped on request")
            if cancel is None:
                time.sleep(self.delay)
            yield Progress("sampling", 0.9 * next_row / ROWS, contact_sheet(images, (row + 1) / ROWS))
        yield Progress("ranking", 0.95)
        scores = [random.Random(f"{prompt}/{params.seed}/{i}").uniform(15, 35) for i in range(len(images))]
        order = sorted(range(len(images)), key=lambda i: (-scores[i], i))
        ranking = tuple(RankedImage(images[i], scores[i], i, params.seed) for i in order)
        yield Progress("done", 1.0, contact_sheet(images, 1.0), ranking[: params.keep], ranking)


def contact_sheet(images: list[Image.Image], drawn: float, columns: int = 16) -> Image.Image:
    """All images in a grid, of which only the upper part `drawn` (0 to 1) is shown."""
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "#d4d4d8")
    height = max(1, int(SIDE * drawn))
    for i, image in enumerate(images):
        sheet.paste(image.crop((0, 0, SIDE, height)), (i % columns * SIDE, i // columns * SIDE))
    return sheet
