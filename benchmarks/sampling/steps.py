"""Times our steps and their lower bound in turns, in rounds, so that other implementations can be timed in between.

On a GPU, steps and lower bound are captured and replayed, as in sampling, and the eager decoder, the fallback of
sampling, is timed beside them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.sampling.floor import clock, products_alone, products_of
from ttt.errors import TTTError
from ttt.hardware import is_out_of_memory
from ttt.linear import MIN_ROWS
from ttt.sampling.cache import Cache, PrefillResult
from ttt.sampling.decode import decode_one_code, pick, uniforms
from ttt.sampling.graph import capturer_for
from ttt.sampling.params import SamplingParams
from ttt.sampling.static import StaticStep
from ttt.sampling.weights import DecoderWeights
from ttt.workers import WorkerPool

PARAMS = SamplingParams()


@dataclass
class Times:
    """Seconds of each measurement; `*_cpu`: of the processor, which other programs disturb less than the clock.

    With one thread these are the times of the process; with more, of this thread alone.
    """

    step: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    step_cpu: list[float] = field(default_factory=list)
    floor_cpu: list[float] = field(default_factory=list)
    whole_floor: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)


class Steps:
    """Steps of `b` candidates, divided among threads as sampling divides them.

    `fits` is False after an out-of-memory error: sampling would continue in smaller pieces, which are not steps of `b`.
    `cpu_is_known` is True if the processor times are those of a step.
    """

    def __init__(self, weights: DecoderWeights, prompt: PrefillResult, b: int) -> None:
        self.weights, self.prompt, self.b = weights, prompt, b
        self.times, self.fits = Times(), True
        self.threads, self.cpu_is_known = 1, False
        self._pairs: dict[int, tuple[Callable[[int], None], Callable[[], None]]] = {}
        self._lock = threading.Lock()

    def run(self, steps: int) -> None:
        """One round: a warm-up step, then `steps` spread over the image, each followed by its lower bound."""
        weights, device = self.weights, self.weights.device

        def work(piece: range, pool: WorkerPool) -> None:
            if pool.limit < whole:
                self.fits = False
                return
            rows = max(len(piece), MIN_ROWS)
            step, products = self._pair(piece.start, rows)
            cpu = time.thread_time if pool.inner_threads == 1 else time.process_time
            for i in range(-1, steps):
                position = (max(i, 0) * 2 + 1) * (weights.config.image_seq_len - 1) // (2 * steps)
                start, start_cpu = clock(device), cpu()
                step(position)
                middle, middle_cpu = clock(device), cpu()
                products()
                end, end_cpu = clock(device), cpu()
                if i >= 0:
                    with self._lock:
                        self.times.step.append(middle - start)
                        self.times.floor.append(end - middle)
                        self.times.step_cpu.append(middle_cpu - start_cpu)
                        self.times.floor_cpu.append(end_cpu - middle_cpu)

        pool = WorkerPool(self.b, self.b, work, device)
        whole, self.threads = pool.limit, pool.threads
        self.cpu_is_known = device.type == "cpu" and 1 in (pool.threads, pool.inner_threads)
        try:
            for _ in pool.run():
                pass
        except TTTError:  # not enough memory for even one candidate
            self.fits = False
        if not self.fits or device.type == "cuda":
            self._pairs.clear()  # caches for the eager decoder might not fit beside them
        if self.fits:
            self._time_the_whole(steps)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the reference may need it

    def row(self) -> dict[str, Any]:
        """Medians of all rounds. The floor is the lower of two: the products in the pieces of sampling, or of the whole
        batch in one piece with all threads in each product.
        """
        if not self.fits:
            return {"batch": self.b, "fits": False}
        t = self.times
        step, floor = statistics.median(t.step), statistics.median(t.floor)
        if t.whole_floor:
            floor = min(floor, statistics.median(t.whole_floor))
        loop = {"loop_s": statistics.median(t.loop)} if t.loop else {}
        cpu = {}
        if self.cpu_is_known:
            step_cpu = statistics.median(t.step_cpu)
            cpu = {"ratio_cpu": step_cpu / statistics.median(t.floor_cpu), "step_cpu_s": step_cpu}
        return {
            "batch": self.b, "step_s": step, "floor_s": floor, "ratio": step / floor, **cpu,
            "candidates_s": self.b / (step * self.weights.config.image_seq_len), **loop,
        }  # fmt: skip

    def _pair(self, start: int, rows: int) -> tuple[Callable[[int], None], Callable[[], None]]:
        """A step at a position, and its products alone."""
        on_gpu = self.weights.device.type == "cuda"
        with self._lock:
            if start not in self._pairs:
                step = (self._captured_step if on_gpu else self._eager_step)(rows)
                self._pairs[start] = step, products_of(self.weights, rows)
            return self._pairs[start]

    def _eager_step(self, rows: int) -> Callable[[int], None]:
        """A step called from Python."""
        weights = self.weights
        cache = Cache(weights.config, self.prompt, rows, weights.dtype, weights.device)
        for keys in cache.images:
            keys.buffer.fill_(0)  # pages that were never written have no memory yet
        codes = torch.zeros(rows, dtype=torch.long, device=weights.device)
        random = uniforms(0, range(rows), 1)[:, 0].to(weights.device)

        def step(position: int) -> None:
            codes.copy_(pick(decode_one_code(weights, cache, codes, position), random, PARAMS))

        return step

    def _captured_step(self, rows: int) -> Callable[[int], None]:
        """A replay, or a call from Python if the step cannot be captured, as in sampling."""
        weights = self.weights
        step = StaticStep(weights, self.prompt, PARAMS, rows)
        step.begin(uniforms(0, range(rows), weights.config.image_seq_len).t().to(weights.device))
        run = capturer_for(weights.device).capture(step)
        if run is None:
            return self._eager_step(rows)

        def replay(position: int) -> None:
            step.position.fill_(position)
            run()

        return replay

    def _time_the_whole(self, steps: int) -> None:
        """Time the products of all candidates in one piece; skipped if they do not fit in memory."""
        try:
            self._time_the_loop(steps) if self.weights.device.type == "cuda" else self._whole_floor()
        except Exception as error:
            if not is_out_of_memory(error):
                raise

    @torch.inference_mode()
    def _time_the_loop(self, steps: int) -> None:
        loop = self._eager_step(max(self.b, MIN_ROWS))
        for i in range(-1, steps):
            start = clock(self.weights.device)
            loop(max(i, 0))
            if i >= 0:
                self.times.loop.append(clock(self.weights.device) - start)

    @torch.inference_mode()
    def _whole_floor(self) -> None:
        for i in range(3):
            start = clock(self.weights.device)
            products_alone(self.weights, max(self.b, MIN_ROWS))
            if i:
                self.times.whole_floor.append(clock(self.weights.device) - start)
