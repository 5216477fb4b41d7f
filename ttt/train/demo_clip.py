"""The demo's CLIP: a small open_clip model that learns to rank images of scenes. Independent of the transformer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ttt.data.world import scenes as world
from ttt.data.world.captions import caption, plain_caption
from ttt.data.world.scenes import GRID, Scene
from ttt.model.vqgan import Vqgan
from ttt.rerank import OPENAI_MEAN, OPENAI_STD
from ttt.train.demo_candidates import Candidates
from ttt.train.demo_dalle import encode

SIBLINGS = 4
"""Scenes of a batch that differ in one thing only: without them a CLIP learns nouns and forgets relations."""
WRONG = 3
"""Wrong candidates of a caption in a batch."""


@dataclass(frozen=True)
class Group:
    """Scenes, their images [k, 3, h, w] in [0, 1], and images that fit none of them."""

    scenes: list[Scene]
    images: Tensor
    without_caption: Tensor


def clip_config(*, vocab_size: int, image_size: int, context_length: int) -> dict[str, Any]:
    """open_clip's description: a small ModifiedResNet and a small text transformer."""
    return {
        "embed_dim": 192,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 24, "image_size": image_size},
        "text_cfg": {
            "context_length": context_length, "vocab_size": vocab_size, "width": 160, "heads": 5, "layers": 3,
        },
    }  # fmt: skip


