"""Files of weights: what can be read, and errors that name what does not fit. Parity: tests/model/test_parity.py."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.goldens.weights import CASES, state
from ttt.checkpoint import load_dalle, load_state, read_state
from ttt.config import DalleConfig
from ttt.errors import CheckpointError, UnsafeCheckpoint
from ttt.model.dalle import Dalle

CONFIG = DalleConfig(**CASES["small"])
BLOCK = "transformer.layers.blocks"
QKV = f"{BLOCK}.4.f.net.fn.fn.fn.to_qkv.weight"
State = dict[str, Tensor]


@pytest.fixture
def published() -> State:
    pos_emb = Dalle(CONFIG).transformer.pos_emb
    weights = {name: torch.from_numpy(value) for name, value in state(CASES["small"], "training").items()}
    return weights | {"transformer.pos_emb": pos_emb}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model_state.pt"


def load(tensors: Any, file: Path) -> Dalle:
    torch.save(tensors, file)
    return load_dalle(file, CONFIG)


def test_own_names_in_safetensors(published: State, tmp_path: Path, file: Path) -> None:
    dalle = load(published, file)
    save_file(dalle.state_dict(), tmp_path / "dalle.safetensors")
    again = load_dalle(tmp_path / "dalle.safetensors", CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(dalle.parameters(), again.parameters(), strict=True))
    (tmp_path / "dalle.safetensors").rename(tmp_path / "blob")
    assert torch.equal(load_dalle(tmp_path / "blob", CONFIG).norm.weight, dalle.norm.weight)


def test_the_model_is_ready_to_train(published: State, file: Path) -> None:
    dalle = load(published, file)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in dalle.parameters())
    assert dalle.transformer.layers[0].attention is dalle.transformer.attentions[0]
    dalle.loss(torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long)).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(published: State, file: Path, dtype: torch.dtype) -> None:
    dalle = load({name: tensor.to(dtype) for name, tensor in published.items()}, file)
    assert {parameter.dtype for parameter in dalle.parameters()} == {torch.float32}
    assert torch.equal(dalle.norm.weight, published["to_logits.0.weight"].to(dtype).float())


def test_the_angles_of_the_file_are_used(published: State, file: Path) -> None:
    published["transformer.pos_emb"] = published["transformer.pos_emb"] * 0.9
    assert torch.equal(load(published, file).transformer.pos_emb, published["transformer.pos_emb"])


def test_old_format_and_lightnings_wrapping(published: State, file: Path) -> None:
    torch.save(published, file, _use_new_zipfile_serialization=False)
    assert read_state(file).keys() == published.keys()
    torch.save({"epoch": 3, "state_dict": published}, file)
    assert read_state(file).keys() == published.keys()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"hparams": {"dim": 16}, "vae_params": None, "epoch": 3, "weights": s, "opt_state": {"state": {}}},
        lambda s: {"module": s, "global_steps": 12, "ds_config": {}},
        lambda s: {"module": {"state_dict": s}},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {"model_state_dict": s, "loss": 1.5},
        lambda s: {f"module.{name}": tensor for name, tensor in s.items()},
        lambda s: {"state_dict": {f"module.{name}": tensor for name, tensor in s.items()}},
    ],
    ids=[
        "dalle-pytorch",
        "DeepSpeed",
        "nested",
        "model",
        "model_state_dict",
        "DataParallel",
        "Lightning and DataParallel",
    ],
)
def test_the_weights_are_found_where_trainers_keep_them(
    published: State, file: Path, wrap: Callable[[State], object]
) -> None:
    load(wrap(published), file)
    assert read_state(file).keys() == published.keys()


def test_a_checkpoint_without_weights_says_where_they_are_expected(file: Path) -> None:
    torch.save({"hparams": {"dim": 16}, "epoch": 3}, file)
    with pytest.raises(CheckpointError, match="key hparams holds a dict, expected a tensor .*weights, module"):
        read_state(file)


@pytest.mark.parametrize("name", ["dalle.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", "is a web page, not a checkpoint"),
        (b"\xef\xbb\xbf\n<html lang=en>", "is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 501234567\n",
            "is a pointer of Git LFS.*git lfs pull",
        ),
        (b"", "is empty; download or copy it again"),
        (b"capital\nletters\n", "is damaged, incomplete or not a"),
        (b"PK\x03\x04" + bytes(500), "is damaged, incomplete or not a"),
    ],
)
def test_a_failed_download_is_recognised(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """And no error repeats torch's advice to read the file unsafely."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} {message}") as caught:
        read_state(tmp_path / name)
    assert "weights_only" not in str(caught.value)


