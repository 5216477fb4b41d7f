"""Times our steps and their floor in turns, in rounds, so that a peer can have its turn between. Knows no peers."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field

import torch

from benchmarks.sampling_floor import clock, products_alone
from ttt.sampling.cache import Cache, Prompt
from ttt.sampling.crew import Crew
from ttt.sampling.decode import decode_one_code, pick, uniforms
from ttt.sampling.linear import MIN_ROWS
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights

PARAMS = SamplingParams()


@dataclass
class Times:
    """Seconds of each measurement; `*_cpu`: of the processor, which other programs disturb less than the clock."""

    step: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    step_cpu: list[float] = field(default_factory=list)
    floor_cpu: list[float] = field(default_factory=list)
    whole_floor: list[float] = field(default_factory=list)


class Steps:
    """Steps of `b` candidates, divided among threads as painting divides them."""

    def __init__(self, weights: DecoderWeights, prompt: Prompt, b: int) -> None:
        self.weights, self.prompt, self.b = weights, prompt, b
        self.times = Times()
        self._caches: dict[int, Cache] = {}
        self._lock = threading.Lock()

    def run(self, steps: int) -> None:
        """One round: a step that is not counted, then `steps` spread over the picture, each followed by its floor."""
        weights, device = self.weights, self.weights.device

        def work(piece: range, crew: Crew) -> None:
            rows = max(len(piece), MIN_ROWS)
            cache = self._cache(piece.start, rows)
            cpu = time.thread_time if crew.inner_threads == 1 else time.process_time
            codes = torch.zeros(rows, dtype=torch.long, device=device)
            random = uniforms(0, range(rows), 1)[:, 0].to(device)
            for i in range(-1, steps):
                position = (max(i, 0) * 2 + 1) * (weights.config.image_seq_len - 1) // (2 * steps)
                start, start_cpu = clock(device), cpu()
                codes = pick(decode_one_code(weights, cache, codes, position), random, PARAMS)
                middle, middle_cpu = clock(device), cpu()
                products_alone(weights, rows)
                end, end_cpu = clock(device), cpu()
                if i >= 0:
                    with self._lock:
                        self.times.step.append(middle - start)
                        self.times.floor.append(end - middle)
                        self.times.step_cpu.append(middle_cpu - start_cpu)
                        self.times.floor_cpu.append(end_cpu - middle_cpu)

        for _ in Crew(self.b, self.b, work, device).run():
            pass
        self._whole_floor()

    def row(self) -> dict[str, float]:
        """Medians of all rounds. The floor is the lower of two: in the pieces of painting, or the batch as a whole
        with all threads in each product.
        """
        t = self.times
        step, floor = statistics.median(t.step), min(statistics.median(t.floor), statistics.median(t.whole_floor))
        cpu = statistics.median(t.step_cpu) / statistics.median(t.floor_cpu)
        return {
            "batch": self.b, "step_s": step, "floor_s": floor, "ratio": step / floor, "ratio_cpu": cpu,
            "step_cpu_s": statistics.median(t.step_cpu),
            "candidates_s": self.b / (step * self.weights.config.image_seq_len),
        }  # fmt: skip

    def _cache(self, start: int, rows: int) -> Cache:
        with self._lock:
            if start not in self._caches:
                weights = self.weights
                cache = Cache(weights.config, self.prompt, rows, weights.dtype, weights.device)
                for keys in cache.images:
                    keys.buffer.fill_(0)  # zeros that were never written have no memory yet
                self._caches[start] = cache
            return self._caches[start]

    @torch.inference_mode()
    def _whole_floor(self) -> None:
        for i in range(3):
            start = clock(self.weights.device)
            products_alone(self.weights, max(self.b, MIN_ROWS))
            if i:
                self.times.whole_floor.append(clock(self.weights.device) - start)
