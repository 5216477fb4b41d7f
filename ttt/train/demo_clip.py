"""The demo's CLIP: an open_clip model of our own that learns to tell scenes apart. Knows nothing of DALL-E."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttt.data import shapes
from ttt.data.scenes import pictures
from ttt.model.vqgan import Vqgan
from ttt.rerank import OPENAI_MEAN, OPENAI_STD
from ttt.train.demo_paintings import Paintings
from ttt.train.loop import StatelessTask
from ttt.train.recipe import Recipe

SIBLINGS = 4
"""Scenes of a batch that differ in one thing only: without them a CLIP learns colours and forgets relations."""


WRONG = 3
"""Wrong paintings of a caption in a batch."""


@dataclass(frozen=True)
class Group:
    """Scenes, their pictures [k, 3, h, w] in [0, 1], and pictures that fit none of them."""

    scenes: list[shapes.Scene]
    images: Tensor
    without_caption: Tensor


def clip_config(*, vocab_size: int, image_size: int, context_length: int) -> dict[str, Any]:
    """open_clip's description: a small ModifiedResNet and a small text transformer."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 24, "image_size": image_size},
        "text_cfg": {
            "context_length": context_length, "vocab_size": vocab_size, "width": 128, "heads": 4, "layers": 3,
        },
    }  # fmt: skip


