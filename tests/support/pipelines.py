"""A prompt and settings for tiny images, a `TextToImage` with any scorer, and the images of a request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from tests.support.tiny import TINY_DALLE, tiny_dalle, tiny_vqgan, write_tokenizer
from ttt import SamplingParams, TextToImage
from ttt.rerank import Scorer
from ttt.tokenizer import TextTokenizer
from ttt.types import Progress, RankedImage

PROMPT = "a red circle above a blue square"
PARAMS = SamplingParams(candidates=11, keep=3, top_k=8, top_p=0.9, seed=4)


def pipe_of(tmp_path: Path, scorer: Scorer | Future[Scorer]) -> TextToImage:
    tokenizer = TextTokenizer.from_file(write_tokenizer(tmp_path / "words.json"), TINY_DALLE.text_seq_len, 0)
    return TextToImage(dalle=tiny_dalle(), vqgan=tiny_vqgan(), tokenizer=tokenizer, scorer=scorer, device="cpu")


def pixels(ranking: tuple[RankedImage, ...] | list[RankedImage]) -> np.ndarray:
    """All images by candidate [candidates, h, w, 3]."""
    return np.stack([np.asarray(r.image) for r in sorted(ranking, key=lambda r: r.candidate)])


def last(stream: Iterator[Progress]) -> Progress:
    return list(stream)[-1]