class ClipTask:
    """Contrastive loss (Radford et al. 2021) over images and captions, in groups of four:

    - siblings, drawn: they differ in one thing only;
    - siblings, reconstructed by the VQGAN, and each spoiled in a few codes;
    - candidates of the transformer for four captions: for each a right one, and wrong ones.

    Spoiled images and wrong candidates have no caption: captions must prefer theirs to them.
    """

    name = "clip"
    warmup_steps = 200
    clip = 1.0

    def __init__(
        self,
        config: dict[str, Any],
        *,
        vqgan: Vqgan,
        tokenize: Callable[[Sequence[str]], Tensor],
        pool: int,
        candidates: Sequence[Candidates] = (),
        held_out: Sequence[Candidates] = (),
        held_out_groups: int = 96,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        device: str = "cpu",
    ) -> None:
        """tokenize: captions -> ids [b, context_length]; pool: groups to pass through the VQGAN once;
        held_out, held_out_groups: candidates, and scenes with their siblings, to evaluate on.
        """
        from open_clip import CLIP

        torch.manual_seed(0)
        self.device = torch.device(device)
        self.module: Any = CLIP(**config).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05
        )
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.vqgan, self.tokenize = vqgan.eval(), tokenize
        self.candidates, self.held_out, self.held_out_groups = candidates, held_out, held_out_groups
        self.mean, self.std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (OPENAI_MEAN, OPENAI_STD))
        self.pool = [self._group(random.Random(f"pool/{i}")) for i in range(pool)]
        self.pool_images = [self._reconstruct(group) for group in self.pool]
        self.pool_spoiled = [self._spoil(group, random.Random(i)) for i, group in enumerate(self.pool)]

    # --- a step -------------------------------------------------------------------------------------------------

    def step(self, step: int) -> tuple[int, dict[str, float]]:
        rng = random.Random(f"clip/{step}")
        kinds = [
            self._drawn,
            *([self._recoded] if self.pool else []),
            *([self._sampled] * 2 if self.candidates else []),
        ]
        groups = [kinds[i % len(kinds)](rng) for i in range(self.batch_size // SIBLINGS)]
        scenes = [scene for group in groups for scene in group.scenes]
        images = torch.cat([group.images for group in groups] + [group.without_caption for group in groups])
        logits = self._logits(images, [caption(s, rng) for s in scenes])
        target = torch.arange(len(scenes), device=self.device)
        of_images = logits[: len(scenes)]
        loss = (F.cross_entropy(of_images, target) + F.cross_entropy(logits.T, target)) / 2
        loss.backward()
        return len(images), {"loss": loss.item(), "accuracy": (of_images.argmax(1) == target).float().mean().item()}

    def after_step(self) -> None:
        pass

    def _drawn(self, rng: random.Random) -> Group:
        scenes = self._group(rng)
        images = _tensor([world.draw(s) for s in scenes])
        return Group(scenes, images, images[:0])

    def _recoded(self, rng: random.Random) -> Group:
        j = rng.randrange(len(self.pool))
        return Group(self.pool[j], self.pool_images[j].float().div(255), self.pool_spoiled[j].float().div(255))

    def _sampled(self, rng: random.Random) -> Group:
        chosen = rng.sample(self.candidates, min(SIBLINGS, len(self.candidates)))
        right = torch.stack([rng.choice(list(c.right)) for c in chosen])
        wrong = torch.stack([image for c in chosen for image in rng.sample(list(c.wrong), min(WRONG, len(c.wrong)))])
        return Group([c.scene for c in chosen], right.float().div(255), wrong.float().div(255))

    def _group(self, rng: random.Random) -> list[Scene]:
        scene = world.random_scene(rng)
        return [scene, *(world.change_one_thing(scene, rng) for _ in range(SIBLINGS - 1))]

    # --- through the VQGAN --------------------------------------------------------------------------------------

    @torch.no_grad()
    def _reconstruct(self, group: list[Scene]) -> Tensor:
        """uint8 [len(group), 3, h, w]: the images after encoding and decoding."""
        return self.vqgan.decode(self._codes(group)).mul(255).round().to(torch.uint8).cpu()

    @torch.no_grad()
    def _spoil(self, group: list[Scene], rng: random.Random) -> Tensor:
        """uint8 [len(group), 3, h, w]: each image spoiled in the rows of codes that one of its things fills."""
        side = self.vqgan.config.fmap_size
        codes = self._codes(group).view(-1, side, side)
        spoiled = codes.clone()
        for i, scene in enumerate(group):
            thing = rng.choice(scene.things)
            rows = range(thing.top // GRID, (thing.top + thing.size) // GRID)
            columns = range(thing.left // GRID, (thing.left + thing.size) // GRID)
            cut = rng.choice(rows[1:-1])
            way = rng.randrange(3)
            if way == 0:  # begins as one scene, ends as another
                spoiled[i, cut:] = codes[(i + rng.randint(1, len(group) - 1)) % len(group), cut:]
            elif way == 1:  # the rows do not meet
                spoiled[i, cut:] = spoiled[i, cut:].roll(rng.choice((-2, -1, 1, 2)), dims=-1)
            else:  # parts are missing
                for _ in range(rng.randint(2, 5)):
                    spoiled[i, rng.choice(rows), rng.choice(columns)] = codes[i, 0, 0]
        return self.vqgan.decode(spoiled).mul(255).round().to(torch.uint8).cpu()

    def _codes(self, group: list[Scene]) -> Tensor:
        return encode(self.vqgan, np.stack([world.draw(s) for s in group]))

    def _logits(self, images: Tensor, captions: list[str]) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            seen = self.module.encode_image((images.to(self.device) - self.mean) / self.std, normalize=True)
            read = self.module.encode_text(self.tokenize(captions).to(self.device), normalize=True)
        return self.module.logit_scale.exp().clamp(max=100) * seen.float() @ read.float().T

    # --- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Shares of held-out scenes, reconstructed, whose plain caption prefers them to seven siblings, and to their
        own spoiled image; and of held-out prompts whose best candidate is a right one.
        """
        right, whole, groups = 0, 0, self.held_out_groups
        for scene, rng in islice(world.stream(2_000_000, held_out=True), groups):
            siblings = [world.change_one_thing(scene, rng) for _ in range(7)]
            group = list({plain_caption(s): s for s in (*siblings, scene)}.values())[::-1]
            images = self._reconstruct(group).float().div(255)
            spoiled = self._spoil(group[:2], rng)[:1].float().div(255)
            logits = self._logits(torch.cat((images, spoiled)), [plain_caption(scene)])[:, 0]
            right += int(logits[:-1].argmax() == 0)
            whole += int(logits[0] > logits[-1])
        figures = {"held_out_accuracy": right / groups, "whole_preferred": whole / groups}
        if self.held_out:
            figures["held_out_picked"] = sum(self._picks_right(c) for c in self.held_out) / len(self.held_out)
        return figures

    def _picks_right(self, candidates: Candidates) -> bool:
        images = torch.cat((candidates.right, candidates.wrong)).float().div(255)
        best = self._logits(images, [plain_caption(candidates.scene)])[:, 0].argmax()
        return bool(best < len(candidates.right))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _tensor(images: Sequence[Any]) -> Tensor:
    """uint8 images [h, w, 3] -> [b, 3, h, w] in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