class ClipTask(StatelessTask):
    """Contrastive loss (Radford et al. 2021) over pictures and captions, in groups of four:

    - siblings, drawn: they differ in one thing only;
    - siblings, seen through the VQGAN, and each spoiled in a few codes;
    - what the transformer painted for four captions: for each a right painting, and wrong ones.

    Spoiled pictures and wrong paintings have no caption: captions must prefer theirs to them.
    """

    name = "clip"

    def __init__(
        self,
        config: dict[str, Any],
        recipe: Recipe,
        *,
        vqgan: Vqgan,
        tokenize: Any,
        pool: int,
        paintings: Sequence[Paintings] = (),
        held_out: Sequence[Paintings] = (),
        held_out_groups: int = 96,
    ) -> None:
        """tokenize: captions -> ids [b, context_length]; pool: groups to draw and pass through the VQGAN once;
        held_out, held_out_groups: paintings, and drawn scenes with their siblings, to evaluate on.
        """
        from open_clip import CLIP

        torch.manual_seed(recipe.seed)
        self.module: Any = CLIP(**config)
        self.recipe, self.vqgan, self.tokenize = recipe, vqgan.eval(), tokenize
        self.paintings, self.held_out, self.held_out_groups = paintings, held_out, held_out_groups
        self.size = vqgan.config.resolution
        mean_std = torch.tensor([OPENAI_MEAN, OPENAI_STD])
        self.mean, self.std = mean_std.view(2, 1, 3, 1, 1)
        self.pool = [self._group(random.Random(f"pool/{recipe.seed}/{i}")) for i in range(pool)]
        self.pool_images = [self._reconstruct(group) for group in self.pool]
        self.pool_spoiled = [self._spoil(group, random.Random(i)) for i, group in enumerate(self.pool)]

    def backward(self, step: int) -> dict[str, float]:
        rng = random.Random(f"clip/{self.recipe.seed}/{step}")
        kinds = [self._drawn, *([self._recoded] if self.pool else []), *([self._painted] * 2 if self.paintings else [])]
        groups = [kinds[i % len(kinds)](rng) for i in range(self.recipe.batch_size // SIBLINGS)]
        scenes = [scene for group in groups for scene in group.scenes]
        images = torch.cat([group.images for group in groups] + [group.without_caption for group in groups])
        logits = self._logits(images, [shapes.caption(s, rng) for s in scenes])
        target = torch.arange(len(scenes))
        of_images = logits[: len(scenes)]
        loss = (F.cross_entropy(of_images, target) + F.cross_entropy(logits.T, target)) / 2
        loss.backward()
        return {"loss": loss.item(), "accuracy": (of_images.argmax(1) == target).float().mean().item()}

    def _drawn(self, rng: random.Random) -> Group:
        scenes = self._group(rng)
        images = pictures([shapes.draw(s, self.size, supersample=2) for s in scenes])
        return Group(scenes, images, images[:0])

    def _recoded(self, rng: random.Random) -> Group:
        j = rng.randrange(len(self.pool))
        return Group(self.pool[j], self.pool_images[j].float().div(255), self.pool_spoiled[j].float().div(255))

    def _painted(self, rng: random.Random) -> Group:
        chosen = rng.sample(self.paintings, min(SIBLINGS, len(self.paintings)))
        right = torch.stack([rng.choice(list(p.right)) for p in chosen])
        wrong = torch.stack([image for p in chosen for image in rng.sample(list(p.wrong), min(WRONG, len(p.wrong)))])
        return Group([p.scene for p in chosen], right.float().div(255), wrong.float().div(255))

    def _group(self, rng: random.Random) -> list[shapes.Scene]:
        scene = shapes.random_scene(rng)
        return [scene, *(shapes.change_one_thing(scene, rng) for _ in range(SIBLINGS - 1))]

    @torch.no_grad()
    def _reconstruct(self, group: list[shapes.Scene]) -> Tensor:
        """uint8 [len(group), 3, h, w]: what the pictures look like once they are codes."""
        return self.vqgan.decode(self._codes(group)).mul(255).round().to(torch.uint8)

    @torch.no_grad()
    def _spoil(self, group: list[shapes.Scene], rng: random.Random) -> Tensor:
        """uint8 [len(group), 3, h, w]: each picture spoiled in the rows of codes that one of its things fills."""
        side = self.vqgan.config.fmap_size
        codes = self._codes(group).view(-1, side, side)
        spoiled = codes.clone()
        for i, scene in enumerate(group):
            thing = rng.choice(scene.things)
            top, bottom = int((thing.y - thing.radius) * side), int((thing.y + thing.radius) * side)
            left, right = int((thing.x - thing.radius) * side), int((thing.x + thing.radius) * side)
            cut = rng.randint(top + 1, max(top + 1, bottom))
            way = rng.randrange(3)
            if way == 0:  # begins as one scene, ends as another
                spoiled[i, cut:] = codes[(i + rng.randint(1, len(group) - 1)) % len(group), cut:]
            elif way == 1:  # the rows don't meet
                spoiled[i, cut:] = spoiled[i, cut:].roll(rng.choice((-2, -1, 1, 2)), dims=-1)
            else:  # parts are missing
                rows, columns = (
                    range(max(top, 0), min(bottom, side - 1) + 1),
                    range(max(left, 0), min(right, side - 1) + 1),
                )
                for _ in range(rng.randint(1, 3)):
                    spoiled[i, rng.choice(rows), rng.choice(columns)] = codes[i, 0, 0]
        return self.vqgan.decode(spoiled).mul(255).round().to(torch.uint8)

    def _codes(self, group: list[shapes.Scene]) -> Tensor:
        return self.vqgan.encode(pictures([shapes.draw(s, self.size, supersample=2) for s in group]))

    def _logits(self, images: Tensor, captions: list[str]) -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            seen = self.module.encode_image((images - self.mean) / self.std, normalize=True)
            read = self.module.encode_text(self.tokenize(captions), normalize=True)
        return self.module.logit_scale.exp().clamp(max=100) * seen.float() @ read.float().T

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """How often a held-out scene, seen through the VQGAN, is told by its plain caption: from seven siblings, and
        from its own spoiled picture; and how often the best of a held-out prompt's paintings is a right one.
        """
        right, whole, groups = 0, 0, self.held_out_groups
        for scene, _ in islice(shapes.stream(2 * 10**6 + self.recipe.seed, held_out=True), groups):
            rng = random.Random(scene.jitter)
            group = [scene, *(shapes.change_one_thing(scene, rng) for _ in range(7))]
            different = list({shapes.plain_caption(s): s for s in group}.values())
            images = self._reconstruct(different).float().div(255)
            if len(different) < 2:
                continue
            spoiled = self._spoil(different[:2], rng)[:1].float().div(255)
            logits = self._logits(torch.cat((images, spoiled)), [shapes.plain_caption(scene)])[:, 0]
            right += int(logits[:-1].argmax() == 0)
            whole += int(logits[0] > logits[-1])
        figures = {"held_out_accuracy": right / groups, "spoiled_told": whole / groups}
        if self.held_out:
            figures["held_out_picked"] = sum(self._picks_right(p) for p in self.held_out) / len(self.held_out)
        return figures

    def _picks_right(self, painted: Paintings) -> bool:
        images = torch.cat((painted.right, painted.wrong)).float().div(255)
        best = self._logits(images, [shapes.plain_caption(painted.scene)])[:, 0].argmax()
        return bool(best < len(painted.right))
