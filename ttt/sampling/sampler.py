"""Samples the codes of all candidates of a request, row by row, starting from the prefilled prompt."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ttt.config import DalleConfig
from ttt.linear import MIN_ROWS
from ttt.sampling.cache import Cache, PrefillResult, slots_of
from ttt.sampling.decode import check_logits, decode_one_code, pick, uniforms
from ttt.sampling.graph import WARMUP_STEPS, GraphCapturer, Run, capturer_for
from ttt.sampling.params import SamplingParams
from ttt.sampling.static import StaticStep, prompt_slots, static_bytes_per_candidate
from ttt.sampling.weights import DecoderWeights
from ttt.workers import Work, WorkerPool


class SampledCodes:
    """Codes [candidates, n] of one request, and how many of each candidate are sampled.

    Every thread writes the rows of its own candidates; another thread may read at any time.
    """

    def __init__(self, candidates: int, config: DalleConfig) -> None:
        self.codes = torch.zeros(candidates, config.image_seq_len, dtype=torch.long)
        self.counts = [0] * candidates

    @property
    def fraction(self) -> float:
        return sum(self.counts) / self.codes.numel()


class Decoder(Protocol):
    """Candidates that have their first code; `advance` samples the next code of each."""

    @property
    def codes(self) -> Tensor:
        """int64 [n, b]."""

    @property
    def total(self) -> Tensor:
        """Sum of all logits so far: NaN or infinite as soon as one of them was."""

    def advance(self) -> None: ...


class EagerDecoder:
    """Runs every step from Python: the fastest way on a CPU, and the fallback on a GPU."""

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


class GraphDecoder:
    """Replays a captured step; one capture serves all pieces of a request that have about the same size.

    Not for several threads: the pool of a GPU has one.
    """

    def __init__(
        self, weights: DecoderWeights, prompt: PrefillResult, params: SamplingParams, capturer: GraphCapturer
    ) -> None:
        self.weights, self.prompt, self.params, self.capturer = weights, prompt, params, capturer
        self._step: StaticStep | None = None
        self._run: Run | None = None

    def begin(self, first: int, b: int) -> bool:
        """Prepare for `b` or more candidates, numbered from `first`. Returns False if steps cannot be captured."""
        if self.capturer.failed or self.weights.config.image_seq_len <= WARMUP_STEPS:
            self._step = self._run = None
            return False
        if self._step is None or not b <= self._step.b < 2 * b:
            self._step = self._run = None  # free the old one first: both might not fit in memory
        step = self._step or StaticStep(self.weights, self.prompt, self.params, b)
        step.begin(random_numbers(self.weights, self.params, first, step.b))
        if self._run is None:
            self._run = self.capturer.capture(step)
            if self._run is None:
                return False
            step.restart()
            self._step = step
        return True

    @property
    def codes(self) -> Tensor:
        assert self._step is not None, "call begin first"
        return self._step.codes

    @property
    def total(self) -> Tensor:
        assert self._step is not None, "call begin first"
        return self._step.total

    def advance(self) -> None:
        assert self._run is not None, "call begin first"
        self._run()


def sampling_work(
    weights: DecoderWeights,
    prompt: PrefillResult,
    params: SamplingParams,
    sampled: SampledCodes,
    capturer: GraphCapturer | None = None,
) -> Work:
    """Work for a WorkerPool that samples a range of candidates into `sampled`; it notifies after each row of codes.

    capturer: of steps; None for that of the GPU, if `weights` are on one. On a GPU the host runs ahead of the device by
    up to a row of codes.
    """
    fmap, n = weights.config.image_fmap_size, weights.config.image_seq_len
    if capturer is None and weights.device.type == "cuda":
        capturer = capturer_for(weights.device)
    graphs = None if capturer is None else GraphDecoder(weights, prompt, params, capturer)

    def sample(piece: range, pool: WorkerPool) -> None:
        b = max(len(piece), MIN_ROWS)  # padding candidates are discarded
        decoder: Decoder
        if graphs is not None and graphs.begin(piece.start, b):
            decoder = graphs
        else:
            decoder = EagerDecoder(weights, prompt, params, random_numbers(weights, params, piece.start, b))
        for position in range(n):
            pool.check()
            if position:  # the first code comes from the prefill
                decoder.advance()
            if (position + 1) % fmap == 0:
                check_logits(decoder.total)
                done = position + 1
                row = decoder.codes[done - fmap : done, : len(piece)]  # [fmap, b]
                sampled.codes[piece.start : piece.stop, done - fmap : done] = row.t()
                sampled.counts[piece.start : piece.stop] = [done] * len(piece)
                pool.notify()

    return sample


def random_numbers(weights: DecoderWeights, params: SamplingParams, first: int, b: int) -> Tensor:
    """[n, b] of the candidates numbered from `first`, on the device of the weights."""
    numbers = uniforms(params.seed, range(first, first + b), weights.config.image_seq_len)
    return numbers.t().contiguous().to(weights.device)


def memory_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Bytes that sampling one candidate takes: its caches and the largest temporary tensors of a layer."""
    slots = {kind: slots_of(kind, config)[1] for kind in config.layer_kinds}
    keys = prompt_slots(config) + max(slots.values())
    activations = 4 * (6 * config.dim * config.ff_mult + 4 * config.heads * keys + 6 * config.num_image_tokens)
    # StaticStep copies the keys of a column before it reads them.
    column = 2 * slots.get("column", 0) * config.heads * config.dim_head * dtype.itemsize
    return static_bytes_per_candidate(config, dtype) + activations + column