def test_the_image_model_inside_is_ignored(published: State, file: Path) -> None:
    load(published | {"vae.codebook.weight": torch.zeros(2, 2)}, file)
    wrapped = {f"model.{name}": tensor for name, tensor in published.items()}
    load(wrapped | {"model.vae.codebook.weight": torch.zeros(2, 2)}, file)


def edit(change: Callable[[State], object]) -> Callable[[State], State]:
    def edited(tensors: State) -> State:
        change(tensors)
        return tensors

    return edited


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(lambda s: s.pop(QKV)), f"missing key {QKV}"),
        (edit(lambda s: s.pop("transformer.pos_emb")), "missing key transformer.pos_emb"),
        (edit(lambda s: s.update({"to_logits.2.weight": torch.zeros(1)})), "unknown key to_logits.2.weight"),
        (edit(lambda s: s.update({QKV: s[QKV][:-1]})), f"{QKV} has shape \\[95, 16\\], expected \\[96, 16\\]"),
        (edit(lambda s: s.update({QKV: s[QKV].T.contiguous()})), f"{QKV} has shape \\[16, 96\\]"),
        (edit(lambda s: s.update({QKV: s[QKV] + 1e-3})), f"{QKV} differs from {BLOCK}.0.f"),
        (
            edit(lambda s: s.update({"image_emb.linear.bias": torch.zeros(22)})),
            "image_emb.linear.bias differs from to_l",
        ),
        (edit(lambda s: s.update({QKV: s[QKV].long()})), f"{QKV} holds torch.int64"),
        (edit(lambda s: s.update({f"{BLOCK}.1.g.net.scale": torch.zeros(16)})), "expected \\[1, 1, 16\\]"),
        (edit(lambda s: s.update({"model." + QKV: s.pop(QKV)})), f"unknown key model.{QKV}"),
        (lambda s: {}, "missing key"),
    ],
)
def test_keys_that_do_not_fit_are_named(
    published: State, file: Path, change: Callable[[State], State], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(change(published), file)


def test_a_model_that_is_refused_changes_nothing(published: State) -> None:
    dalle = Dalle(CONFIG)
    before = {name: tensor.clone() for name, tensor in dalle.state_dict().items()}
    published["image_emb.linear.bias"] = torch.zeros(22)
    with pytest.raises(CheckpointError, match="image_emb"):
        load_state(dalle, published)
    assert all(torch.equal(before[name], tensor) for name, tensor in dalle.state_dict().items())


def test_the_wrong_config_is_noticed(published: State, file: Path) -> None:
    torch.save(published, file)
    with pytest.raises(CheckpointError, match=r"unknown key transformer.layers.blocks.5.* and \d+ more"):
        load_dalle(file, DalleConfig(**CASES["small"] | {"depth": 5}))


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
def test_no_checkpoint_may_run_code(published: State, file: Path, tmp_path: Path, how: str) -> None:
    poisoned = {**published, "extra": Attack(tmp_path / "was_here")}
    if how == "pickle":
        file.write_bytes(pickle.dumps(poisoned))
    else:
        torch.save(poisoned, file, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(UnsafeCheckpoint, match="ttt convert --trust-pickle"):
        load_dalle(file, CONFIG)
    assert not (tmp_path / "was_here").exists()


def test_harmless_objects_need_trust_too(published: State, file: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match=r"argparse.Namespace.*trust-pickle"):
        load({"state_dict": published, "hyper_parameters": argparse.Namespace(lr=1)}, file)


@pytest.mark.parametrize("length", [0, 1, 7, 100, 5000, -1])
@pytest.mark.parametrize("form", ["torch", "old torch", "safetensors"])
def test_truncated_files(published: State, file: Path, length: int, form: str) -> None:
    if form == "safetensors":
        file = file.with_suffix(".safetensors")
        save_file(Dalle(CONFIG).state_dict(), file)
    else:
        torch.save(published, file, _use_new_zipfile_serialization=form == "torch")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=file.name) as caught:
        load_dalle(file, CONFIG)
    assert not isinstance(caught.value, UnsafeCheckpoint)


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"capital\nletters\n", b"version https://git-lfs", bytes(4000)]
)
def test_files_of_something_else(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=file.name) as caught:
        load_dalle(file, CONFIG)
    assert not isinstance(caught.value, UnsafeCheckpoint)


def test_noise_is_refused(file: Path) -> None:
    random = np.random.RandomState(0)
    for _ in range(50):
        file.write_bytes(random.bytes(random.randint(1, 400)))
        with pytest.raises(CheckpointError):
            load_dalle(file, CONFIG)


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.pt"):
        with pytest.raises(CheckpointError, match="is not a file"):
            load_dalle(path, CONFIG)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"a": 1}, {1: torch.zeros(1)}])
def test_not_named_tensors(file: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="expected"):
        load(content, file)
