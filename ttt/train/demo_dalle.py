"""The demo's transformer: how it learns from captions and codes of scenes. Knows nothing of sampling."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ttt.config import DalleConfig
from ttt.data import shapes
from ttt.model.dalle import Dalle
from ttt.model.vqgan import Vqgan
from ttt.train.demo_vqgan import pictures
from ttt.train.loop import Recipe
from ttt.types import Batch


class DalleTask:
    """The loss of the paper's model, on scenes that are drawn and encoded on the fly.

    Activations are remembered instead of computed again (`reversible` changes memory, never the result): a model
    this small has memory to spare.
    """

    name = "dalle"

    def __init__(self, config: DalleConfig, recipe: Recipe, *, vqgan: Vqgan, tokenize: Any) -> None:
        """tokenize: captions -> tokens [b, text_seq_len]."""
        torch.manual_seed(recipe.seed)
        self.module: Dalle = Dalle(replace(config, reversible=False))
        self.recipe, self.vqgan, self.tokenize = recipe, vqgan.eval(), tokenize

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        batch = self._batch(shapes.stream(self.recipe.seed + 1, start=step * self.recipe.batch_size))
        return self._loss(batch), {}

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.text.device.type, dtype=torch.bfloat16):
            return self.module.loss(batch.text, batch.codes)

    @torch.no_grad()
    def _batch(self, source: Any) -> Batch:
        pairs = list(islice(source, self.recipe.batch_size))
        size = self.vqgan.config.resolution
        images = pictures([shapes.draw(scene, size) for scene, _ in pairs])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            codes = self.vqgan.encode(images)
        return Batch(self.tokenize([text for _, text in pairs]), codes)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss on scenes whose combinations training never shows."""
        source = shapes.stream(3 * 10**6 + self.recipe.seed, held_out=True)
        losses = [self._loss(self._batch(source)).item() for _ in range(4)]
        return {"held_out_loss": sum(losses) / len(losses)}
