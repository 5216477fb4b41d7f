"""The demo's training: every stage, and the whole chain at a tiny size."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ttt import SamplingParams, TextToImage
from ttt.bundle import read_bundle
from ttt.bundle.weights import load_dalle_from
from ttt.config import DalleConfig, VqganConfig
from ttt.data.world import scenes as world
from ttt.data.world.cache import CAPTIONS, SceneCache
from ttt.data.world.captions import caption, names_background
from ttt.data.world.checker import check_scene
from ttt.model.dalle import Dalle
from ttt.model.vqgan import Vqgan
from ttt.tokenizer import TextTokenizer, read_tokenizer
from ttt.train.demo import DALLE, VQGAN, DemoRecipe, DemoTraining
from ttt.train.demo_candidates import Candidates, sample_candidates
from ttt.train.demo_clip import ClipTask, clip_config
from ttt.train.demo_dalle import CodeCache, encode, held_out_prompts, sampler
from ttt.train.demo_loop import BudgetLoop
from ttt.train.demo_text import END, train_tokenizer
from ttt.train.demo_vqgan import VqganTask

SMALL_VQGAN = VqganConfig(
    ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=128, z_channels=16, embed_dim=16,
    n_embed=64, norm_groups=8,
)  # fmt: skip
SMALL_DALLE = DalleConfig(
    dim=32, depth=3, heads=2, dim_head=16, text_seq_len=32, image_fmap_size=16, num_text_tokens=1056,
    num_image_tokens=64,
)  # fmt: skip
TINY = DemoRecipe(
    vqgan=SMALL_VQGAN, dalle=SMALL_DALLE, scenes=8, held_out_scenes=2, vqgan_batch=4, codes_from=1,
    dalle_batch=2, prompts=1, candidates=2, held_out_candidates=1, candidates_each=4, clip_pool=1, clip_batch=8,
)  # fmt: skip
INSTANT = 1e-9
"""Hours: a budget of one step for each stage."""


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(path, vocab_size=DALLE.num_text_tokens, captions=4000)
    return path


def test_every_word_of_the_world_is_a_token_and_any_script_can_be_read(tokenizer_file: Path) -> None:
    tokenizer = read_tokenizer(tokenizer_file)
    assert tokenizer.get_vocab_size() == DALLE.num_text_tokens
    assert tokenizer.token_to_id(END) == DALLE.num_text_tokens - 1
    assert len(tokenizer.encode("a penguin left of a snowman").ids) == 6
    assert len(tokenizer.encode("a red circle above a blue square").ids) == 7
    for text in ("красный круг", "赤い丸"):
        ids = tokenizer.encode(text).ids
        assert ids and tokenizer.decode(ids).strip() == text


def test_captions_fit_the_transformers_text(tokenizer_file: Path) -> None:
    tokenizer = read_tokenizer(tokenizer_file)
    stream = world.stream(1, held_out=None)
    longest = max(len(tokenizer.encode(caption(*next(stream))).ids) for _ in range(1000))
    assert longest <= DALLE.text_seq_len


# --- caches -----------------------------------------------------------------------------------------------------


def test_the_cache_has_the_scenes_of_the_stream_however_many_processes_drew_it(tmp_path: Path) -> None:
    one = SceneCache(tmp_path / "one", seed=3, count=6)
    two = SceneCache(tmp_path / "two", seed=3, count=6, processes=2)
    assert np.array_equal(one.images, two.images)
    assert np.array_equal(one.images[4], world.draw(one.scene(4)))
    assert one.scene(4) == next(world.stream(3, start=4))[0]
    assert one.texts(0, 6) == two.texts(0, 6) and len(one.texts(0, 6)) == 6 * CAPTIONS
    assert one.texts(4, 5)[0] == caption(*next(world.stream(3, start=4)))
    image = (one.folder / "images.npy").stat().st_mtime_ns
    again = SceneCache(tmp_path / "one", seed=3, count=6)
    assert (again.folder / "images.npy").stat().st_mtime_ns == image, "it was drawn again"


def test_codes_are_cached_and_encoding_resumes(tmp_path: Path, tokenizer_file: Path) -> None:
    tokenizer = TextTokenizer.from_file(tokenizer_file, 32, pad_id=0)
    scenes = SceneCache(tmp_path, seed=2, count=5)
    vqgan = Vqgan(SMALL_VQGAN).eval()
    cache = CodeCache(scenes, vqgan, tokenizer)
    assert np.array_equal(cache.codes, encode(vqgan, scenes.images).numpy())
    batch = cache.batch(np.array([3, 0]), np.array([1, 2]))
    assert torch.equal(batch.text, tokenizer([scenes.texts(3, 4)[1], scenes.texts(0, 1)[2]]))
    assert batch.codes.shape == (2, 256)
    # What is encoded is not encoded again: another VQGAN would give other codes.
    other = Vqgan(SMALL_VQGAN).eval()
    before = cache.codes.copy()
    assert np.array_equal(CodeCache(scenes, other, tokenizer).codes, before)
    (scenes.folder / "codes.json").write_text('{"done": 3}')
    resumed = CodeCache(scenes, other, tokenizer).codes
    assert np.array_equal(resumed[:3], before[:3]) and not np.array_equal(resumed[3:], before[3:])


# --- the loop ---------------------------------------------------------------------------------------------------


class Line:
    """y = w x, learnt from y = 3 x."""

    name, learning_rate, warmup_steps, clip = "line", 0.1, 2, 10.0

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), weight_decay=0.0)
        self.rates: list[float] = []

    def step(self, step: int) -> tuple[int, dict[str, float]]:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        x = torch.randn(8, 1)
        loss = (self.module(x) - 3 * x).square().mean()
        loss.backward()
        return 8, {"loss": loss.item()}

    def after_step(self) -> None: ...

    def evaluate(self) -> dict[str, float]:
        return {"weight": self.module.weight.item()}

    def state_dict(self) -> dict[str, object]:
        return {"rates": list(self.rates)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.rates = list(state["rates"])  # type: ignore[call-overload]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every look takes a second."""
    seconds = itertools.count()
    monkeypatch.setattr("ttt.train.demo_loop.time.monotonic", lambda: float(next(seconds)))


