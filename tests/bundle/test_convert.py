"""Conversion of the published files: the bundle gives the same logits and images, and no code is run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import (
    TINY_CLIP,
    TINY_DALLE,
    TINY_VQGAN,
    published_state,
    tiny_clip,
    tiny_dalle,
    tiny_vqgan,
    vqgan_yaml,
    write_published_files,
)
from ttt.bundle import Bundle, ClipSpec, read_bundle
from ttt.bundle.convert import convert, parse_clip, read_dalle_config, read_vqgan, read_vqgan_yaml
from ttt.bundle.weights import load_dalle_from, load_vqgan_from
from ttt.config import PAPER_VQGAN
from ttt.errors import BundleError, CheckpointError, InvalidInput, UnsafeCheckpoint

CODES = torch.arange(32).view(2, 16) % 20
TEXT = torch.tensor([[2, 3, 6, 1, 1, 1], [2, 5, 7, 8, 4, 1]])


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published_files(tmp_path_factory.mktemp("published"), tiny_dalle(), tiny_vqgan())


@pytest.fixture
def files(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "files"))


def run(files: Path, **changes: Any) -> Bundle:
    arguments = {
        "dalle": files / "model_state.pt", "dalle_config": TINY_DALLE, "vqgan": files / "last.ckpt",
        "vqgan_config": files / "model.yaml", "tokenizer": files / "tokenizer.json", "name": "converted",
    }  # fmt: skip
    return convert(files.parent / "bundle", **(arguments | changes))


def test_a_converted_bundle_gives_the_same_logits_and_images(files: Path) -> None:
    run(files)
    bundle = read_bundle(files.parent / "bundle")
    assert (bundle.name, bundle.pad_id, bundle.dalle, bundle.vqgan) == ("converted", 1, TINY_DALLE, TINY_VQGAN)
    assert (bundle.clip.model, bundle.clip.pretrained) == ("ViT-B-32", "openai")
    with torch.no_grad():
        assert torch.equal(load_dalle_from(bundle)(TEXT, CODES), tiny_dalle()(TEXT, CODES))
        assert torch.equal(load_vqgan_from(bundle).decode(CODES), tiny_vqgan().decode(CODES))
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(load_vqgan_from(bundle).encode(images), tiny_vqgan().encode(images))


def test_angles_come_from_the_checkpoint(files: Path) -> None:
    state = published_state(tiny_dalle())
    state["model.transformer.pos_emb"] = torch.rand_like(state["model.transformer.pos_emb"])
    torch.save(state, files / "model_state.pt")
    loaded = load_dalle_from(run(files))
    assert torch.equal(loaded.transformer.pos_emb, state["model.transformer.pos_emb"])


def test_a_plain_state_dict_of_the_vqgan(files: Path) -> None:
    torch.save(tiny_vqgan().state_dict(), files / "last.ckpt")
    assert torch.equal(load_vqgan_from(run(files)).decode(CODES), tiny_vqgan().decode(CODES))


def test_a_local_clip(files: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    clip = tmp_path / "clip"
    clip.mkdir()
    save_file(tiny_clip().state_dict(), clip / "open_clip_model.safetensors")
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    bundle = run(files, clip=parse_clip(str(clip)))
    assert bundle.clip.config is not None
    assert bundle.clip.weights is not None
    assert bundle.clip.tokenizer is None
    assert json.loads(bundle.clip.config.read_text()) == TINY_CLIP
    assert bundle.clip.weights.read_bytes() == (clip / "open_clip_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["model_state.pt", "last.ckpt"])
@pytest.mark.parametrize("old_format", [False, True])
def test_a_hostile_file_is_refused_and_not_run(files: Path, tmp_path: Path, name: str, old_format: bool) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": tiny_vqgan().state_dict(), "hparams": Hostile(marker)}
    torch.save(content, files / name, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UnsafeCheckpoint, match=rf"{name}.*ttt convert --trust-pickle"):
        run(files)
    assert not marker.exists()
    assert not (files.parent / "bundle").exists()


def test_trust_pickle_reads_what_is_refused_otherwise(files: Path) -> None:
    content = {"state_dict": tiny_vqgan().state_dict(), "hyper_parameters": argparse.Namespace(batch_size=8)}
    torch.save(content, files / "last.ckpt")
    with pytest.raises(UnsafeCheckpoint, match=r"argparse\.Namespace"):
        run(files)
    bundle = run(files, trust_pickle=True)
    assert torch.equal(load_vqgan_from(bundle).decode(CODES), tiny_vqgan().decode(CODES))


def test_trust_pickle_runs_code(files: Path, tmp_path: Path) -> None:
    """The payload works: it does not run without the flag, and runs with it."""
    marker = tmp_path / "ran"
    torch.save({"state_dict": tiny_vqgan().state_dict(), "x": Hostile(marker)}, files / "last.ckpt")
    run(files, trust_pickle=True)
    assert marker.exists()


def test_callbacks_of_old_lightning_are_inert_labels(files: Path, tmp_path: Path) -> None:
    """Files of 2021 name the class of each callback; reading them imports nothing of Lightning."""
    import sys
    import types

    marker = tmp_path / "imported"
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    label = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = label  # type: ignore[attr-defined]
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__)
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(dict.fromkeys(names, module))
    try:
        torch.save(
            {"state_dict": tiny_vqgan().state_dict(), "callbacks": {label: {"best_model_score": torch.tensor(0.5)}}},
            files / "last.ckpt",
        )
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    known = set(sys.modules)
    assert torch.equal(load_vqgan_from(run(files)).decode(CODES), tiny_vqgan().decode(CODES))
    assert not [name for name in set(sys.modules) - known if "lightning" in name]

    # The same label beside anything else that is not a tensor: refused.
    shutil.rmtree(files.parent / "bundle")
    torch.save({"state_dict": tiny_vqgan().state_dict(), "x": [Hostile(marker)]}, files / "last.ckpt")
    with pytest.raises(UnsafeCheckpoint):
        run(files)
    assert not marker.exists()


def test_keys_that_do_not_fit_are_named(files: Path) -> None:
    state = tiny_vqgan().state_dict()
    for change, message in (
        ({"quantize.embed.weight": torch.ones(3, 3)}, r"quantize\.embed\.weight is \[3, 3\].*needs \[20, 32\]"),
        ({"encoder.extra": torch.ones(1)}, r"has unknown encoder\.extra"),
        ({"encoder.conv_in.bias": None}, r"lacks encoder\.conv_in\.bias"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, files / "last.ckpt")
        with pytest.raises(CheckpointError, match=message):
            read_vqgan(files / "last.ckpt", TINY_VQGAN)


@pytest.mark.parametrize("name", ["model_state.pt", "last.ckpt"])
@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", None])
def test_a_file_that_is_not_a_checkpoint(files: Path, name: str, content: bytes | None) -> None:
    whole = (files / name).read_bytes()
    (files / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(CheckpointError, match=name):
        run(files)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": "text"}}, {1: torch.ones(1)}])
def test_a_checkpoint_without_named_tensors(files: Path, content: Any) -> None:
    torch.save(content, files / "last.ckpt")
    for trust in (False, True):
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            run(files, trust_pickle=trust)


def test_the_published_yaml(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(PUBLISHED_YAML)
    assert read_vqgan_yaml(tmp_path / "model.yaml") == PAPER_VQGAN


PUBLISHED_YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.GumbelVQ
  params:
    kl_weight: 1.0e-08
    embed_dim: 256
    n_embed: 8192
    monitor: val/rec_loss
    temperature_scheduler_config:
      target: taming.lr_scheduler.LambdaWarmUpCosineScheduler
    ddconfig:
      double_z: false
      z_channels: 256
      resolution: 256
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [1, 1, 2, 4]
      num_res_blocks: 2
      attn_resolutions:
      - 32
      dropout: 0.0
    lossconfig:
      target: taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("GumbelVQ", "VQModel", "describes taming.models.vqgan.VQModel; only"),
        ("n_embed: 8192", "n_embad: 8192", r"has no model\.params\.n_embed"),
        ("double_z: false", "double_z: true", "double_z must be false"),
        ("dropout: 0.0", "droppout: 0.0", "no field droppout"),
        ("ch: 128", "ch: 1000000000", "ch must be a whole number from 1 to 4096"),
        ("ddconfig:", "dconfig:", r"no model\.params\.ddconfig"),
        ("model:", "model: [", "cannot be read as taming's"),
        (
            "target: taming.models",
            "target: !!python/object/apply:os.system ['touch ran'] #",
            "cannot be read as taming",
        ),
    ],
)
def test_a_wrong_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text(PUBLISHED_YAML.replace(old, new))
    with pytest.raises((CheckpointError, BundleError), match=message):
        read_vqgan_yaml(tmp_path / "model.yaml")
    assert not (tmp_path / "ran").exists()


def test_a_yaml_that_is_not_there_or_too_big(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.yaml cannot be read"):
        read_vqgan_yaml(tmp_path / "model.yaml")
    (tmp_path / "model.yaml").write_bytes(b"a" * (2 << 20))
    with pytest.raises(CheckpointError, match="too big"):
        read_vqgan_yaml(tmp_path / "model.yaml")


def test_parts_of_different_models(files: Path) -> None:
    (files / "model.yaml").write_text(vqgan_yaml(TINY_VQGAN).replace('"resolution": 8', '"resolution": 16'))
    with pytest.raises(BundleError, match="do not match"):
        run(files)
    assert not (files.parent / "bundle").exists()


def test_a_transformer_of_another_size_names_the_key(files: Path) -> None:
    from dataclasses import replace

    with pytest.raises(CheckpointError, match="key"):
        run(files, dalle_config=replace(TINY_DALLE, depth=9))


def test_configurations_of_the_transformer(tmp_path: Path, files: Path) -> None:
    (tmp_path / "fields.json").write_text(json.dumps(TINY_DALLE.to_dict()))
    assert read_dalle_config(tmp_path / "fields.json") == TINY_DALLE
    assert read_dalle_config(run(files).root / "config.json") == TINY_DALLE
    (tmp_path / "fields.json").write_text('{"dim": 7}')
    with pytest.raises(BundleError, match="fields.json"):
        read_dalle_config(tmp_path / "fields.json")


def test_clip_by_name(tmp_path: Path) -> None:
    assert parse_clip("ViT-B-32:openai") == ClipSpec(model="ViT-B-32", pretrained="openai")
    for wrong in ("ViT-B-32", ":openai", "ViT-B-32:", "", str(tmp_path)):
        with pytest.raises(InvalidInput):
            parse_clip(wrong)
