"""The demo's transformer: scenes encoded once by the finished VQGAN, and how it learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ttt.atomic import write_atomically
from ttt.config import DalleConfig
from ttt.data.world import scenes as world
from ttt.data.world.cache import CAPTIONS, SceneCache
from ttt.data.world.captions import caption, names_background
from ttt.data.world.checker import check_scene
from ttt.data.world.scenes import Scene
from ttt.model.dalle import Dalle
from ttt.model.vqgan import Vqgan
from ttt.pipeline import TextToImage
from ttt.sampling.params import SamplingParams
from ttt.tokenizer import TextTokenizer
from ttt.train.optimizer import Lamb, parameter_groups
from ttt.train.step import TrainingStep
from ttt.types import Batch

_BLOCK = 64
UNCONDITIONAL = 0.1
"""Share of the samples that are trained without their caption, so that guidance is possible."""

Optimizer = Literal["adamw", "lamb"]


class CodeCache:
    """Cached scenes as codes [count, n] uint16, on disk, and as tokens [count, CAPTIONS, text_seq_len], in memory.

    Encoding resumes where it stopped. The codes belong to one VQGAN: a folder of caches has one.
    """

    def __init__(self, scenes: SceneCache, vqgan: Vqgan, tokenize: Callable[[Sequence[str]], Tensor]) -> None:
        count = len(scenes)
        path, progress = scenes.folder / "codes.npy", scenes.folder / "codes.json"
        done = json.loads(progress.read_text())["done"] if progress.exists() else 0
        self.codes: NDArray[np.uint16] = np.lib.format.open_memmap(
            path, mode="r+" if done else "w+", dtype=np.uint16, shape=(count, vqgan.config.fmap_size**2)
        )
        while done < count:
            stop = min(done + _BLOCK, count)
            self.codes[done:stop] = encode(vqgan, scenes.images[done:stop]).cpu().numpy()
            done = stop
            if done % 1024 < _BLOCK or done == count:
                self.codes.flush()
                write_atomically(progress, json.dumps({"done": done}).encode())
        self.tokens = np.concatenate([
            tokenize(scenes.texts(i, min(i + 1000, count))).numpy().astype(np.uint16) for i in range(0, count, 1000)
        ]).reshape(count, CAPTIONS, -1)  # fmt: skip

    def batch(self, rows: NDArray[np.int64], version: NDArray[np.int64]) -> Batch:
        """Scenes `rows`, each with its caption number `version`."""
        codes = torch.from_numpy(self.codes[rows].astype(np.int64))
        return Batch(torch.from_numpy(self.tokens[rows, version].astype(np.int64)), codes)


@torch.no_grad()
def encode(vqgan: Vqgan, images: NDArray[np.uint8]) -> Tensor:
    """uint8 [b, h, w, 3] -> codes [b, n].

    In float32: 16 bits would choose another code for one cell in some hundred.
    """
    weight = vqgan.quantize.embed.weight
    x = torch.from_numpy(images).to(weight.device).movedim(3, 1).float().div_(255)
    return torch.cat([vqgan.encode(part) for part in x.split(16)])


class SceneTask:
    """The paper's loss on cached scenes; one caption in ten is left out."""

    name = "dalle"
    warmup_steps = 300
    clip = 1.0

    def __init__(
        self,
        config: DalleConfig,
        cache: CodeCache,
        held_out: CodeCache,
        vqgan: Vqgan,
        tokenizer: TextTokenizer,
        *,
        batch_size: int,
        learning_rate: float,
        optimizer: Optimizer = "adamw",
        device: str = "cpu",
        prompts: int = 12,
        candidates: int = 4,
    ) -> None:
        """config: not reversible, as a model this small has memory to spare.

        prompts, candidates: what `evaluate` samples: so many prompts with one thing, and with two.
        """
        torch.manual_seed(0)
        self.module = Dalle(config).to(device)
        self.cache, self.held_out, self.vqgan, self.tokenizer = cache, held_out, vqgan, tokenizer
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self._step = TrainingStep(self.module)
        groups = parameter_groups(self.module, 0.05)
        if optimizer == "lamb":
            self.optimizer: torch.optim.Optimizer = Lamb(
                groups, lr=learning_rate, betas=(0.9, 0.96), weight_decay=0.05, max_grad_norm=None, state_bits=32,
                bias_correction=True,
            )  # fmt: skip
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.96), fused=device == "cuda")
        self._prompts = held_out_prompts(prompts)
        self._candidates = candidates
        self.samples: list[tuple[str, list[NDArray[np.uint8]]]] = []
        """What the last evaluation sampled: a prompt and its candidates."""

    def step(self, step: int) -> tuple[int, dict[str, float]]:
        rng = np.random.default_rng(step)
        rows = rng.integers(len(self.cache.codes), size=self.batch_size)
        batch = self.cache.batch(rows, rng.integers(CAPTIONS, size=self.batch_size))
        text = batch.text * torch.from_numpy(rng.random(self.batch_size) >= UNCONDITIONAL)[:, None]
        return self.batch_size, {"loss": self._step.backward(Batch(text, batch.codes))}

    def after_step(self) -> None:
        pass

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-out scenes, and the share of sampled images that the checker finds right."""
        count = len(self.held_out.codes)
        rows = [np.arange(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]
        losses = [self._step.loss(self.held_out.batch(r, np.zeros_like(r))).item() * len(r) for r in rows]
        figures = {"held_out_loss": sum(losses) / count}
        pipe = sampler(self.module, self.vqgan, self.tokenizer, self.module.config)
        self.samples = []
        for kind, found in self._prompts.items():
            right = []
            for scene, text in found:
                images = sample(pipe, text, self._candidates)
                self.samples.append((text, images))
                right += [check_scene(image, scene).fits(background=names_background(text, scene)) for image in images]
            figures[f"right_{kind}"] = float(np.mean(right))
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def held_out_prompts(count: int, *, seed: int = 4_000_000) -> dict[str, list[tuple[Scene, str]]]:
    """Scenes with their captions, `count` of one thing and of two, whose combination training never shows."""
    return {
        name: [
            (scene, caption(scene, rng))
            for scene, rng in islice(world.stream(seed, kind=kind, held_out=True), count)  # type: ignore[arg-type]
        ]
        for name, kind in (("one", "alone"), ("two", "pair"))
    }


class Unranked:
    """Stands where CLIP will be: every image has the same score."""

    def scores(self, images: Tensor, prompt: str) -> Tensor:
        return torch.zeros(len(images))


def sampler(dalle: Dalle, vqgan: Vqgan, tokenizer: TextTokenizer, config: DalleConfig) -> TextToImage:
    """A pipeline of a copy of the transformer, without CLIP."""
    copy = Dalle(config)
    copy.load_state_dict(dalle.state_dict())
    device = next(dalle.parameters()).device
    return TextToImage(dalle=copy, vqgan=vqgan, tokenizer=tokenizer, scorer=Unranked(), device=device)


def sample(pipe: TextToImage, prompt: str, candidates: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """All candidates of a prompt, [h, w, 3] each, in the order of their numbers."""
    *_, last = pipe.stream(prompt, SamplingParams(candidates=candidates, keep=1, seed=seed))
    return [np.asarray(ranked.image) for ranked in sorted(last.ranking, key=lambda ranked: ranked.candidate)]