@pytest.mark.usefixtures("clock")
def test_the_loop_spends_its_budget_and_resumes_with_a_larger_one(tmp_path: Path) -> None:
    task = Line()
    loop = BudgetLoop(task, tmp_path, 200 / 3600)
    loop.run()
    assert loop.done and loop.number == 200
    assert max(task.rates) == pytest.approx(0.1), "the full rate was never reached"
    assert task.rates[0] == pytest.approx(0.05) and task.rates[-1] < 0.005, "no warm-up, or no decay"
    line = json.loads((tmp_path / "line.jsonl").read_text().splitlines()[-1])
    assert line["weight"] == pytest.approx(3, abs=0.01) and line["samples"] == 8 * line["step"]

    more = BudgetLoop(resumed := Line(), tmp_path, 300 / 3600)
    assert (more.number, more.samples) == (loop.number, loop.samples) and not more.done
    assert torch.equal(resumed.module.weight, task.module.weight)
    more.run()
    assert more.number == 300 and resumed.rates[:200] == task.rates


def test_a_signal_saves_before_the_loop_stops(tmp_path: Path) -> None:
    import os
    import signal

    class Stopping(Line):
        def step(self, step: int) -> tuple[int, dict[str, float]]:
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().step(step)

    with pytest.raises(KeyboardInterrupt):
        BudgetLoop(Stopping(), tmp_path, 1.0).run()
    assert BudgetLoop(Line(), tmp_path, 1.0).number == 4


# --- VQGAN ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[SceneCache, SceneCache]:
    folder = tmp_path_factory.mktemp("cache")
    return SceneCache(folder, seed=1, count=8), SceneCache(folder, seed=900, count=2, held_out=True)


def test_codes_are_the_nearest_and_the_codebook_follows_the_latents(scenes: tuple[SceneCache, SceneCache]) -> None:
    task = VqganTask(SMALL_VQGAN, *scenes, batch_size=4, codes_from=0)
    task.module.train()
    before = task.module.quantize.embed.weight.clone()
    samples, figures = task.step(0)
    assert samples == 1 and np.isfinite(figures["l1"]) and figures["used"] > 4
    latents, codes = task._latents, task._codes
    embed = task.module.quantize.embed.weight
    distances = torch.cdist(latents, embed)
    assert torch.allclose(distances.gather(1, codes[:, None])[:, 0], distances.min(1).values, atol=1e-3)
    distance = (latents - embed[codes]).square().sum()
    task.after_step()
    assert (latents - embed[codes]).square().sum() < distance
    assert not torch.equal(embed, before) and embed.isfinite().all()


