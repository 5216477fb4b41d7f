"""Bundle folders: written bundles can be read back, and errors name the broken file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tests.support.tiny import (
    TINY_CLIP,
    TINY_DALLE,
    TINY_VQGAN,
    tiny_clip,
    tiny_dalle,
    tiny_vqgan,
    write_tokenizer,
)
from ttt.bundle import DEMO_FOLDER, Bundle, ClipSpec, read_bundle
from ttt.bundle.weights import load_dalle_from, load_vqgan_from, read_safetensors, write_bundle
from ttt.errors import BundleError, CheckpointError

FILES = (
    "config.json", "dalle.safetensors", "vqgan.safetensors", "tokenizer.json", "clip_config.json", "clip.safetensors",
)  # fmt: skip
TEXT = torch.tensor([[2, 3, 6, 0, 0, 0], [2, 5, 7, 8, 4, 1]])


@pytest.fixture(scope="module")
def original(bundle: Bundle) -> Path:
    return bundle.root


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_written_bundle_is_read_back(original: Path) -> None:
    bundle = read_bundle(original)
    assert (bundle.name, bundle.pad_id, bundle.dalle, bundle.vqgan) == ("tiny", 0, TINY_DALLE, TINY_VQGAN)
    assert bundle.clip.config is not None
    assert bundle.clip.tokenizer == bundle.tokenizer_file
    assert sorted(path.name for path in original.iterdir()) == sorted(FILES)

    codes = torch.arange(16).view(1, 16).repeat(2, 1)
    with torch.no_grad():
        assert torch.equal(load_dalle_from(bundle)(TEXT, codes), tiny_dalle()(TEXT, codes))
        assert torch.equal(load_vqgan_from(bundle).decode(codes), tiny_vqgan().decode(codes))
    clip = tiny_clip(seed=9)
    clip.load_state_dict(read_safetensors(original / "clip.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), tiny_clip().parameters(), strict=True))


def test_shared_weights_are_stored_once(original: Path) -> None:
    stored = sum(tensor.numel() for tensor in read_safetensors(original / "dalle.safetensors").values())
    dalle = tiny_dalle()
    assert stored == sum(p.numel() for p in dalle.parameters()) + dalle.transformer.pos_emb.numel()


def test_half_precision_storage_keeps_the_angles_and_loads_as_float32(tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "half", name="half", dalle=tiny_dalle(), vqgan=tiny_vqgan(), pad_id=0, dtype=torch.float16,
        tokenizer_file=write_tokenizer(tmp_path / "t.json"), clip=ClipSpec(model="ViT-B-32", pretrained="openai"),
    )  # fmt: skip
    stored = read_safetensors(bundle.dalle_file)
    assert stored["to_logits.weight"].dtype == torch.float16
    assert stored["transformer.pos_emb"].dtype == torch.float32
    dalle = load_dalle_from(bundle)
    assert {p.dtype for p in dalle.parameters()} == {torch.float32}
    assert torch.allclose(dalle.to_logits.weight, tiny_dalle().to_logits.weight, atol=1e-3)
    assert (bundle.clip.model, bundle.clip.pretrained, bundle.clip.config) == ("ViT-B-32", "openai", None)
    assert load_dalle_from(bundle, dtype=torch.bfloat16).to_logits.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing; copy or download"):
        read_bundle(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.999])
def test_a_half_downloaded_file_is_named(folder: Path, name: str, fraction: float) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * fraction)] if fraction < 0.9 else data[:-1].rstrip())
    if fraction > 0.9 and name.endswith("json"):
        (folder / name).write_bytes(data.rstrip()[:-1])
    with pytest.raises(BundleError, match=rf"{name} is broken or only partly downloaded.*copy or download it again"):
        read_bundle(folder)


@pytest.mark.parametrize("content", ["[]", '"text"', "{", "\x00", "[" * 100_000, "NaN"])
def test_a_config_that_is_not_a_json_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(BundleError, match=r"config\.json"):
        read_bundle(folder)


def test_a_huge_config_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(50 << 20)
    with pytest.raises(BundleError, match="at most 1048576"):
        read_bundle(folder)


REFUSED: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("another format", lambda c: c.update(format="other"), '"format": "ttt-bundle"'),
    ("another version", lambda c: c.update(version=2), "version 2.*reads version 1.*update the program"),
    ("no name", lambda c: c.pop("name"), "name must be text"),
    ("no transformer", lambda c: c.pop("dalle"), "dalle must be a JSON object"),
    ("a field of the future", lambda c: c["dalle"].update(width=3), "no field width"),
    ("a missing field", lambda c: c["dalle"].pop("dim"), "dim"),
    ("an enormous model", lambda c: c["dalle"].update(depth=10**9), "depth must be a whole number from 1 to 1024"),
    ("text for a number", lambda c: c["dalle"].update(heads="2"), "heads must be a whole number.*got '2'"),
    ("a truth for a number", lambda c: c["vqgan"].update(ch=True), "ch must be a whole number"),
    ("a number for a truth", lambda c: c["dalle"].update(reversible=1), "reversible must be true or false"),
    ("a weight of nothing", lambda c: c["dalle"].update(loss_image_weight=float("nan")), "loss_image_weight"),
    ("unknown attention", lambda c: c["dalle"].update(attention_cycle=["diagonal"]), "'diagonal' is unknown"),
    ("endless levels", lambda c: c["vqgan"].update(ch_mult=[1] * 1000), "ch_mult must be a list of at most 64"),
    ("negative levels", lambda c: c["vqgan"].update(ch_mult=[1, -1]), "ch_mult"),
    ("levels in words", lambda c: c["vqgan"].update(ch_mult="11"), "ch_mult"),
    ("wrong depth", lambda c: c["dalle"].update(depth=1000), "dalle.safetensors: no tensor.*depth = 1000"),
    ("wrong width", lambda c: c["dalle"].update(dim=4096), "dim = 4096"),
    ("another codebook", lambda c: c["vqgan"].update(n_embed=8192), "n_embed must be equal, got 20 and 8192"),
    ("another image size", lambda c: c["vqgan"].update(resolution=16), "codes on a side.*got 4 and 8"),
    ("padding beyond the text", lambda c: c["tokenizer"].update(pad_id=24), "pad_id must be from 0 to 23"),
    ("no padding", lambda c: c["tokenizer"].pop("pad_id"), "pad_id"),
    ("no CLIP", lambda c: c.update(clip={}), "clip.model must be a plain name"),
    ("CLIP from anywhere", lambda c: c.update(clip={"model": "hf-hub:x/y", "pretrained": "z"}), "plain name"),
    ("CLIP from the disk", lambda c: c.update(clip={"model": "ViT-B-32", "pretrained": "/etc/passwd"}), "plain name"),
    ("half a CLIP", lambda c: c["clip"].pop("weights"), "clip.weights must be a plain name"),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_wrong_config_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/hostname", "..", ".", "", "a/b.json", "C:\\x.json", "..\\x"])
@pytest.mark.parametrize("place", ["tokenizer", "clip"])
def test_no_file_outside_the_folder_is_opened(folder: Path, name: str, place: str) -> None:
    (folder.parent / "secret.json").write_text("{}")
    edit(folder, lambda c: c[place].update({"file": name} if place == "tokenizer" else {"weights": name}))
    with pytest.raises(BundleError, match="must be a plain name"):
        read_bundle(folder)


def test_a_tokenizer_with_more_tokens_than_the_model(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["one too many"] = 24
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BundleError, match=r"tokenizer\.json: id 24 is beyond the 24 text tokens"):
        read_bundle(folder)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder.*ttt convert"):
        read_bundle(tmp_path / "nowhere")


def test_weights_of_another_model(folder: Path) -> None:
    edit(folder, lambda c: c["dalle"].update(depth=6))
    with pytest.raises(CheckpointError, match=r"dalle\.safetensors lacks transformer\.layers\.5\..*and \d+ more"):
        load_dalle_from(read_bundle(folder))


def test_reading_needs_no_torch(original: Path) -> None:
    code = f"import sys, ttt.bundle.spec; ttt.bundle.spec.read_bundle({str(original)!r}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def write_again(folder: Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "name": "second", "dalle": tiny_dalle(seed=5), "vqgan": tiny_vqgan(), "pad_id": 0,
        "tokenizer_file": write_tokenizer(folder.parent.parent / "t.json"),
        "clip_model": tiny_clip(), "clip_config": TINY_CLIP,
    }  # fmt: skip
    write_bundle(folder, **(arguments | changes))


def test_a_folder_with_files_is_not_overwritten_by_default(folder: Path) -> None:
    with pytest.raises(BundleError, match="exists and is not empty"):
        write_again(folder)
    assert read_bundle(folder).name == "tiny"


def test_overwriting_keeps_other_files(folder: Path) -> None:
    (folder / "PROVENANCE.md").write_text("how it was made")
    write_again(folder, overwrite=True)
    bundle = read_bundle(folder)
    assert bundle.name == "second"
    assert torch.equal(load_dalle_from(bundle).to_logits.weight, tiny_dalle(seed=5).to_logits.weight)
    assert (folder / "PROVENANCE.md").read_text() == "how it was made"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("ttt.bundle.weights.save_file", full)
    (tmp_path / "place").mkdir()
    with pytest.raises(BundleError, match="no space is left"):
        write_again(tmp_path / "place" / "new")
    assert list((tmp_path / "place").iterdir()) == []


def test_a_bundle_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(BundleError, match="pad_id"):
        write_again(tmp_path / "place" / "new", pad_id=99)
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_a_new_bundle_has_ordinary_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_again(tmp_path / "new")
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o644}


def test_the_demo_ships_complete_and_small() -> None:
    bundle = read_bundle(DEMO_FOLDER)
    assert (bundle.name, bundle.pad_id) == ("demo", 0)
    assert bundle.clip.config is not None
    sizes = [path.stat().st_size for path in DEMO_FOLDER.iterdir()]
    assert sum(sizes) <= 40_000_000
    assert max(sizes) <= 15_000_000
