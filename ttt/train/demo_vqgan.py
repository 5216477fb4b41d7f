"""The demo's VQGAN: how it learns to reconstruct the world's scenes. Independent of text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ttt.config import VqganConfig
from ttt.data.world.cache import SceneCache
from ttt.data.world.checker import check_scene
from ttt.data.world.scenes import GRID
from ttt.model.vqgan import Vqgan

CROP = 64
"""Pixels on the side of the crops that most batches are made of."""
TRIALS = 2
"""Crops of which the one with the most edges is learnt from: plain background is learnt in no time."""
WHOLE_EVERY = 4
"""One batch in so many has whole images: attention must see their size, convolutions their borders."""
DECAY = 0.99
"""Of the running counts and sums of every code."""
DEAD = 0.003
"""Running count below which a code is dead: it was not used for some hundred steps."""


class VqganTask:
    """An autoencoder for `codes_from` steps, then codes, on crops aligned with the grid of codes.

    The codebook follows the running means of the latents next to each code (van den Oord et al. 2017, appendix A.1),
    and dead codes move to latents that are far from their own. The Gumbel quantiser's projection is kept equal to it:
    logits are negative squared distances, so the most likely code is the nearest. The loss is L1 on pixels and on
    their differences (edges), no discriminator: sprites have no texture for it to restore.
    """

    name = "vqgan"
    warmup_steps = 200
    clip = 1.0

    def __init__(
        self,
        config: VqganConfig,
        cache: SceneCache,
        held_out: SceneCache,
        *,
        batch_size: int = 16,
        learning_rate: float = 8e-4,
        codes_from: int = 600,
        device: str = "cpu",
    ) -> None:
        """batch_size: crops of a step; a fourth as many whole images cost the same."""
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.module = Vqgan(config).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        _start_strong(self.module)
        for parameter in self.module.quantize.parameters():
            parameter.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.module.parameters() if p.requires_grad],
            lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=self.device.type == "cuda",
        )  # fmt: skip
        # On a GPU the images lie in its memory; elsewhere they stay in their file.
        images = torch.from_numpy(cache.images)
        self.images = images.to(self.device) if self.device.type == "cuda" else images
        self.held_out = held_out
        self.batch_size, self.learning_rate, self.codes_from = batch_size, learning_rate, codes_from
        self.counts = torch.ones(config.n_embed, device=self.device)
        self.sums = self.module.quantize.embed.weight.detach().clone()
        self._latents = torch.empty(0)

    # --- a step -------------------------------------------------------------------------------------------------

    def step(self, step: int) -> tuple[int, dict[str, float]]:
        x = self._batch(step)
        model = self.module
        if step == self.codes_from:
            self._start_codebook(step)
        figures: dict[str, float] = {}
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            h = model.quant_conv(model.encoder(x * 2 - 1))
            if step < self.codes_from:
                z, extra = h + 0.1 * torch.randn_like(h), 1e-3 * h.float().square().mean()
            else:
                z, extra, figures = self._quantise(h.float())
            y = model.decode_latents(z)
        y = y.float()
        l1, edges = F.l1_loss(y, x), _edge_loss(y, x)
        (l1 + edges + extra).backward()
        share = (x.shape[-1] / self.module.config.resolution) ** 2
        return round(len(x) * share), {"l1": l1.item(), "edges": edges.item(), **figures}

    def _quantise(self, h: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Latents [b, c, h, w] -> nearest codes with a straight-through gradient, the commitment loss, figures."""
        flat = h.detach().movedim(1, 3).flatten(0, 2)
        codes = self._nearest(flat)
        e = F.embedding(codes, self.module.quantize.embed.weight).view(h.shape[0], *h.shape[2:], -1).movedim(3, 1)
        spread = h.detach().var().clamp(min=1e-6)  # the loss does not depend on the latents' scale
        commitment = F.mse_loss(h, e) / spread
        self._latents, self._codes = flat, codes
        figures = {"commitment": commitment.item(), "used": float(codes.unique().numel())}
        return h + (e - h).detach(), 0.05 * commitment, figures

    def _nearest(self, flat: Tensor) -> Tensor:
        codes = self.module.quantize.embed.weight
        with torch.autocast(self.device.type, enabled=False):  # 16 bits cannot tell near codes apart
            return torch.addmm(codes.square().sum(1), flat, codes.T, alpha=-2).argmin(1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move every code towards the mean of its latents, and dead ones to latents that lie far from any code."""
        if not len(self._latents):
            return
        flat, codes = self._latents, self._codes
        self.counts.mul_(DECAY).index_add_(0, codes, torch.full_like(codes, 1 - DECAY, dtype=torch.float32))
        self.sums.mul_(DECAY).index_add_(0, codes, flat * (1 - DECAY))
        embed = self.module.quantize.embed.weight
        embed.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
        dead = (self.counts < DEAD).nonzero()[:, 0][: len(flat) // 32]
        if len(dead):
            far = (flat - embed[codes]).square().sum(1)
            chosen = flat[torch.multinomial(far + 1e-9, len(dead))]
            embed[dead] = chosen
            self.counts[dead] = 5 * DEAD
            self.sums[dead] = chosen * 5 * DEAD
        self._latents = flat[:0]

    @torch.no_grad()
    def _start_codebook(self, step: int) -> None:
        """Codes at latents of many batches, spread out; the running means then do what k-means would."""
        latents = []
        for i in range(48):
            x = self._batch(step + 1 + i)
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                latents.append(
                    self.module.quant_conv(self.module.encoder(x * 2 - 1)).float().movedim(1, 3).flatten(0, 2)
                )
        flat = torch.cat(latents)
        count = self.module.config.n_embed
        far = (flat - flat.mean(0)).square().sum(1)  # backgrounds are many and alike
        chosen = flat[torch.multinomial(far, count, replacement=len(flat) < count)]
        self.module.quantize.embed.weight.copy_(chosen)
        self.counts.fill_(0.05)
        self.sums.copy_(chosen * 0.05)

    # --- data ---------------------------------------------------------------------------------------------------

    def _batch(self, step: int) -> Tensor:
        """Crops or whole images [b, 3, h, w] in [0, 1]."""
        random = torch.Generator().manual_seed(step)
        if step % WHOLE_EVERY == 0:
            rows = torch.randint(len(self.images), (max(1, self.batch_size // 4),), generator=random)
            pixels = self.images[rows.to(self.images.device)]
        else:
            pixels = self._crops(random)
        x = pixels.to(self.device).movedim(3, 1).float().div_(255)
        return x.contiguous(memory_format=torch.channels_last)

    def _crops(self, random: torch.Generator) -> Tensor:
        """Crops on the grid [b, CROP, CROP, 3] uint8: each the one with the most edges of `TRIALS` of one image."""
        b, places = self.batch_size, (self.images.shape[1] - CROP) // GRID + 1
        rows = torch.randint(len(self.images), (b, 1, 1, 1), generator=random)
        corners = torch.randint(places, (2, b, TRIALS, 1, 1), generator=random) * GRID
        side = torch.arange(CROP)
        where = (rows, corners[0] + side[:, None], corners[1] + side)
        crops = self.images[tuple(index.to(self.images.device) for index in where)]  # [b, TRIALS, CROP, CROP, 3]
        edges = crops[:, :, ::2, ::2].short().diff(dim=3).abs().sum(dim=(2, 3, 4))
        return crops[torch.arange(b, device=crops.device), edges.argmax(1)]

    # --- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sync_projection(self) -> None:
        """Logits = 2 h.code - |code|^2 = |h|^2 - |h - code|^2."""
        codes = self.module.quantize.embed.weight
        self.module.quantize.proj.weight.copy_((2 * codes)[:, :, None, None])
        self.module.quantize.proj.bias.copy_(-codes.square().sum(1))

    @torch.no_grad()
    def reconstruct(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Tensor]:
        """uint8 [b, h, w, 3] -> (the same through the codes, the codes [b, n])."""
        self.sync_projection()
        x = torch.from_numpy(np.array(images)).to(self.device).movedim(3, 1).float().div_(255)
        codes = torch.cat([self.module.encode(part) for part in x.split(8)])
        y = torch.cat([self.module.decode(part) for part in codes.split(8)])
        return y.mul(255).round().to(torch.uint8).movedim(1, 3).cpu().numpy(), codes

    def evaluate(self) -> dict[str, float]:
        """Shares of held-out scenes whose reconstruction the checker finds right, PSNR in dB, codes in use."""
        images = np.asarray(self.held_out.images)
        seen, codes = self.reconstruct(images)
        scenes = [self.held_out.scene(i) for i in range(len(images))]
        results = [check_scene(image, scene) for image, scene in zip(seen, scenes, strict=True)]
        error = np.square((seen.astype(np.float32) - images) / 255).mean()
        figures = {"psnr": float(-10 * np.log10(error)), "codes": float(codes.unique().numel())}
        for name, kinds in (
            ("one", ("alone",)),
            ("two", ("above", "below", "left", "right")),
            ("more", ("count", "row")),
        ):
            right = [v.whole for v, s in zip(results, scenes, strict=True) if s.relation in kinds]
            if right:
                figures[f"right_{name}"] = float(np.mean(right))
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


def _edge_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 of the differences between neighbouring pixels, down and across."""
    return sum((F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3)), start=y.new_zeros(()))


def _start_strong(module: nn.Module) -> None:
    """He's initialisation, residual branches quiet: halves the steps to a given error against torch's defaults."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    for part in module.modules():
        if isinstance(conv := getattr(part, "conv2", None), nn.Conv2d):
            conv.weight.data.mul_(0.2)
