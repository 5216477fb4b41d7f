"""Captioned scenes of shapes as training data: drawn, encoded and tokenised on the fly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttt.data import shapes
from ttt.errors import CheckpointError
from ttt.model.vqgan import Vqgan
from ttt.types import Batch


def images_to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size -> [b, 3, h, w] float32 in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float().div_(255)


class SceneStream:
    """A `BatchStream` of scenes; number `i` of a seed is always the same, so peers with different seeds see
    different scenes, and a position is one number.
    """

    def __init__(
        self,
        vqgan: Vqgan,
        tokenize: Callable[[Sequence[str]], Tensor],
        batch_size: int,
        *,
        seed: int = 1,
        held_out: bool | None = False,
    ) -> None:
        """tokenize: captions -> [b, text_seq_len]; held_out: as in `shapes.random_scene`."""
        self.vqgan, self.tokenize, self.batch_size = vqgan.eval(), tokenize, batch_size
        self.seed, self.held_out = seed, held_out
        self.position = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            source = shapes.stream(self.seed, held_out=self.held_out, start=self.position)
            batch = self._batch(list(islice(source, self.batch_size)))
            self.position += self.batch_size
            yield batch

    @torch.no_grad()
    def _batch(self, scenes: list[tuple[shapes.ShapeScene, str]]) -> Batch:
        device = self.vqgan.quantize.embed.weight.device
        images = images_to_tensor([shapes.draw(scene, self.vqgan.config.resolution) for scene, _ in scenes]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            codes = self.vqgan.encode(images)
        return Batch(self.tokenize([caption for _, caption in scenes]).to(device), codes)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("seed") != self.seed:
            raise CheckpointError(
                f"this run drew scenes of seed {state.get('seed')!r}, not {self.seed}; resume with the same seed"
            )
        self.position = int(state["position"])
