"""CLIP scores: how well images match a prompt, by open_clip. Independent of how the images were generated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt.errors import BundleError
from ttt.tokenizer import clean, read_tokenizer

if TYPE_CHECKING:
    from ttt.bundle import ClipSpec

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
END = "[EOS]"
"""Ends a text in a bundle's own tokenizer; CLIP takes the features of the text from its position."""


class Scorer(Protocol):
    """Scores how well images match a prompt."""

    def scores(self, images: Tensor, prompt: str) -> Tensor:
        """Images [b, 3, h, w] in [0, 1] -> [b] float32 on the CPU, higher is better."""


class ClipScorer:
    """Scores are 100 times the cosine of the image's and the prompt's embeddings (Radford et al. 2021)."""

    def __init__(self, model: nn.Module, tokenize: Callable[[str], Tensor], device: torch.device | str = "cpu") -> None:
        """model: an open_clip CLIP; tokenize: a prompt -> ids [1, context_length]."""
        self.model, self.tokenize, self.device = model.eval().to(device), tokenize, torch.device(device)
        visual: Any = model.visual
        size = visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        about: dict[str, Any] = getattr(visual, "preprocess_cfg", {})
        self.interpolation = about.get("interpolation", "bicubic")
        self.mean = torch.tensor(about.get("mean") or OPENAI_MEAN, device=self.device).view(3, 1, 1)
        self.std = torch.tensor(about.get("std") or OPENAI_STD, device=self.device).view(3, 1, 1)

    @classmethod
    def from_spec(
        cls, spec: ClipSpec, device: torch.device | str = "cpu", cache_dir: str | Path | None = None
    ) -> ClipScorer:
        """Load the CLIP of a bundle: local files, or a model and a tag that open_clip knows."""
        if spec.config is not None and spec.weights is not None:
            model = _local_model(spec.config, spec.weights)
            return cls(model, _local_tokenizer(spec.tokenizer, model), device)
        return cls(*_named_model(str(spec.model), str(spec.pretrained), cache_dir), device)

    @torch.inference_mode()
    def scores(self, images: Tensor, prompt: str) -> Tensor:
        return 100 * (self.embed_images(images) @ self.embed_prompt(prompt)).float().cpu()

    def embed_images(self, images: Tensor) -> Tensor:
        """Images [b, 3, h, w] in [0, 1] -> unit vectors [b, e]."""
        return self.model.encode_image(self.prepare(images), normalize=True)  # type: ignore[operator]

    def embed_prompt(self, prompt: str) -> Tensor:
        """-> a unit vector [e]."""
        return self.model.encode_text(self.tokenize(clean(prompt)).to(self.device), normalize=True)[0]  # type: ignore[operator]

    def prepare(self, images: Tensor) -> Tensor:
        """open_clip's preprocessing of square images, on tensors: [b, 3, h, w] in [0, 1] -> [b, 3, *size]."""
        images = images.to(self.device, torch.float32)
        height, width = self.size
        # As Pillow does: rows first, then columns, rounded to 8 bits and clamped after each.
        for size in ((images.shape[-2], width), (height, width)):
            if tuple(images.shape[-2:]) != size:
                images = F.interpolate(images, size=size, mode=self.interpolation, align_corners=False, antialias=True)
                images = images.clamp(0, 1).mul(255).round().div(255)
        return (images - self.mean) / self.std


def completed(scorer: Scorer) -> Future[Scorer]:
    """A future that has this scorer already."""
    future: Future[Scorer] = Future()
    future.set_result(scorer)
    return future


def load_in_background(spec: ClipSpec, device: torch.device | str = "cpu") -> Future[Scorer]:
    """Run `ClipScorer.from_spec` in a thread: importing open_clip takes seconds, and scores are needed last."""
    future: Future[Scorer] = Future()

    def load() -> None:
        try:
            future.set_result(ClipScorer.from_spec(spec, device))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=load, name="ttt-clip", daemon=True).start()
    return future


def _local_model(config: Path, weights: Path) -> nn.Module:
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.model import set_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg

    from ttt.bundle.files import read_json
    from ttt.bundle.weights import load_strictly, read_safetensors

    values = dict(read_json(config))
    preparation = values.get("preprocess_cfg", {})
    values = dict(values.get("model_cfg", values))
    for tower in ("vision_cfg", "text_cfg"):
        if not isinstance(values.get(tower), dict):
            raise BundleError(f"{config} has no {tower}; it must be an open_clip model configuration")
        foreign = [key for key in values[tower] if key.startswith(("hf_model", "hf_tokenizer", "timm_model"))]
        if foreign:  # open_clip would fetch these from the network
            raise BundleError(f"{config} refers to a model elsewhere ({', '.join(foreign)}); it must be complete")
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    kind = CustomTextCLIP if values.pop("custom_text", False) else CLIP
    try:
        model = kind(**values)
        set_model_preprocess_cfg(model, {**PreprocessCfg(size=model.visual.image_size).__dict__, **preparation})
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, AttributeError) as error:
        raise BundleError(f"{config} does not describe a model that open_clip can build: {error}") from None
    load_strictly(model, read_safetensors(weights), weights)
    return model


def _local_tokenizer(file: Path | None, model: Any) -> Callable[[str], Tensor]:
    length = model.context_length
    if file is None:
        from open_clip import SimpleTokenizer

        known = SimpleTokenizer(context_length=length)
        return lambda prompt: known([prompt])
    tokenizer = read_tokenizer(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    end = tokenizer.token_to_id(END)
    if end is None or end >= model.vocab_size:
        raise BundleError(
            f"{file} has no token {END} below CLIP's vocabulary size {model.vocab_size}; CLIP needs it to read a text"
        )

    def tokenize(prompt: str) -> Tensor:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        return text_ids(ids, end, length, model.vocab_size)[None]

    return tokenize


def text_ids(ids: Sequence[int], end: int, length: int, vocab_size: int) -> Tensor:
    """int64 [length]: at most `length` - 1 of the ids, then `end`, padded with 0."""
    known = [i for i in ids if i < vocab_size][: length - 1]
    return torch.tensor([*known, end] + [0] * (length - 1 - len(known)), dtype=torch.long)


def _named_model(name: str, tag: str, cache_dir: str | Path | None) -> tuple[nn.Module, Callable[[str], Tensor]]:
    import open_clip

    about = open_clip.get_pretrained_cfg(name, tag)
    if not about:
        tags = open_clip.list_pretrained_tags_by_model(name)
        known = f"its tags: {', '.join(tags)}" if tags else "see open_clip.list_pretrained()"
        raise BundleError(f"open_clip has no weights {tag!r} of {name!r}; {known}")
    try:
        model = open_clip.create_model(
            name,
            pretrained=tag,
            force_quick_gelu=bool(about.get("quick_gelu", False)),
            cache_dir=None if cache_dir is None else str(cache_dir),
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(
            f"CLIP {name} ({tag}) could not be fetched or read: {error}. Check the connection, "
            "or convert with a local CLIP"
        ) from None
    return model, lambda prompt: tokenizer([prompt])
