"""All candidates of a request, from the prompt's keys to their codes. Knows no pictures and no threads."""

from __future__ import annotations

import torch

from ttt.config import DalleConfig
from ttt.sampling.cache import Cache, Prompt, bytes_per_candidate
from ttt.sampling.crew import Crew, Work
from ttt.sampling.decode import decode_one_code, pick, uniforms
from ttt.sampling.linear import MIN_ROWS
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights


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


def painting(weights: DecoderWeights, prompt: Prompt, params: SamplingParams, canvas: Canvas) -> Work:
    """The work that paints a range of candidates; it ticks after each row of codes."""
    fmap = weights.config.image_fmap_size

    def paint(piece: range, crew: Crew) -> None:
        b = max(len(piece), MIN_ROWS)
        numbers = range(piece.start, piece.start + b)  # what is painted to fill up is thrown away
        n = canvas.codes.shape[1]
        random = uniforms(params.seed, numbers, n).t().contiguous().to(weights.device)  # [n, b]
        cache = Cache(weights.config, prompt, b, weights.dtype, weights.device)
        codes = torch.empty(n, b, dtype=torch.long, device=weights.device)
        codes[0] = pick(prompt.logits.expand(b, -1), random[0], params)
        for position in range(n):
            crew.check()
            if position:
                logits = decode_one_code(weights, cache, codes[position - 1], position - 1)
                codes[position] = pick(logits, random[position], params)
            if (position + 1) % fmap == 0:
                done = position + 1
                canvas.codes[piece.start : piece.stop, done - fmap : done] = codes[done - fmap : done, : len(piece)].t()
                canvas.painted[piece.start : piece.stop] = [done] * len(piece)
                crew.tick()

    return paint


def memory_per_candidate(config: DalleConfig, dtype: torch.dtype) -> int:
    """Bytes that painting one candidate takes: its caches, and the largest of a layer's temporary tensors."""
    keys = config.text_len + config.image_seq_len if "full" in config.layer_kinds else config.text_len + 64
    activations = 4 * (6 * config.dim * config.ff_mult + 4 * config.heads * keys + 6 * config.num_image_tokens)
    return bytes_per_candidate(config, dtype) + activations
