"""The VQGAN's activation, and its precision where painting is in 16 bits."""

from __future__ import annotations

import pytest
import torch
from taming.modules.diffusionmodules import model as taming_model
from torch import Tensor

from tests.support.tiny import tiny_vqgan
from ttt.config import DEMO_VQGAN


def spelled_out(x: Tensor) -> Tensor:
    """taming's own."""
    return x * torch.sigmoid(x)


def test_the_fused_activation_is_tamings(monkeypatch: pytest.MonkeyPatch):
    vqgan = tiny_vqgan(1, DEMO_VQGAN).eval()
    codes = torch.randint(0, DEMO_VQGAN.n_embed, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        fused = vqgan.decode(codes)
        assert fused.std() > 0.05, "an even picture would prove nothing"
        monkeypatch.setattr(taming_model, "nonlinearity", spelled_out)
        torch.testing.assert_close(fused, vqgan.decode(codes), atol=1e-5, rtol=0)
        monkeypatch.setattr(taming_model, "nonlinearity", torch.relu)
        assert (fused - vqgan.decode(codes)).abs().max() > 1e-2, "the activation is read where it is replaced"
