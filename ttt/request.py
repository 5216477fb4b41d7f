"""One request, from the tokens of a prompt to ranked images: stages, previews and progress.

A Request is built from ready parts, which it only reads, so requests may run in several threads at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ttt.config import VqganConfig
from ttt.errors import Cancelled
from ttt.hardware import is_small, memory_budget
from ttt.linear import MIN_ROWS
from ttt.preview import ContactSheet
from ttt.rerank import Scorer
from ttt.sampling.cache import PrefillResult
from ttt.sampling.decode import prefill
from ttt.sampling.params import SamplingParams
from ttt.sampling.sampler import SampledCodes, memory_per_candidate, sampling_work
from ttt.sampling.weights import DecoderWeights
from ttt.types import Progress, RankedImage, Stage
from ttt.workers import Work, WorkerPool

PREVIEW_SHARE = 0.04
"""Share of the time since the last preview that the next one may take."""
DECODE_AT_ONCE = 2
"""Images that a thread decodes together. More are slower on a CPU, because they leave its caches."""
SHARES: dict[Stage, float] = {"prefill": 0.01, "sampling": 0.55, "decoding": 0.38, "ranking": 0.06}
"""Fraction of the time of a request that each stage takes, until a request has been measured."""


class Request:
    """Generates the images of one prompt; `run` may be called once."""

    def __init__(
        self,
        prompt: str,
        params: SamplingParams,
        *,
        text: Tensor,
        weights: DecoderWeights,
        decode: Callable[[Tensor], Tensor],
        vqgan: VqganConfig,
        palette: Callable[[], Tensor],
        scorer: Future[Scorer],
        shares: Mapping[Stage, float] = SHARES,
        cancel: threading.Event | None = None,
        chunk: int | None = None,
    ) -> None:
        """text: the prompt's tokens int64 [1, text_seq_len]. decode: codes [b, n] -> images [b, 3, h, w] in [0, 1].

        palette: returns what each code looks like, for previews; may take a while. shares: fraction of the time that
        each stage is expected to take, which scales the progress. chunk: most candidates that are sampled at once.
        """
        self.prompt, self.params, self.text = prompt, params, text
        self.weights, self.decode, self.vqgan, self.palette = weights, decode, vqgan, palette
        self.scorer, self.device, self.cancel, self.chunk = scorer, weights.device, cancel, chunk
        self.seconds: dict[Stage, float] = {}
        """Duration of each finished stage."""
        self._shares = dict(shares)
        self._fraction = 0.0
        self._preview_due = 0.0

    def run(self) -> Iterator[Progress]:
        """prefill -> sampling -> decoding -> ranking -> done."""
        params, started = self.params, time.perf_counter()
        yield Progress("prefill", 0.0)
        self._check()
        prompt = self._prefill()
        sampled = SampledCodes(params.candidates, self.weights.config)
        sheet = ContactSheet(params.candidates, self.weights.config.image_fmap_size, self.palette())
        self.seconds["prefill"] = time.perf_counter() - started

        yield from self._sample(sampling_work(self.weights, prompt, params, sampled), sampled, sheet)
        del prompt  # its keys may be large

        # Allocated at once and filled in place by several threads.
        side = self.vqgan.resolution
        images = np.zeros((params.candidates, side, side, 3), dtype=np.uint8)
        yield from self._decode(sampled.codes, images, sheet)

        scores = torch.zeros(params.candidates)
        yield from self._rank(images, scores)

        ranking = self._ranking(images, scores.tolist())
        yield Progress("done", 1.0, sheet.image(), ranking[: params.keep], ranking)

    def _prefill(self) -> PrefillResult:
        """Small models use one core: synchronising threads would cost more than the work."""
        results = []

        def work(piece: range, pool: WorkerPool) -> None:
            results.append(prefill(self.weights, self.text, check=pool.check))

        cores = 1 if is_small(self.weights.config) else None
        for _ in WorkerPool(1, 1, work, self.device, self.cancel, cores=cores).run():
            pass
        return results[0]

    def _sample(self, work: Work, sampled: SampledCodes, sheet: ContactSheet) -> Iterator[Progress]:
        """Fill `sampled.codes`."""
        count = self.params.candidates
        fits = memory_budget(self.device) // memory_per_candidate(self.weights.config, self.weights.dtype)
        size = min(count, self.chunk or max(MIN_ROWS, fits))
        pool = WorkerPool(count, size, work, self.device, self.cancel, padded_to=MIN_ROWS)
        for fraction in self._stage("sampling", pool, lambda: sampled.fraction):
            if self.scorer.done():
                self.scorer.result()  # a CLIP that could not be loaded ends the request now, not after the last code
            yield Progress("sampling", fraction, self._preview(sampled, sheet))

    def _decode(self, codes: Tensor, images: NDArray[np.uint8], sheet: ContactSheet) -> Iterator[Progress]:
        """Fill `images` [candidates, h, w, 3]."""
        count = self.params.candidates
        finished = np.zeros(count, dtype=bool)
        shown: set[int] = set()

        def work(piece: range, pool: WorkerPool) -> None:
            pool.check()
            part = slice(piece.start, piece.stop)
            pixels = self.decode(codes[part]).mul(255).round_().to(torch.uint8)  # [b, 3, h, w]
            images[part] = pixels.permute(0, 2, 3, 1).cpu().numpy()
            finished[part] = True
            pool.notify()

        pool = WorkerPool(count, self._decode_size(), work, self.device, self.cancel, min_piece=1)
        for fraction in self._stage("decoding", pool, lambda: float(finished.mean())):
            for candidate in set(np.flatnonzero(finished).tolist()) - shown:
                sheet.show_image(candidate, images[candidate])
                shown.add(candidate)
            yield Progress("decoding", fraction, self._timed_image(sheet, force=len(shown) == count))

    def _rank(self, images: NDArray[np.uint8], scores: Tensor) -> Iterator[Progress]:
        """Fill `scores` [candidates]."""
        count = self.params.candidates
        yield Progress("ranking", self._total("ranking", 0.0))
        while not self.scorer.done():  # waiting in the pool's threads could not be cancelled
            time.sleep(0.1)
            self._check()
            yield Progress("ranking", self._fraction)
        scorer, ranked = self.scorer.result(), np.zeros(count, dtype=bool)

        def work(piece: range, pool: WorkerPool) -> None:
            pool.check()
            part = slice(piece.start, piece.stop)
            # From the 8-bit pixels, so that the scores can be computed again from the saved images.
            pixels = torch.from_numpy(images[part]).to(self.device).permute(0, 3, 1, 2)  # [b, 3, h, w]
            scores[part] = scorer.scores(pixels.float() / 255, self.prompt).float().cpu()
            ranked[part] = True
            pool.notify()

        pool = WorkerPool(count, 8 * self._decode_size(), work, self.device, self.cancel, min_piece=1)
        for fraction in self._stage("ranking", pool, lambda: float(ranked.mean())):
            yield Progress("ranking", fraction)

    def _ranking(self, images: NDArray[np.uint8], scores: list[float]) -> tuple[RankedImage, ...]:
        """All candidates, best first; of equal scores the lower number first."""
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        return tuple(RankedImage(Image.fromarray(images[i]), scores[i], i, self.params.seed) for i in order)

    def _stage(self, stage: Stage, pool: WorkerPool, part_done: Callable[[], float]) -> Iterator[float]:
        """Run a pool; yields the fraction of the whole request after each of its notifications and at its end."""
        started = time.perf_counter()
        with closing(pool.run()) as notifications:
            for _ in notifications:
                yield self._total(stage, part_done())
        self.seconds[stage] = time.perf_counter() - started
        self._check()
        yield self._total(stage, 1.0)

    def _total(self, stage: Stage, part: float) -> float:
        """Fraction of the whole request when `part` of a stage is done; it never falls."""
        before = 0.0
        for name, share in self._shares.items():
            if name == stage:
                # max: pieces that are sampled again after an out-of-memory error must not move the bar back.
                self._fraction = max(self._fraction, min(0.999, before + share * part))
            before += share
        return self._fraction

    def _preview(self, sampled: SampledCodes, sheet: ContactSheet) -> Image.Image | None:
        """The sheet with all codes so far, unless it is not due."""
        if time.perf_counter() < self._preview_due or not any(sampled.counts):  # an empty sheet would delay the first
            return None
        started = time.thread_time()
        sheet.show_codes(sampled.codes.numpy(), sampled.counts)
        return self._timed_image(sheet, started, force=True)

    def _timed_image(
        self, sheet: ContactSheet, started: float | None = None, *, force: bool = False
    ) -> Image.Image | None:
        """The sheet, unless previews would take more than their share of the time; `force` returns it regardless."""
        if time.perf_counter() < self._preview_due and not force:
            return None
        started = time.thread_time() if started is None else started  # of this thread: waiting for a core costs nothing
        image = sheet.image()
        self._preview_due = time.perf_counter() + (time.thread_time() - started) / PREVIEW_SHARE
        return image

    def _decode_size(self) -> int:
        """Images that all threads together decode at once."""
        bytes_per_image = 4 * 8 * self.vqgan.ch * self.vqgan.resolution**2
        most = DECODE_AT_ONCE * torch.get_num_threads() if self.device.type == "cpu" else 32
        return int(max(1, min(most, memory_budget(self.device) // bytes_per_image)))

    def _check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("stopped on request")
