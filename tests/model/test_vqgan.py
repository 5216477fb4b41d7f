"""The VQGAN: its activation, and that building one prints nothing and leaves the output of other threads alone."""

from __future__ import annotations

import contextlib
import io
import sys
import threading

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
        assert fused.std() > 0.05, "a uniform image would prove nothing"
        monkeypatch.setattr(taming_model, "nonlinearity", spelled_out)
        torch.testing.assert_close(fused, vqgan.decode(codes), atol=1e-5, rtol=0)
        monkeypatch.setattr(taming_model, "nonlinearity", torch.relu)
        assert (fused - vqgan.decode(codes)).abs().max() > 1e-2, "the activation is read where it is replaced"


def test_building_a_model_prints_nothing(capsys: pytest.CaptureFixture[str]):
    tiny_vqgan()
    assert capsys.readouterr().out == ""


def test_building_models_in_threads_leaves_the_output_of_others_alone():
    printed, built = io.StringIO(), threading.Event()
    lines = 0

    def build() -> None:
        for _ in range(3):
            tiny_vqgan()

    with contextlib.redirect_stdout(printed):
        before = sys.stdout
        threads = [threading.Thread(target=build) for _ in range(2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            print("a line of another thread")
            lines += 1
            built.wait(1e-4)
        assert sys.stdout is before
    assert printed.getvalue().count("a line of another thread\n") == lines > 3