def test_encoding_uses_the_same_codes_as_training(scenes: tuple[SceneCache, SceneCache]) -> None:
    task = VqganTask(SMALL_VQGAN, *scenes, batch_size=4, codes_from=0)
    task.step(0)
    task.module.eval()
    task.sync_projection()
    x = task._batch(0)
    with torch.no_grad():
        h = task.module.quant_conv(task.module.encoder(x * 2 - 1)).movedim(1, 3).flatten(0, 2)
        assert (task.module.encode(x).flatten() == task._nearest(h)).float().mean() > 0.99


def test_dead_codes_move_to_latents(scenes: tuple[SceneCache, SceneCache]) -> None:
    task = VqganTask(SMALL_VQGAN, *scenes, batch_size=4, codes_from=0)
    task.step(0)
    task.counts[7], task.sums[7] = 0.0, 1e3
    latents = task._latents.clone()
    task._codes[task._codes == 7] = 8
    task.after_step()
    assert (latents == task.module.quantize.embed.weight[7]).all(1).any()


def test_crops_lie_on_the_grid(scenes: tuple[SceneCache, SceneCache]) -> None:
    task = VqganTask(SMALL_VQGAN, *scenes, batch_size=4)
    whole, crops = task._batch(0), task._batch(1)
    assert whole.shape == (1, 3, 128, 128) and crops.shape == (4, 3, 64, 64)
    crop = crops[0].movedim(0, 2).mul(255).round().to(torch.uint8).numpy()
    places = [
        (i, y, x)
        for i, image in enumerate(scenes[0].images)
        for y in range(0, 65, 8)
        for x in range(0, 65, 8)
        if np.array_equal(image[y : y + 64, x : x + 64], crop)
    ]
    assert places


# --- candidates and CLIP ----------------------------------------------------------------------------------------


