"""A request from the form's values to the stored result: model, queue, painting. Knows no gradio and no torch."""

from __future__ import annotations

import io
import time
from functools import partial
from typing import TYPE_CHECKING

from ttt.tokenizer import check_prompt
from ttt.ui.generate.models import ModelShelf, Painter
from ttt.ui.generate.queue import Desk, Job, Update
from ttt.ui.generate.results import ResultStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from ttt.sampling.params import SamplingParams
    from ttt.types import Progress

SHEET_WIDTH = 1024


class Studio:
    """What a tab or an endpoint needs to have pictures painted."""

    def __init__(self, shelf: ModelShelf, store: ResultStore, desk: Desk | None = None) -> None:
        self.shelf = shelf
        self.store = store
        self.desk = desk or Desk()

    def submit(self, user: str, prompt: str, params: SamplingParams, model: str, *, grace: float = 0.0) -> Job:
        """Queue a request, behind the loading of its model if need be; InvalidInput when it cannot be done."""
        prompt = check_prompt(prompt)
        source = self.shelf.source(model)
        job = self.desk.open(user, grace=grace)
        job.publish(Update("loading", message=source.label))

        def ready(painter: Painter) -> None:
            self.desk.enqueue(job, partial(self._paint, painter, prompt, params, model))

        def failed(reason: str) -> None:
            job.publish(Update("failed", message=f"The model “{source.key}” cannot be used: {reason}"))

        self.shelf.when_ready(source.key, ready, failed)
        return job

    def _paint(self, painter: Painter, prompt: str, params: SamplingParams, model: str, job: Job) -> None:
        started = time.monotonic()
        sheet: bytes | None = None
        last: Progress | None = None
        for last in painter.stream(prompt, params, job.cancel):
            if job.cancel.is_set():
                return
            if last.sheet is not None:
                sheet = jpeg(last.sheet)
            job.publish(Update("working", stage=last.stage, fraction=last.fraction, sheet=sheet))
        if last is None or last.stage != "done":
            return
        result = self.store.save(
            prompt=prompt,
            params=params,
            model=model,
            images=last.images,
            ranking=last.ranking,
            seconds=time.monotonic() - started,
        )
        job.publish(Update("finished", fraction=1.0, sheet=sheet, result=result.id))


def jpeg(sheet: Image) -> bytes:
    """A preview that a slow line can carry."""
    if sheet.width > SHEET_WIDTH:
        sheet = sheet.resize((SHEET_WIDTH, max(1, round(sheet.height * SHEET_WIDTH / sheet.width))), reducing_gap=2.0)
    buffer = io.BytesIO()
    sheet.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
