"""The demo's training: the whole chain at a tiny size."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ttt import SamplingParams, TextToImage
from ttt.bundle import read_bundle
from ttt.bundle.weights import load_dalle_from
from ttt.config import DEMO, DEMO_VQGAN
from ttt.data.checker import judge
from ttt.data.shapes import scene_is_held_out
from ttt.model.vqgan import Vqgan
from ttt.rerank import completed
from ttt.train.demo import DemoRecipe, DemoTraining
from ttt.train.demo_clip import ClipTask, clip_config
from ttt.train.demo_paintings import Paintings, Unranked, paintings
from ttt.train.demo_text import END, train_tokenizer
from ttt.train.demo_vqgan import VqganTask
from ttt.train.recipe import Recipe


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
    figures = task.backward(1)
    with torch.no_grad():
        h = task.module.quant_conv(task.module.encoder(x * 2 - 1)).permute(0, 2, 3, 1).flatten(1, 2)
        nearest = torch.cdist(h, task.module.quantize.embed.weight.expand(len(h), -1, -1)).argmin(-1)
        assert (task.module.encode(x) == nearest).float().mean() > 0.99
    assert np.isfinite(figures["loss"])
    assert figures["used_codes"] > 4


def test_all_stages_make_a_bundle_that_paints_and_another_can_be_built_on_it(tmp_path: Path) -> None:
    recipe = DemoRecipe(
        vqgan=Recipe(steps=4, batch_size=4, learning_rate=1e-4),
        dalle=Recipe(steps=2, batch_size=2, learning_rate=1e-4),
        paintings=4,
        held_out_paintings=2,
        clip=Recipe(steps=2, batch_size=8, learning_rate=1e-4),
        clip_pool=1,
        held_out_scenes=4,
    )
    first, second = tmp_path / "bundle", tmp_path / "second"
    DemoTraining(tmp_path / "run", recipe).bundle(first)
    assert sum(f.stat().st_size for f in first.iterdir()) <= 40e6
    provenance = (first / "PROVENANCE.md").read_text()
    assert "Trained from nothing" in provenance
    assert "## vqgan" in provenance and "## dalle" in provenance and "held_out_loss" in provenance
    pipe = TextToImage.from_pretrained(first)
    best = pipe("a red circle", SamplingParams(candidates=2, keep=1))
    assert best[0].image.size == (DEMO_VQGAN.resolution,) * 2

    DemoTraining(tmp_path / "more", recipe, read_bundle(first)).bundle(second)
    assert (second / "vqgan.safetensors").read_bytes() == (first / "vqgan.safetensors").read_bytes()
    assert (second / "dalle.safetensors").read_bytes() != (first / "dalle.safetensors").read_bytes()
    assert "## vqgan" not in (provenance := (second / "PROVENANCE.md").read_text())
    assert "Trained on from the bundle 'demo'" in provenance
    kept = DemoTraining(tmp_path / "kept", recipe, read_bundle(first), keep_dalle=True).dalle.state_dict()
    assert all(
        torch.equal(kept[name], weights) for name, weights in load_dalle_from(read_bundle(first)).state_dict().items()
    )
    assert not (tmp_path / "kept" / "dalle.jsonl").exists(), "it was trained"


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Paintings]]:
    folder = tmp_path_factory.mktemp("paintings")
    pipe = TextToImage.from_pretrained("demo", device="cpu")
    pipe._scorer = completed(Unranked())
    return folder, paintings(pipe, folder, prompts=6, candidates=16, right=3, wrong=5)


def test_paintings_are_called_right_when_a_checker_finds_everything_in_them(
    painted: tuple[Path, list[Paintings]],
) -> None:
    _, found = painted
    assert len(found) >= 3
    for p in found:
        assert not scene_is_held_out(p.scene)
        assert 1 <= len(p.right) <= 3 and 1 <= len(p.wrong) <= 5
        for images, expected in ((p.right, True), (p.wrong, False)):
            for image in images:
                assert judge(Image.fromarray(image.permute(1, 2, 0).numpy()), p.scene).all == expected


def test_what_was_painted_is_not_painted_again(painted: tuple[Path, list[Paintings]]) -> None:
    folder, found = painted
    again = paintings(None, folder, prompts=6, candidates=16, right=3, wrong=5)  # type: ignore[arg-type]
    assert [p.scene for p in again] == [p.scene for p in found]
    assert all(torch.equal(a.right, b.right) for a, b in zip(again, found, strict=True))


def test_clip_learns_from_paintings_that_have_no_caption(painted: tuple[Path, list[Paintings]]) -> None:
    _, found = painted
    config = clip_config(vocab_size=DEMO.num_text_tokens, image_size=64, context_length=16)
    task = ClipTask(
        config, Recipe(steps=2, batch_size=16), vqgan=Vqgan(DEMO_VQGAN), pool=0, paintings=found, held_out=found,
        tokenize=lambda captions: torch.randint(1, 400, (len(captions), 16)),
    )  # fmt: skip
    groups = [kind(random.Random(0)) for kind in (task._drawn, task._painted)]
    assert [len(g.images) for g in groups] == [len(g.scenes) for g in groups]
    assert len(groups[1].without_caption) > len(groups[1].images)
    assert np.isfinite(task.backward(0)["loss"])
    assert all(p.grad is not None for p in task.module.visual.parameters())
    assert 0 <= task.evaluate()["held_out_picked"] <= 1