def test_candidates_are_kept_as_the_checker_judges_them_and_not_sampled_again(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transformer is replaced by the drawing itself, every third time of another scene."""
    from ttt.train import demo_candidates

    def draw(pipe: TextToImage, prompt: str, candidates: int, seed: int = 0) -> list[np.ndarray]:
        scene, _ = next(world.stream(demo_candidates.SEED, start=seed))
        other = world.change_one_thing(scene, random.Random(0))
        return [world.draw(other if i % 3 == 0 else scene) for i in range(candidates)]

    monkeypatch.setattr(demo_candidates, "sample", draw)
    found = sample_candidates(None, tmp_path, prompts=6, candidates=9, right=3, wrong=5)  # type: ignore[arg-type]
    assert len(found) >= 3
    for candidates in found:
        assert not world.scene_is_held_out(candidates.scene)
        assert 1 <= len(candidates.right) <= 3 and 1 <= len(candidates.wrong) <= 5
        assert all(check_scene(image.permute(1, 2, 0).numpy(), candidates.scene).all for image in candidates.right)
        assert not any(
            check_scene(image.permute(1, 2, 0).numpy(), candidates.scene).whole for image in candidates.wrong
        )
    monkeypatch.setattr(demo_candidates, "sample", None)
    again = sample_candidates(None, tmp_path, prompts=6, candidates=9, right=3, wrong=5)  # type: ignore[arg-type]
    assert [c.scene for c in again] == [c.scene for c in found]
    assert all(torch.equal(a.right, b.right) for a, b in zip(again, found, strict=True))


def test_a_background_counts_only_where_the_caption_names_it() -> None:
    scene, rng = next(world.stream(1, kind="alone"))
    texts = {names_background(caption(scene, rng), scene) for _ in range(50)}
    assert texts == {True, False}


def test_clip_learns_from_candidates_that_have_no_caption() -> None:
    found = []
    for scene, rng in (next(world.stream(1, start=i)) for i in range(5)):
        images = [world.draw(scene), *(world.draw(world.change_one_thing(scene, rng)) for _ in range(3))]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        found.append(Candidates(scene, pixels[:1], pixels[1:]))
    config = clip_config(vocab_size=DALLE.num_text_tokens, image_size=128, context_length=16)
    task = ClipTask(
        config, vqgan=Vqgan(SMALL_VQGAN).eval(), pool=0, candidates=found, held_out=found, held_out_groups=2,
        batch_size=8, tokenize=lambda captions: torch.randint(1, 400, (len(captions), 16)),
    )  # fmt: skip
    groups = [kind(random.Random(0)) for kind in (task._drawn, task._sampled)]
    assert [len(g.images) for g in groups] == [len(g.scenes) for g in groups]
    assert len(groups[1].without_caption) > len(groups[1].images)
    assert np.isfinite(task.step(0)[1]["loss"])
    assert all(p.grad is not None for p in task.module.visual.parameters())
    assert 0 <= task.evaluate()["held_out_picked"] <= 1


# --- the chain --------------------------------------------------------------------------------------------------


def test_held_out_prompts_are_of_combinations_that_training_never_shows() -> None:
    for kind, found in held_out_prompts(5).items():
        assert len(found) == 5
        for scene, text in found:
            assert world.scene_is_held_out(scene) and text
            assert len(scene.things) == (1 if kind == "one" else 2)


def test_all_stages_make_a_bundle_that_generates_and_clip_can_be_trained_on_another(tmp_path: Path) -> None:
    first, second, run = tmp_path / "bundle", tmp_path / "second", tmp_path / "run"
    DemoTraining(run, TINY, INSTANT).bundle(first)
    provenance = (first / "PROVENANCE.md").read_text()
    assert "Trained from nothing" in provenance and "Fluent Emoji" in provenance
    assert "## vqgan" in provenance and "## dalle" in provenance and "held_out_loss" in provenance
    assert {p.name for p in (run / "sheets").iterdir()} == {"vqgan.png", "dalle.png"}
    pipe = TextToImage.from_pretrained(first)
    best = pipe("a fox on a green hill", SamplingParams(candidates=2, keep=1))
    assert best[0].image.size == (SMALL_VQGAN.resolution,) * 2

    # Finished stages are read, not trained again.
    records = {path.name: path.read_text() for path in run.glob("*.jsonl")}
    DemoTraining(run, TINY, 1.0).bundle(second)
    assert records == {path.name: path.read_text() for path in run.glob("*.jsonl")}
    assert (second / "dalle.safetensors").read_bytes() == (first / "dalle.safetensors").read_bytes()

    kept = DemoTraining(tmp_path / "kept", TINY, INSTANT, base=read_bundle(first))
    kept.bundle(tmp_path / "third")
    weights = load_dalle_from(read_bundle(tmp_path / "third")).state_dict()
    assert all(torch.equal(weights[k], v) for k, v in load_dalle_from(read_bundle(first)).state_dict().items())
    assert {p.name for p in (tmp_path / "kept").glob("*.jsonl")} == {"clip.jsonl"}
    assert "on top of the bundle 'demo'" in (tmp_path / "third" / "PROVENANCE.md").read_text()


def test_the_shipped_sizes_stay_within_40_mb() -> None:
    from open_clip import CLIP

    config = clip_config(vocab_size=DALLE.num_text_tokens, image_size=VQGAN.resolution, context_length=32)
    modules = [Vqgan(VQGAN), Dalle(DALLE), CLIP(**config)]
    sizes = [2 * sum({p.data_ptr(): p.numel() for p in m.parameters()}.values()) for m in modules]
    assert max(sizes) < 15e6 and sum(sizes) < 40e6, sizes
    assert DALLE.num_image_tokens == VQGAN.n_embed and DALLE.image_fmap_size == VQGAN.fmap_size


def test_a_sampler_does_not_change_with_training(tokenizer_file: Path) -> None:
    dalle = Dalle(replace(SMALL_DALLE, reversible=False))
    tokenizer = TextTokenizer.from_file(tokenizer_file, 32, pad_id=0)
    pipe = sampler(dalle, Vqgan(SMALL_VQGAN).eval(), tokenizer, dalle.config)
    before = {k: v.clone() for k, v in pipe.dalle.state_dict().items()}
    with torch.no_grad():
        for p in dalle.parameters():
            p.add_(1)
    assert all(torch.equal(before[k], v) for k, v in pipe.dalle.state_dict().items())
