"""All candidates of a request, from the prompt's keys to their codes. Knows no pictures and no threads."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ttt.config import DalleConfig
from ttt.linear import MIN_ROWS
from ttt.sampling.cache import Cache, PrefillResult, slots_of
from ttt.sampling.decode import check_finite, decode_one_code, pick, uniforms
from ttt.sampling.graph import REHEARSALS, Recorder, Run, recorder_on
from ttt.sampling.params import SamplingParams
from ttt.sampling.static import StaticStep, prompt_slots, static_bytes_per_candidate
from ttt.sampling.weights import DecoderWeights
from ttt.workers import Work, WorkerPool


class Canvas:
    """Codes [candidates, n] of one request, and how many of each candidate's are painted.

    Threads write rows of their own; the reader looks whenever it likes.
    """

    def __init__(self, candidates: int, config: DalleConfig) -> None:
        self.codes = torch.zeros(candidates, config.image_seq_len, dtype=torch.long)
        self.painted = [0] * candidates

    @property
    def fraction(self) -> float:
        return sum(self.painted) / self.codes.numel()


class Painter(Protocol):
    """Candidates at their first code; `advance` chooses the next one of each."""

    @property
    def codes(self) -> Tensor:
        """int64 [n, b]."""

    @property
    def total(self) -> Tensor:
        """Sum of all logits so far, which is not finite once one of them was not."""

    def advance(self) -> None: ...


class Loop:
    """Steps called from Python: on a CPU the fastest way, and the last resort on a GPU."""

    def __init__(self, weights: DecoderWeights, prompt: PrefillResult, params: SamplingParams, random: Tensor) -> None:
        """random: [n, b]."""
        (n, b), device = random.shape, weights.device
        self.weights, self.params, self.random, self.position = weights, params, random, 0
        self.cache = Cache(weights.config, prompt, b, weights.dtype, device)
        self.codes = torch.empty(n, b, dtype=torch.long, device=device)
        self.codes[0] = pick(prompt.logits.expand(b, -1), random[0], params)
        self.total = torch.zeros((), device=device)

    def advance(self) -> None:
        logits = decode_one_code(self.weights, self.cache, self.codes[self.position], self.position)
        self.total.add_(logits.sum())
        self.position += 1
        self.codes[self.position] = pick(logits, self.random[self.position], self.params)


class Replays:
    """Steps recorded once and replayed; one recording serves all pieces of a request that are about as large.

    For one thread, as a GPU's pool is.
    """

    def __init__(
        self, weights: DecoderWeights, prompt: PrefillResult, params: SamplingParams, recorder: Recorder
    ) -> None:
        self.weights, self.prompt, self.params, self.recorder = weights, prompt, params, recorder
        self._step: StaticStep | None = None
        self._run: Run | None = None

    def begin(self, first: int, b: int) -> bool:
        """Ready for `b` candidates or more, numbered from `first`. False where steps cannot be recorded."""
        if self.recorder.failed or self.weights.config.image_seq_len <= REHEARSALS:
            self._step = self._run = None
            return False
        if self._step is None or not b <= self._step.b < 2 * b:
            self._step = self._run = None  # before there is a new one: both might not fit
        step = self._step or StaticStep(self.weights, self.prompt, self.params, b)
        step.begin(random_numbers(self.weights, self.params, first, step.b))
        if self._run is None:
            self._run = self.recorder.record(step)
            if self._run is None:
                return False
            step.restart()
            self._step = step
        return True

    @property
    def codes(self) -> Tensor:
        assert self._step is not None, "begin first"
        return self._step.codes

    @property
    def total(self) -> Tensor:
        assert self._step is not None, "begin first"
        return self._step.total

    def advance(self) -> None:
        assert self._run is not None, "begin first"
        self._run()


def painting(
    weights: DecoderWeights,
    prompt: PrefillResult,
    params: SamplingParams,
    canvas: Canvas,
    recorder: Recorder | None = None,
) -> Work:
    """The work that paints a range of candidates; it ticks after each row of codes.

    recorder: of steps, None for the GPU's own where `weights` are on one. On a GPU the host runs ahead of the device
    by up to a row of codes.
    """
    fmap, n = weights.config.image_fmap_size, weights.config.image_seq_len
    if recorder is None and weights.device.type == "cuda":
        recorder = recorder_on(weights.device)
    replays = None if recorder is None else Replays(weights, prompt, params, recorder)

    def paint(piece: range, pool: WorkerPool) -> None:
        b = max(len(piece), MIN_ROWS)  # what is painted to fill up is thrown away
        painter: Painter
        if replays is not None and replays.begin(piece.start, b):
            painter = replays
        else:
            painter = Loop(weights, prompt, params, random_numbers(weights, params, piece.start, b))
        for position in range(n):
            pool.check()
            if position:
                painter.advance()
            if (position + 1) % fmap == 0:
                check_finite(painter.total)
                done = position + 1
                row = painter.codes[done - fmap : done, : len(piece)]
                canvas.codes[piece.start : piece.stop, done - fmap : done] = row.t()
                canvas.painted[piece.start : piece.stop] = [done] * len(piece)
                pool.notify()

    return paint


def random_numbers(weights: DecoderWeights, params: SamplingParams, first: int, b: int) -> Tensor:
    """[n, b] of the candidates numbered from `first`, where the weights are."""
    numbers = uniforms(params.seed, range(first, first + b), weights.config.image_seq_len)
    return numbers.t().contiguous().to(weights.device)


def memory_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Bytes that painting one candidate takes: its caches, and the largest of a layer's temporary tensors."""
    own = {kind: slots_of(kind, config)[1] for kind in config.layer_kinds}
    keys = prompt_slots(config) + max(own.values())
    activations = 4 * (6 * config.dim * config.ff_mult + 4 * config.heads * keys + 6 * config.num_image_tokens)
    column = 2 * own.get("column", 0) * config.heads * config.dim_head * dtype.itemsize  # copied together for a step
    return static_bytes_per_candidate(config, dtype) + activations + column
