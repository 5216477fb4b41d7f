"""One request, from prompt to ranked pictures: the stages, previews, shares of time. Knows no files.

Its state is its own, so that requests of several threads never meet; of the pipeline it only reads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ttt.errors import Cancelled
from ttt.hardware import is_small, memory_budget
from ttt.linear import MIN_ROWS
from ttt.preview import ContactSheet
from ttt.sampling.cache import Prompt
from ttt.sampling.decode import prefill
from ttt.sampling.paint import Canvas, memory_per_candidate, painting
from ttt.sampling.params import SamplingParams
from ttt.types import Progress, RankedImage, Stage
from ttt.workers import Work, WorkerPool

if TYPE_CHECKING:
    from ttt.pipeline import TextToImage

PREVIEW_SHARE = 0.04
"""Of the time since the last one, what a preview may take."""
DECODE_AT_ONCE = 2
"""Images a thread decodes together: more are slower on a CPU, for they leave its caches."""
SHARES: dict[Stage, float] = {"reading": 0.01, "painting": 0.55, "decoding": 0.38, "ranking": 0.06}
"""Of the time of a request, until one has been measured."""


@dataclass
class Request:
    pipe: TextToImage
    prompt: str
    params: SamplingParams
    cancel: threading.Event | None = None
    chunk: int | None = None
    _fraction: float = 0.0
    _seconds: dict[Stage, float] = field(default_factory=dict)
    _preview_due: float = 0.0

    def run(self) -> Iterator[Progress]:
        """reading -> painting -> decoding -> ranking -> done."""
        pipe, params, started = self.pipe, self.params, time.perf_counter()
        yield Progress("reading", 0.0)
        self._check()
        prompt = self._read()
        canvas = Canvas(params.candidates, pipe.dalle.config)
        self.sheet = ContactSheet(params.candidates, pipe.dalle.config.image_fmap_size, pipe.palette)
        self._seconds["reading"] = time.perf_counter() - started
        yield from self._paint(painting(pipe.weights, prompt, params, canvas), canvas)
        del prompt
        config = pipe.vqgan.config
        self.images = np.zeros((params.candidates, config.resolution, config.resolution, 3), dtype=np.uint8)
        yield from self._decode(canvas)
        self.scores = torch.zeros(params.candidates)
        yield from self._rank()
        pipe.shares = {stage: s / sum(self._seconds.values()) for stage, s in self._seconds.items()}
        ranking = self._ranking()
        yield Progress("done", 1.0, self.sheet.picture(), ranking[: params.keep], ranking)

    def _read(self) -> Prompt:
        """Of a small model on one core: more would wait for one another longer than they work."""
        pipe, small, read = self.pipe, is_small(self.pipe.dalle.config), []

        def work(piece: range, pool: WorkerPool) -> None:
            read.append(prefill(pipe.weights, pipe.text_tokens([self.prompt]), check=pool.check))

        for _ in WorkerPool(1, 1, work, pipe.device, self.cancel, cores=1 if small else None).run():
            pass
        return read[0]

    def _paint(self, work: Work, canvas: Canvas) -> Iterator[Progress]:
        pipe, params = self.pipe, self.params
        fits = memory_budget(pipe.device) // memory_per_candidate(pipe.dalle.config, pipe.dtype)
        pool = WorkerPool(
            params.candidates,
            min(params.candidates, self.chunk or max(MIN_ROWS, fits)),
            work,
            pipe.device,
            self.cancel,
            padded_to=MIN_ROWS,
        )
        for done in self._stage("painting", pool, lambda: canvas.fraction):
            if pipe.scorer_failed:  # better now than after the last code
                _ = pipe.scorer
            yield Progress("painting", done, self._preview(canvas))

    def _decode(self, canvas: Canvas) -> Iterator[Progress]:
        pipe, finished = self.pipe, [False] * self.params.candidates
        shown: set[int] = set()

        def work(piece: range, pool: WorkerPool) -> None:
            pool.check()
            images = pipe.decode(canvas.codes[piece.start : piece.stop])
            pixels = images.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1)
            self.images[piece.start : piece.stop] = pixels.cpu().numpy()
            finished[piece.start : piece.stop] = [True] * len(piece)
            pool.notify()

        pool = WorkerPool(len(finished), self._decode_size(), work, pipe.device, self.cancel, min_piece=1)
        for done in self._stage("decoding", pool, lambda: sum(finished) / len(finished)):
            for candidate in [i for i, is_done in enumerate(finished) if is_done and i not in shown]:
                self.sheet.show_image(candidate, self.images[candidate])
                shown.add(candidate)
            yield Progress("decoding", done, self._timed_picture(force=len(shown) == len(finished)))

    def _rank(self) -> Iterator[Progress]:
        pipe, count = self.pipe, self.params.candidates
        yield Progress("ranking", self._whole("ranking", 0.0))
        while not pipe.scorer_ready:  # waiting in a thread could not be cancelled
            time.sleep(0.1)
            self._check()
            yield Progress("ranking", self._fraction)
        ranked = [False] * count

        def work(piece: range, pool: WorkerPool) -> None:
            pool.check()
            # From the 8-bit pixels: anyone can compute the same scores from the saved pictures.
            pixels = torch.from_numpy(self.images[piece.start : piece.stop]).to(pipe.device)
            images = pixels.permute(0, 3, 1, 2).float() / 255
            self.scores[piece.start : piece.stop] = pipe.scorer.scores(images, self.prompt).float().cpu()
            ranked[piece.start : piece.stop] = [True] * len(piece)
            pool.notify()

        pool = WorkerPool(count, 8 * self._decode_size(), work, pipe.device, self.cancel, min_piece=1)
        for done in self._stage("ranking", pool, lambda: sum(ranked) / count):
            yield Progress("ranking", done)

    def _stage(self, stage: Stage, pool: WorkerPool, part_done: Callable[[], float]) -> Iterator[float]:
        """Run a pool; yields the fraction of the whole request after each of its ticks and at its end."""
        started = time.perf_counter()
        with closing(pool.run()) as ticks:
            for _ in ticks:
                yield self._whole(stage, part_done())
        self._seconds[stage] = time.perf_counter() - started
        self._check()
        yield self._whole(stage, 1.0)

    def _whole(self, stage: Stage, part: float) -> float:
        shares = self.pipe.shares or SHARES
        before = 0.0
        for name, share in shares.items():
            if name == stage:
                self._fraction = max(self._fraction, min(0.999, before + share * part))
            before += share
        return self._fraction

    def _preview(self, canvas: Canvas) -> Image.Image | None:
        if time.perf_counter() < self._preview_due or not any(canvas.painted):  # an empty sheet would delay the first
            return None
        started = time.thread_time()
        self.sheet.show_codes(canvas.codes.numpy(), canvas.painted)
        return self._timed_picture(started, force=True)

    def _timed_picture(self, started: float | None = None, *, force: bool = False) -> Image.Image | None:
        """The sheet, unless the last one was so recent that previews would cost more than their share."""
        if time.perf_counter() < self._preview_due and not force:
            return None
        started = time.thread_time() if started is None else started  # what it takes, not how long others made it wait
        picture = self.sheet.picture()
        self._preview_due = time.perf_counter() + (time.thread_time() - started) / PREVIEW_SHARE
        return picture

    def _decode_size(self) -> int:
        """Images to decode at once in all threads together."""
        config, device = self.pipe.vqgan.config, self.pipe.device
        bytes_per_image = 4 * 8 * config.ch * config.resolution**2
        wanted = DECODE_AT_ONCE * torch.get_num_threads() if device.type == "cpu" else 32
        return int(max(1, min(wanted, memory_budget(device) // bytes_per_image)))

    def _ranking(self) -> tuple[RankedImage, ...]:
        scores = self.scores.tolist()
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        return tuple(RankedImage(Image.fromarray(self.images[i]), scores[i], i, self.params.seed) for i in order)

    def _check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("stopped on request")
