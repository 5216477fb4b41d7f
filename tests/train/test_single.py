"""Training on one machine: images -> shards -> a server that drops connections -> training -> images."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.support import warm
from tests.support.range_server import RangeServer, serve_ranges
from tests.support.tiny import WORDS, write_tiny_bundle
from tests.support.waiting import wait_for
from ttt import SamplingParams, TextToImage
from ttt.__main__ import app
from ttt.bundle import Bundle, read_bundle
from ttt.bundle.weights import load_dalle_from
from ttt.errors import InvalidInput, TTTError
from ttt.train.recipe import Recipe
from ttt.train.single import Training, prepare, train

RECIPE = Recipe(steps=30, batch_size=6, learning_rate=0.02, state_bits=8)


@pytest.fixture(scope="module")
def shards(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards with 40 captioned images, encoded by the command line."""
    images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("data") / "shards"
    rng = random.Random(0)
    for i in range(40):
        Image.new("RGB", (24, 24), tuple(rng.randrange(256) for _ in range(3))).save(images / f"{i:02}.png")
        (images / f"{i:02}.txt").write_text(" ".join(rng.choices(WORDS, k=4)))
    run_command(["encode", str(images), str(out), "--model", str(bundle.root), "--shard-size", "10"])
    return out


@pytest.fixture
def server(shards: Path) -> Iterator[RangeServer]:
    with serve_ranges(shards, cut_after=900, cuts=3) as state:
        yield state


def run_command(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr


def options(bundle: Bundle, recipe: Recipe = RECIPE) -> list[str]:
    return [
        "--parts", str(bundle.root), "--steps", str(recipe.steps), "--batch-size", str(recipe.batch_size),
        "--learning-rate", str(recipe.learning_rate), "--save-every", "0", "--evaluate-every", "1", "--device", "cpu",
        "--precision", "float32", "--micro-batch", "4",
    ]  # fmt: skip


def losses(out: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (out / "training" / "dalle.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records]


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_dalle_from(read_bundle(path)).state_dict() for path in (a, b))
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_from_images_to_a_generated_image_with_a_kill_in_between(
    bundle: Bundle, server: RangeServer, tmp_path: Path
) -> None:
    address = server.url + "/dataset.json"
    run_command(["train", address, str(tmp_path / "whole"), *options(bundle)])
    assert server.cuts == 0, "no connection was dropped"

    server.cuts = 2
    killed = tmp_path / "killed"
    process = warm.start(warm.run_ttt, ["train", address, str(killed), *options(bundle)])
    records = killed / "training" / "dalle.jsonl"
    wait_for(lambda: records.exists() and len(records.read_text().splitlines()) >= 5, 200, every=0.01)
    process.kill()
    process.join()
    assert 0 < len(records.read_text().splitlines()) < RECIPE.steps, "it was killed too late, or never started"
    TextToImage.from_pretrained(killed, device="cpu")  # the bundle is complete

    server.cuts = 1
    run_command(["train", address, str(killed), *options(bundle)])
    assert losses(killed) == losses(tmp_path / "whole")
    assert [step for step, _ in losses(killed)] == list(range(1, RECIPE.steps + 1))
    assert losses(killed)[-1][1] < losses(killed)[0][1]
    assert same_weights(killed, tmp_path / "whole")
    best = TextToImage.from_pretrained(killed, device="cpu")("a red circle", SamplingParams(candidates=4, keep=1))
    assert best[0].image.size == (8, 8)


def training(bundle: Bundle, data: Any, **changes: Any) -> Training:
    settings = {"recipe": RECIPE.model_copy(update={"steps": 3}), "device": "cpu", "precision": "float32"} | changes
    return Training(data=str(data), parts=bundle, config=bundle.dalle, **settings)


def test_a_finished_training_is_not_repeated(bundle: Bundle, shards: Path, tmp_path: Path) -> None:
    train(training(bundle, shards), tmp_path / "out")
    before = (tmp_path / "out" / "dalle.safetensors").read_bytes()
    train(training(bundle, shards), tmp_path / "out")
    assert (tmp_path / "out" / "dalle.safetensors").read_bytes() == before


def test_other_settings_are_refused(bundle: Bundle, shards: Path, tmp_path: Path) -> None:
    train(training(bundle, shards), tmp_path / "out")
    other = training(bundle, shards, recipe=RECIPE.model_copy(update={"steps": 3, "learning_rate": 0.5}))
    with pytest.raises(InvalidInput, match=r"another recipe: learning_rate was 0.02, now 0.5"):
        train(other, tmp_path / "out")


def test_a_folder_with_other_things_is_left_alone(bundle: Bundle, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InvalidInput, match="not empty"):
        train(training(bundle, shards), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt"]


def test_training_starts_from_given_weights(bundle: Bundle, shards: Path, tmp_path: Path) -> None:
    fresh = prepare(training(bundle, shards), tmp_path / "fresh").task.module.state_dict()
    warm = prepare(training(bundle, shards, weights=bundle), tmp_path / "warm").task.module.state_dict()
    given = load_dalle_from(bundle).state_dict()
    assert all(torch.equal(value, given[name]) for name, value in warm.items())
    assert not all(torch.equal(value, given[name]) for name, value in fresh.items())


def test_weights_of_another_size_are_refused(bundle: Bundle, shards: Path, tmp_path: Path) -> None:
    wider = replace(bundle.dalle, depth=9)
    with pytest.raises(InvalidInput, match="other dimensions"):
        prepare(replace(training(bundle, shards, weights=bundle), config=wider), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_held_out_shards_are_evaluated(bundle: Bundle, shards: Path, tmp_path: Path) -> None:
    train(training(bundle, shards, held_out=str(shards)), tmp_path / "out", evaluate_every=1)
    last = json.loads((tmp_path / "out" / "training" / "dalle.jsonl").read_text().splitlines()[-1])
    assert last["held_out_loss"] > 0


def test_shards_of_another_codebook_are_refused(bundle: Bundle, shards: Path, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other")
    data = bytearray((other.root / "vqgan.safetensors").read_bytes())
    data[-1] ^= 1
    (other.root / "vqgan.safetensors").write_bytes(data)
    with pytest.raises(TTTError, match="VQGAN|codebook"):
        train(training(read_bundle(other.root), shards), tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "was not found"),
        (["scenes", "out", "--state-bits", "4"], "8 or 32"),
        (["scenes", "out", "--model", "nothing.json"], "nothing.json"),
        (["scenes", "out", "--device", "gpu7"], "device"),
        (["scenes", "out", "--precision", "int4"], "precision 'int4' is unknown"),
        (["scenes", "out", "--parts", "missing"], "missing"),
    ],
)
def test_bad_input_is_an_error_and_not_a_traceback(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert message in done.stderr
    assert not any(tmp_path.rglob("*.safetensors"))
