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
from ttt.data.scenes import pictures
from ttt.model.vqgan import Vqgan
from ttt.train.loop import StatelessTask
from ttt.train.recipe import Recipe


class VqganTask(StatelessTask):
    """An autoencoder first, then codes. Pictures larger than `crop` are learnt from crops, at last whole.

    The codebook starts as the k-means of the autoencoder's latents and learns as in VQ-VAE (van den Oord et al. 2017,
    equation 3). The Gumbel quantiser's projection is kept equal to it: logits are the negative squared distances,
    so the most likely code is the nearest. (Learning with Gumbel noise was tried: half of the codes fell out of use.)
    L1 + squared error, no discriminator and no perceptual loss: flat shapes have no texture for them to restore.
    """

    name = "vqgan"

    def __init__(
        self,
        config: VqganConfig,
        recipe: Recipe,
        *,
        crop: int = 64,
        codes_from: float = 0.639,
        whole_from: float = 0.93,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.module: Vqgan = Vqgan(config)
        _start_strong(self.module)
        self.recipe, self.crop = recipe, crop
        self.codes_from = int(codes_from * recipe.steps)
        self.whole_from = int(whole_from * recipe.steps) if crop < config.resolution else recipe.steps

    def backward(self, step: int) -> dict[str, float]:
        x = self._batch(step, whole=step >= self.whole_from)
        model = self.module
        if step == self.codes_from:
            self._start_codebook(step)
        h = model.quant_conv(model.encoder(x * 2 - 1))
        if step < self.codes_from:
            z, extra, figures = h + 0.1 * torch.randn_like(h), 1e-3 * h.square().mean(), {}
        else:
            z, extra, used = self._quantise(h)
            figures = {"used_codes": used}
        y = model.decode_latents(z)
        l1 = F.l1_loss(y, x)
        loss = l1 + 4 * F.mse_loss(y, x) + extra
        loss.backward()
        return {"loss": loss.item(), "l1": l1.item(), **figures}

    def _quantise(self, h: Tensor) -> tuple[Tensor, Tensor, float]:
        """Latents [b, c, h, w] -> nearest codes with a straight-through gradient, VQ-VAE's two losses, codes used."""
        self._sync_projection()
        with torch.no_grad():
            codes = self.module.quantize.proj(h).argmax(dim=1)
        e = F.embedding(codes, self.module.quantize.embed.weight).permute(0, 3, 1, 2)
        spread = h.detach().var().clamp(min=1e-6)  # the losses don't depend on the latents' scale
        extra = (F.mse_loss(e, h.detach()) + 0.25 * F.mse_loss(h, e.detach())) / spread
        return h + (e - h).detach(), 0.2 * extra, float(codes.unique().numel())

    @torch.no_grad()
    def _sync_projection(self) -> None:
        """Logits = 2 h.code - |code|^2 = |h|^2 - |h - code|^2."""
        codes = self.module.quantize.embed.weight
        self.module.quantize.proj.weight.copy_((2 * codes)[:, :, None, None])
        self.module.quantize.proj.bias.copy_(-codes.square().sum(1))

    @torch.no_grad()
    def _start_codebook(self, step: int) -> None:
        from scipy.cluster.vq import kmeans2

        model = self.module
        latents = torch.cat([
            model.quant_conv(model.encoder(self._batch(step + i, whole=False) * 2 - 1)).movedim(1, 3).flatten(0, 2)
            for i in range(120)
        ])  # fmt: skip
        centres, _ = kmeans2(
            latents.numpy(), _spread_out(latents, model.config.n_embed).numpy(), iter=8, minit="matrix"
        )
        model.quantize.embed.weight.copy_(torch.from_numpy(centres))

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
        self._sync_projection()
        scenes = [s for s, _ in islice(shapes.stream(10**6 + self.recipe.seed, held_out=True), 64)]
        x = pictures([shapes.draw(s, self.module.config.resolution) for s in scenes])
        codes = self.module.encode(x)
        error = F.mse_loss(self.module.decode(codes), x).item()
        return {"psnr": -10 * float(np.log10(error)), "codes_used": codes.unique().numel() / self.module.config.n_embed}


def _spread_out(points: Tensor, count: int) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each centre drawn by its squared distance to those before.

    [n, d] -> [count, d]. scipy's own takes time that grows with the square of `count`.
    """
    chosen = [int(torch.randint(len(points), ()))]
    nearest = torch.full((len(points),), torch.inf)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
        chosen.append(int(torch.multinomial(nearest, 1)))
    return points[chosen]


def _start_strong(module: nn.Module) -> None:
    """He's initialisation, residual branches quiet: halves the steps to a given error against torch's defaults."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    for part in module.modules():
        if isinstance(conv := getattr(part, "conv2", None), nn.Conv2d):
            conv.weight.data.mul_(0.2)
