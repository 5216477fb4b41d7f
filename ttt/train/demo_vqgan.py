"""The demo's VQGAN: how it learns to reconstruct captioned scenes. Knows nothing of text."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ttt.config import VqganConfig
from ttt.data import shapes
from ttt.model.vqgan import Vqgan
from ttt.train.loop import Recipe


def pictures(images: list[Image.Image]) -> Tensor:
    """RGB images of one size -> [b, 3, h, w] float32 in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float().div_(255)


class VqganTask:
    """Autoencoder first, then codes: of crops (most of the training), then of whole pictures.

    The codebook starts as the k-means of the autoencoder's latents, and the quantiser's logits as the negative
    distances to it: from there the Gumbel quantiser learns in minutes what takes it hours from random codes.
    L1 + squared error + the quantiser's KL term. No discriminator and no perceptual loss: flat shapes have no
    texture for them to restore.
    """

    name = "vqgan"

    def __init__(
        self, config: VqganConfig, recipe: Recipe, *, crop: int = 64, codes_from: float = 0.25, whole_from: float = 0.9
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.module: Vqgan = Vqgan(config)
        _start_strong(self.module)
        self.recipe, self.crop = recipe, crop
        self.codes_from, self.whole_from = int(codes_from * recipe.steps), int(whole_from * recipe.steps)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        x = self._batch(step, whole=step >= self.whole_from)
        model = self.module
        if step == self.codes_from:
            self._start_codebook(step)
        h = model.quant_conv(model.encoder(x * 2 - 1))
        if step < self.codes_from:
            z, extra, figures = h + 0.1 * torch.randn_like(h), 1e-3 * h.square().mean(), {}
        else:
            progress = (step - self.codes_from) / (self.recipe.steps - self.codes_from)
            model.quantize.temperature = max(0.1, 1.0 - 1.5 * progress)
            model.quantize.kl_weight = 1e-4
            z, extra, (_, _, codes) = model.quantize(h)
            figures = {"used_codes": float(codes.unique().numel())}
        y = model.decode_latents(z)
        l1 = F.l1_loss(y, x)
        return l1 + 4 * F.mse_loss(y, x) + extra, {"l1": l1.item(), **figures}

    @torch.no_grad()
    def _start_codebook(self, step: int) -> None:
        """Codes = k-means of latents; logits = -|h - code|^2 / scale = (2 h.code - |code|^2) / scale + const."""
        from scipy.cluster.vq import kmeans2

        model, config = self.module, self.module.config
        latents = torch.cat([
            model.quant_conv(model.encoder(self._batch(step + i, whole=False) * 2 - 1)).permute(0, 2, 3, 1).flatten(0, 2)
            for i in range(96)
        ])  # fmt: skip
        centres, nearest = kmeans2(latents.numpy(), config.n_embed, iter=12, minit="++", rng=self.recipe.seed)
        codes = torch.from_numpy(centres).float()
        scale = (latents - codes[torch.from_numpy(nearest).long()]).square().sum(1).mean().clamp(min=1e-4)
        model.quantize.embed.weight.copy_(codes)
        model.quantize.proj.weight.copy_((2 * codes / scale)[:, :, None, None])
        model.quantize.proj.bias.copy_(-codes.square().sum(1) / scale)

    def _batch(self, step: int, *, whole: bool) -> Tensor:
        count = self.recipe.batch_size // 4 if whole else self.recipe.batch_size
        start = step * self.recipe.batch_size
        scenes = islice(shapes.stream(self.recipe.seed, start=start), count)
        size = self.module.config.resolution
        rng = random.Random(f"crop/{self.recipe.seed}/{step}")
        images = []
        for scene, _ in scenes:
            image = shapes.draw(scene, size)
            images.append(image if whole else self._around_a_thing(image, scene, rng))
        return pictures(images)

    def _around_a_thing(self, image: Image.Image, scene: shapes.Scene, rng: random.Random) -> Image.Image:
        """A crop that shows an edge: plain background is learned in no time."""
        size, crop = image.width, self.crop
        thing = rng.choice(scene.things)
        left, top = (
            min(size - crop, max(0, round((c + rng.uniform(-1, 1) * thing.radius) * size) - crop // 2))
            for c in (thing.x, thing.y)
        )
        return image.crop((left, top, left + crop, top + crop))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR in dB and the share of the codebook in use, on held-out scenes, with the deterministic codes."""
        scenes = [s for s, _ in islice(shapes.stream(10**6 + self.recipe.seed, held_out=True), 64)]
        x = pictures([shapes.draw(s, self.module.config.resolution) for s in scenes])
        codes = self.module.encode(x)
        error = F.mse_loss(self.module.decode(codes), x).item()
        return {"psnr": -10 * float(np.log10(error)), "codes_used": codes.unique().numel() / self.module.config.n_embed}


def _start_strong(module: nn.Module) -> None:
    """He's initialisation, residual branches quiet: halves the steps to a given error against torch's defaults."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    for part in module.modules():
        if isinstance(conv := getattr(part, "conv2", None), nn.Conv2d):
            conv.weight.data.mul_(0.2)
