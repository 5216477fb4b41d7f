"""Carries out a request: loads the model, queues the job, generates, stores the result. Independent of Gradio."""

from __future__ import annotations

import io
import time
from functools import partial
from typing import TYPE_CHECKING

from ttt.tokenizer import check_prompt
from ttt.ui.generate.models import ImageGenerator, ModelRegistry
from ttt.ui.generate.queue import Job, JobQueue, Update
from ttt.ui.generate.results import ResultStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from ttt.sampling.params import SamplingParams
    from ttt.types import Progress

PREVIEW_WIDTH = 1024


class GenerationService:
    """What the tab and the endpoint need to have images generated."""

    def __init__(self, models: ModelRegistry, store: ResultStore, queue: JobQueue | None = None) -> None:
        self.models = models
        self.store = store
        self.queue = queue or JobQueue()

    def submit(self, user: str, prompt: str, params: SamplingParams, model: str, *, grace: float = 0.0) -> Job:
        """Queue a request once its model is loaded. Raises InvalidInput if the prompt or the model is wrong."""
        prompt = check_prompt(prompt)
        source = self.models.source(model)
        job = self.queue.create(user, grace=grace)
        job.publish(Update("loading", message=source.label))

        def ready(generator: ImageGenerator) -> None:
            self.queue.enqueue(job, partial(self._generate, generator, prompt, params, model))

        def failed(reason: str) -> None:
            job.publish(Update("failed", message=f"The model “{source.key}” could not be loaded: {reason}"))

        self.models.when_ready(source.key, ready, failed)
        return job

    def _generate(self, generator: ImageGenerator, prompt: str, params: SamplingParams, model: str, job: Job) -> None:
        started = time.monotonic()
        preview: bytes | None = None
        last: Progress | None = None
        for last in generator.stream(prompt, params, job.cancel):
            if job.cancel.is_set():
                return
            if last.sheet is not None:
                preview = jpeg(last.sheet)
            job.publish(Update("working", stage=last.stage, fraction=last.fraction, preview=preview))
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
        job.publish(Update("finished", fraction=1.0, preview=preview, result=result.id))


def jpeg(preview: Image) -> bytes:
    """The preview, small enough for a slow connection."""
    if preview.width > PREVIEW_WIDTH:
        size = (PREVIEW_WIDTH, max(1, round(preview.height * PREVIEW_WIDTH / preview.width)))
        preview = preview.resize(size, reducing_gap=2.0)
    buffer = io.BytesIO()
    preview.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
