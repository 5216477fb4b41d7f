"""The model published in 2021: downloaded from the Hub it becomes a bundle, and none of its files runs code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support.hub_server import FakeHub
from tests.support.tiny import tiny_dalle, tiny_vqgan, write_published_files
from ttt.bundle import PUBLISHED, fetch_bundle
from ttt.bundle import published as published_module
from ttt.bundle.weights import load_dalle_from
from ttt.errors import BundleError, CheckpointError, UnsafeCheckpoint

TEXT = torch.tensor([[2, 3, 6, 0, 0, 0]])


@pytest.mark.usefixtures("small_published")
def test_the_published_model_becomes_a_bundle(hub: FakeHub, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo(PUBLISHED).commit({"model_state.pt": (published / "model_state.pt").read_bytes()})
    hub.repo("google-t5/t5-small").commit({"tokenizer.json": (published / "tokenizer.json").read_bytes()})
    hub.moved["t5-small"] = "google-t5/t5-small"
    vqgan = {name: (published / name).read_bytes() for name in ("last.ckpt", "model.yaml")}
    hub.repo("someone/vqgan").commit(vqgan)
    monkeypatch.setenv("TTT_VQGAN", "someone/vqgan")
    bundle = fetch_bundle(PUBLISHED)
    assert (bundle.name, bundle.pad_id, bundle.clip.model) == (PUBLISHED, 1, "ViT-B-32")
    assert torch.equal(load_dalle_from(bundle)(TEXT), tiny_dalle()(TEXT))

    assert fetch_bundle(PUBLISHED).root == bundle.root
    assert hub.downloads("model_state.pt") == 1
    assert fetch_bundle(PUBLISHED, local_files_only=True).root == bundle.root

    other = write_published_files(published.parent / "other", tiny_dalle(seed=7), tiny_vqgan())
    hub.repo(PUBLISHED).commit({"model_state.pt": (other / "model_state.pt").read_bytes()})
    newer = fetch_bundle(PUBLISHED)
    assert newer.root != bundle.root
    assert torch.equal(load_dalle_from(newer)(TEXT), tiny_dalle(seed=7)(TEXT))


@pytest.mark.usefixtures("small_published")
def test_the_vqgan_may_lie_beside_the_transformer(hub: FakeHub, published: Path) -> None:
    hub.repo(PUBLISHED).commit(published)
    hub.repo("t5-small").commit(published)
    assert fetch_bundle(PUBLISHED).name == PUBLISHED
    assert hub.downloads("last.ckpt") == 1


@pytest.mark.usefixtures("small_published")
def test_the_vqgan_comes_from_its_authors(hub: FakeHub, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo(PUBLISHED).commit({"model_state.pt": (published / "model_state.pt").read_bytes()})
    hub.repo("t5-small").commit(published)
    hub.repo("files").commit(published)
    urls = {name: f"{hub.url}/files/resolve/main/{name}" for name in ("last.ckpt", "model.yaml")}
    monkeypatch.setattr(published_module, "VQGAN_URLS", urls)
    hub.cut_after["last.ckpt"], hub.cuts = 100, 1
    with pytest.raises(BundleError, match=r"was cut off.*set TTT_VQGAN to its folder"):
        fetch_bundle(PUBLISHED)
    assert fetch_bundle(PUBLISHED).name == PUBLISHED
    assert fetch_bundle(PUBLISHED, local_files_only=True).name == PUBLISHED
    assert hub.downloads("last.ckpt") == 2


@pytest.mark.usefixtures("small_published")
def test_no_code_in_downloaded_files_is_run(hub: FakeHub, published: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = write_published_files(tmp_path / "files", tiny_dalle(), tiny_vqgan(), {"hook": Payload(marker)})
    hub.repo(PUBLISHED).commit(hostile)
    hub.repo("t5-small").commit(hostile)
    with pytest.raises(UnsafeCheckpoint, match="ttt convert --trust-pickle"):
        fetch_bundle(PUBLISHED)
    torch.save({"state": Payload(marker)}, hostile / "model_state.pt")
    hub.repo(PUBLISHED).commit(hostile)
    with pytest.raises(UnsafeCheckpoint, match="ttt convert --trust-pickle"):
        fetch_bundle(PUBLISHED)
    assert not marker.exists()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.usefixtures("small_published")
def test_a_published_file_that_does_not_fit(hub: FakeHub, published: Path) -> None:
    content = {path.name: path.read_bytes() for path in published.iterdir()}
    hub.repo("t5-small").commit(published)
    hub.repo(PUBLISHED).commit(content | {"model_state.pt": content["last.ckpt"]})
    with pytest.raises(CheckpointError, match="key"):
        fetch_bundle(PUBLISHED)
    hub.repo(PUBLISHED).commit(content | {"model_state.pt": content["model_state.pt"][:5000]})
    with pytest.raises(CheckpointError, match=r"model_state\.pt"):
        fetch_bundle(PUBLISHED)
