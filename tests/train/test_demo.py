"""The demo's training: the whole chain at a tiny size, the schedule, and going on after being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ttt import SamplingParams, TextToImage
from ttt.config import DEMO, DEMO_VQGAN
from ttt.errors import CheckpointError
from ttt.train.demo import DemoRecipe, DemoTraining
from ttt.train.demo_text import END, train_tokenizer
from ttt.train.demo_vqgan import VqganTask
from ttt.train.loop import run
from ttt.train.recipe import Recipe


class Line:
    """The smallest task: fit y = 2 x with noise that comes from the step's random numbers."""

    name = "line"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(4, 4)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 4)
        return (self.module(x) - 2 * x).square().mean(), {"seen": float(step)}

    def evaluate(self) -> dict[str, float]:
        return {"weight": self.module.weight.mean().item()}


RECIPE = Recipe(steps=40, batch_size=8, learning_rate=0.1, warmup=5)


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [RECIPE.rate(step) for step in range(RECIPE.steps)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[4] == rates[20] == pytest.approx(0.1)
    assert rates[-1] < 0.002
    assert sorted(rates[28:], reverse=True) == rates[28:]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = run(Line(), RECIPE, tmp_path / "whole").state_dict()

    class Stopped(Line):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            if step == 25:
                raise KeyboardInterrupt
            return super().loss(step)

    with pytest.raises(KeyboardInterrupt):
        run(Stopped(), RECIPE, tmp_path / "parts", save_every=0)
    parts = run(Line(), RECIPE, tmp_path / "parts").state_dict()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    last = json.loads((tmp_path / "parts" / "line.jsonl").read_text().splitlines()[-1])
    assert last["step"] == RECIPE.steps
    assert last["weight"] == pytest.approx(whole["weight"].mean().item())


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "line.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"line\.pt"):
        run(Line(), RECIPE, tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Bad(Line):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            loss, figures = super().loss(step)
            return loss * (float("nan") if step == 10 else 1.0), figures

    with pytest.raises(CheckpointError, match="step 10 is not finite"):
        run(Bad(), RECIPE, tmp_path, save_every=0)
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 10


def test_the_tokenizer_knows_the_words_and_reads_any_script(tmp_path: Path) -> None:
    from ttt.tokenizer import read_tokenizer

    train_tokenizer(tmp_path / "t.json", vocab_size=DEMO.num_text_tokens, captions=3000)
    tokenizer = read_tokenizer(tmp_path / "t.json")
    assert tokenizer.get_vocab_size() == DEMO.num_text_tokens
    assert tokenizer.token_to_id(END) == DEMO.num_text_tokens - 1
    assert len(tokenizer.encode("a red circle above a blue square").ids) == 7
    for text in ("красный круг", "赤い丸"):
        ids = tokenizer.encode(text).ids
        assert ids and tokenizer.decode(ids).strip() == text


def test_the_codebook_starts_at_the_latents_and_codes_are_the_nearest() -> None:
    recipe = Recipe(steps=10, batch_size=4, learning_rate=1e-4)
    task = VqganTask(replace(DEMO_VQGAN, n_embed=32), recipe, codes_from=0.0)
    task._start_codebook(0)
    x = task._batch(0, whole=False)
    with torch.no_grad():
        loss, figures = task.loss(1)
        h = task.module.quant_conv(task.module.encoder(x * 2 - 1)).permute(0, 2, 3, 1).flatten(1, 2)
        nearest = torch.cdist(h, task.module.quantize.embed.weight.expand(len(h), -1, -1)).argmin(-1)
        assert (task.module.encode(x) == nearest).float().mean() > 0.99
    assert torch.isfinite(loss)
    assert figures["used_codes"] > 4


def test_all_stages_make_a_bundle_that_paints(tmp_path: Path) -> None:
    recipe = DemoRecipe(
        vqgan=Recipe(steps=4, batch_size=4, learning_rate=1e-4),
        clip=Recipe(steps=2, batch_size=8, learning_rate=1e-4),
        clip_pool=1,
        dalle=Recipe(steps=2, batch_size=2, learning_rate=1e-4),
    )
    DemoTraining(tmp_path / "run", recipe).bundle(tmp_path / "bundle")
    assert sum(f.stat().st_size for f in (tmp_path / "bundle").iterdir()) <= 40e6
    provenance = (tmp_path / "bundle" / "PROVENANCE.md").read_text()
    assert "## dalle" in provenance and "held_out_loss" in provenance
    pipe = TextToImage.from_pretrained(tmp_path / "bundle")
    best = pipe("a red circle", SamplingParams(candidates=2, keep=1))
    assert best[0].image.size == (DEMO_VQGAN.resolution,) * 2


def test_kill_minus_nine_loses_at_most_what_followed_the_last_checkpoint(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from ttt.train.loop import run\n"
        "from tests.train.test_demo import Line, RECIPE\n"
        "class Slow(Line):\n"
        "    def loss(self, step):\n"
        "        time.sleep(0.05); return super().loss(step)\n"
        f"run(Slow(), RECIPE, Path({str(tmp_path)!r}), save_every=0)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "line.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < torch.load(tmp_path / "line.pt", weights_only=True)["step"] < RECIPE.steps
    resumed = run(Line(), RECIPE, tmp_path).state_dict()
    whole = run(Line(), RECIPE, tmp_path / "whole").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
