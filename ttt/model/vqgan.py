"""The VQGAN: images to codes and back, with the encoder, Gumbel quantiser and decoder of taming-transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttt.config import VqganConfig
from ttt.errors import InvalidInput


class Vqgan(nn.Module):
    """VQGAN with a Gumbel quantiser (Esser et al. 2021); parameter names are those of taming's `GumbelVQ`.

    Images are [b, 3, h, w] in [0, 1]; codes are [b, n] int64 in raster order, n = (h / f) * (w / f).
    """

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        # Only `modules`: `taming.models` imports parts of Lightning that no longer exist.
        from taming.modules.diffusionmodules import model as taming_model
        from taming.modules.diffusionmodules.model import Decoder, Encoder
        from taming.modules.vqvae.quantize import GumbelQuantize

        # taming computes SiLU as x * sigmoid(x), two passes over the largest activations; F.silu needs one.
        taming_model.nonlinearity = F.silu
        # taming's decoder prints its latent shape. A global of its module hides the built-in from it alone; replacing
        # sys.stdout would swallow what other threads print, and this constructor runs in background threads.
        vars(taming_model)["print"] = _print_nothing
        self.config = config
        shape = config.to_dict() | {"double_z": False}
        del shape["embed_dim"], shape["n_embed"], shape["norm_groups"]
        self.encoder = Encoder(**shape)
        self.decoder = Decoder(**shape)
        for part in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(part, nn.GroupNorm):
                part.num_groups = config.norm_groups
        self.quantize = GumbelQuantize(config.z_channels, config.embed_dim, config.n_embed)
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def code_logits(self, images: Tensor) -> Tensor:
        """[b, 3, h, w] in [0, 1] -> logits of every code at every position [b, v, h / f, w / f]."""
        f = self.config.downscale
        if images.ndim != 4 or images.shape[1] != self.config.in_channels or images.shape[2] % f or images.shape[3] % f:
            raise InvalidInput(
                f"images must be [b, {self.config.in_channels}, h, w] with sides that are multiples of {f}, "
                f"got {list(images.shape)}"
            )
        return self.quantize.proj(self.quant_conv(self.encoder(images * 2 - 1)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The most likely codes, without the Gumbel noise of training: the same image always has the same codes."""
        return self.code_logits(images).argmax(dim=1).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """[b, n] or [b, h, w] codes -> images in [0, 1]; [b, n] must be a square image."""
        if codes.ndim == 2:
            side = round(codes.shape[1] ** 0.5)
            if side * side != codes.shape[1]:
                raise InvalidInput(f"codes [b, n] must fill a square, got n = {codes.shape[1]}; pass [b, h, w] instead")
            codes = codes.view(-1, side, side)
        return self.decode_latents(F.embedding(codes, self.quantize.embed.weight).permute(0, 3, 1, 2)).clamp(0, 1)

    def decode_latents(self, z: Tensor) -> Tensor:
        """[b, embed_dim, h, w] -> images around [0, 1], not clamped (training needs the gradient)."""
        return (self.decoder(self.post_quant_conv(z)) + 1) / 2


def _print_nothing(*_: object, **__: object) -> None:
    pass
