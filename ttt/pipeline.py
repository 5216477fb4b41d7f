"""TextToImage: a prompt becomes a stream of Progress and the best pictures. Knows no files and no user interface."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ttt.errors import InvalidInput
from ttt.hardware import choose_device, choose_dtype
from ttt.model.dalle import Dalle, check_tokens
from ttt.model.vqgan import Vqgan
from ttt.preview import code_palette
from ttt.request import Request
from ttt.rerank import Scorer, load_in_background
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights
from ttt.tokenizer import TextTokenizer, check_prompt
from ttt.types import Progress, RankedImage, Stage

if TYPE_CHECKING:
    from ttt.bundle import Bundle


class TextToImage:
    """All parts of a model, ready to paint.

        pipe = TextToImage.from_pretrained("demo")
        best = pipe("a red circle above a blue square", SamplingParams(candidates=32, keep=4))

    Any number of streams may run at once; they share nothing that changes. Painting reads the weights as they are
    when the pipeline is made.
    """

    def __init__(
        self,
        *,
        dalle: Dalle,
        vqgan: Vqgan,
        tokenizer: TextTokenizer,
        scorer: Scorer | Future[Scorer],
        name: str = "model",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        chunk: int | None = None,
    ) -> None:
        """dtype: of painting, and bfloat16 of the VQGAN's products too (float16 could overflow there); `dalle` itself
        and scores stay as they are. "int8" is the transformer's products with weights in 8 bits and all else in
        bfloat16: faster on CPUs, and a little further from the model. chunk: most candidates painted at once, else as
        many as fit the memory that is free when painting starts.
        """
        self.device = choose_device(device, dtype)
        precision = choose_dtype(dtype, self.device, dalle.config)
        self.name, self.chunk, self.tokenizer = name, check_chunk(chunk), tokenizer
        self.dalle = dalle.eval().to(self.device)
        self.vqgan = vqgan.eval().to(self.device).to(memory_format=torch.channels_last)  # 1.4x faster on CPUs
        self.weights = DecoderWeights(self.dalle, precision)
        self.dtype = self.weights.dtype
        self._scorer = scorer
        self.shares: dict[Stage, float] = {}
        """Of the time of the last request, what each stage took: the next one's progress is told by it."""
        self._palette: Tensor | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        chunk: int | None = None,
    ) -> TextToImage:
        """`"demo"`, a bundle folder, or a Hub id (`revision`: branch, tag or commit of it)."""
        from ttt.bundle import find_bundle

        check_chunk(chunk)  # a wrong one is told before anything is fetched
        device = choose_device(device, dtype)
        bundle = find_bundle(name_or_path, revision, cache_dir=cache_dir, local_files_only=local_files_only)
        return cls.from_bundle(bundle, device=device, dtype=dtype, chunk=chunk)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        chunk: int | None = None,
    ) -> TextToImage:
        from ttt.bundle.weights import load_dalle_from, load_vqgan_from

        check_chunk(chunk)
        device = choose_device(device, dtype)
        scorer = load_in_background(bundle.clip, device)
        pipe = cls(
            dalle=load_dalle_from(bundle, device),
            vqgan=load_vqgan_from(bundle, device),
            tokenizer=TextTokenizer.from_file(bundle.tokenizer_file, bundle.dalle.text_seq_len, bundle.pad_id),
            scorer=scorer,
            name=bundle.name,
            device=device,
            dtype=dtype,
            chunk=chunk,
        )
        threading.Thread(target=lambda: pipe.palette, name="ttt-palette", daemon=True).start()  # for the first preview
        return pipe

    def __call__(self, prompt: str, params: SamplingParams | None = None) -> list[RankedImage]:
        """The best `keep`, best first."""
        images: tuple[RankedImage, ...] = ()
        for progress in self.stream(prompt, params):
            images = progress.images
        return list(images)

    def stream(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        cancel: threading.Event | None = None,
        *,
        chunk: int | None = None,
    ) -> Iterator[Progress]:
        """Progress at least after every row of codes; the last one carries the pictures.

        InvalidInput at once for a bad prompt, bad params or a bad chunk. Setting `cancel` raises Cancelled within one
        layer of the prompt or one code of every candidate (on a GPU within one row); while images are decoded or
        ranked, after those that each thread has in hand. Closing the iterator stops the work as fast.
        """
        if params is None:
            params = SamplingParams()
        if not isinstance(params, SamplingParams):
            raise InvalidInput(f"params must be SamplingParams or None, got {type(params).__name__}")
        chunk = self.chunk if chunk is None else check_chunk(chunk)
        return Request(self, check_prompt(prompt), params, cancel, chunk).run()

    def text_tokens(self, prompts: Sequence[str]) -> Tensor:
        """-> int64 [b, text_seq_len] on the pipeline's device."""
        return self.tokenizer(prompts).to(self.device)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [b, n] or [b, h, w] -> images [b, 3, h, w] in [0, 1]."""
        if not isinstance(codes, Tensor):
            raise InvalidInput(f"codes must be a [b, n] tensor of whole numbers, got {type(codes).__name__}")
        check_tokens("codes", codes.flatten(1) if codes.ndim == 3 else codes, self.vqgan.config.n_embed)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.vqgan.decode(codes.to(self.device).long()).float()

    @property
    def scorer(self) -> Scorer:
        """Waits for it where it is still being loaded; raises what its loading raised."""
        return self._scorer.result() if isinstance(self._scorer, Future) else self._scorer

    @property
    def scorer_ready(self) -> bool:
        """False while it is still being loaded."""
        return not isinstance(self._scorer, Future) or self._scorer.done()

    @property
    def scorer_failed(self) -> bool:
        return isinstance(self._scorer, Future) and self._scorer.done() and self._scorer.exception() is not None

    @property
    def palette(self) -> Tensor:
        """What each code looks like, for previews; made once."""
        with self._lock:
            if self._palette is None:
                self._palette = code_palette(self.vqgan, self.device)
            return self._palette


def check_chunk(chunk: int | None) -> int | None:
    """Most candidates at once; None is for as many as fit."""
    if chunk is None:
        return None
    if isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1:
        raise InvalidInput(f"chunk must be a whole number from 1, or None for what fits; got {repr(chunk)[:60]}")
    return int(chunk)
