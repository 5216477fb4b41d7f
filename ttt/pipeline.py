"""TextToImage: the models of a bundle, ready to turn prompts into ranked images. Independent of any user interface."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ttt.errors import InvalidInput
from ttt.fields import check_whole_number
from ttt.hardware import choose_device, choose_dtype
from ttt.model.dalle import Dalle, check_tokens
from ttt.model.vqgan import Vqgan
from ttt.preview import code_palette
from ttt.request import SHARES, Request
from ttt.rerank import Scorer, completed, load_in_background
from ttt.sampling.params import SamplingParams
from ttt.sampling.weights import DecoderWeights
from ttt.tokenizer import TextTokenizer, check_prompt
from ttt.types import Progress, RankedImage, Stage

if TYPE_CHECKING:
    from ttt.bundle import Bundle


class TextToImage:
    """All models of a bundle, ready to generate images.

        pipe = TextToImage.from_pretrained("demo")
        best = pipe("a red circle above a blue square", SamplingParams(candidates=32, keep=4))

    Any number of streams may run at once. Sampling uses a copy of the weights made when the pipeline is built.
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
        """dtype: precision of sampling. bfloat16 also applies to the VQGAN's products (float16 could overflow there);
        `dalle` itself and the scores stay float32. "int8" is 8 bits for the transformer's products with weights and
        bfloat16 for everything else: faster on CPUs, with slightly different images. chunk: most candidates sampled at
        once; None for as many as fit in the memory that is free when sampling starts.
        """
        self.device = choose_device(device, dtype)
        precision = choose_dtype(dtype, self.device, dalle.config)
        self.name, self.chunk, self.tokenizer = name, check_chunk(chunk), tokenizer
        self.dalle = dalle.eval().to(self.device)
        # Channels last makes the convolutions 1.4 times as fast on CPUs.
        self.vqgan = vqgan.eval().to(self.device).to(memory_format=torch.channels_last)
        self.weights = DecoderWeights(self.dalle, precision)
        self.dtype = self.weights.dtype
        self._scorer = scorer if isinstance(scorer, Future) else completed(scorer)
        self.shares: Mapping[Stage, float] = SHARES
        """Fraction of the last finished request spent in each stage; scales the progress bar of later ones."""
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

        check_chunk(chunk)  # before anything is downloaded
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
        scorer = load_in_background(bundle.clip, device)  # while the other weights are read
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
        threading.Thread(target=lambda: pipe.palette, name="ttt-palette", daemon=True).start()
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
        """Yield Progress at least after every row of codes; the last one carries the images.

        A wrong prompt, params or chunk raises InvalidInput at once. Setting `cancel` raises Cancelled within one layer
        of the prefill or one code of every candidate (on a GPU one row of codes); while images are decoded or ranked,
        after those that each thread is working on. Closing the iterator stops the work as quickly.
        """
        if params is None:
            params = SamplingParams()
        if not isinstance(params, SamplingParams):
            raise InvalidInput(f"params must be SamplingParams or None, got {type(params).__name__}")
        prompt = check_prompt(prompt)
        request = Request(
            prompt,
            params,
            text=self.text_tokens([prompt]),
            weights=self.weights,
            decode=self.decode,
            vqgan=self.vqgan.config,
            palette=lambda: self.palette,
            scorer=self._scorer,
            shares=self.shares,
            cancel=cancel,
            chunk=self.chunk if chunk is None else check_chunk(chunk),
        )
        return self._run(request)

    def _run(self, request: Request) -> Iterator[Progress]:
        yield from request.run()
        total = sum(request.seconds.values())
        self.shares = {stage: seconds / total for stage, seconds in request.seconds.items()}

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
        """The CLIP scorer; waits while it is being loaded, and raises the error of a failed loading."""
        return self._scorer.result()

    @property
    def palette(self) -> Tensor:
        """Image of each code, for previews; computed on first use."""
        with self._lock:
            if self._palette is None:
                self._palette = code_palette(self.vqgan, self.device)
            return self._palette


def check_chunk(chunk: int | None) -> int | None:
    """Refuse anything but None (as many candidates as fit in memory) and whole numbers from 1."""
    return None if chunk is None else check_whole_number("chunk", chunk, 1)
