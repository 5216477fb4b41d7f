"""Failures of the Hub: missing, forbidden, truncated, damaged and oversized files are reported, or downloaded again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.hub_server import ID, NOBODY, FakeHub, point_to
from ttt.bundle import fetch_bundle
from ttt.errors import BundleError


def test_no_network_and_not_in_the_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(NOBODY, monkeypatch)
    with pytest.raises(BundleError, match="the Hub cannot be reached.*check the connection"):
        fetch_bundle(ID)


def test_a_repository_that_is_not_there(hub: FakeHub) -> None:
    with pytest.raises(BundleError, match="someone/else is not on the Hub, or is private.*HF_TOKEN"):
        fetch_bundle("someone/else")


def test_a_gated_repository(hub: FakeHub, files: Path) -> None:
    hub.repo(ID).commit(files)
    hub.repo(ID).gated = True
    with pytest.raises(BundleError, match="is gated: accept its terms.*HF_TOKEN"):
        fetch_bundle(ID)


def test_a_private_repository(hub: FakeHub, files: Path) -> None:
    hub.repo(ID).commit(files)
    hub.repo(ID).token = "hf_right"
    with pytest.raises(BundleError, match="not on the Hub, or is private"):
        fetch_bundle(ID, token="hf_wrong")
    assert fetch_bundle(ID, token="hf_right").name == "tiny"


def test_the_hub_is_down(hub: FakeHub) -> None:
    hub.status = 503
    with pytest.raises(BundleError, match="cannot be reached|could not be downloaded"):
        fetch_bundle(ID)


def test_a_repository_of_something_else(hub: FakeHub) -> None:
    hub.repo(ID).commit({"config.json": b'{"model_type": "bert"}', "README.md": b""})
    with pytest.raises(BundleError, match=r"has no file model_state\.pt, so it is neither a bundle nor"):
        fetch_bundle(ID)


def test_a_dropped_connection_is_resumed(hub: FakeHub, files: Path) -> None:
    hub.repo(ID).commit(files)
    hub.cut_after["dalle.safetensors"], hub.cuts = 1000, 2
    bundle = fetch_bundle(ID)
    assert hub.downloads("dalle.safetensors") == 3
    assert bundle.dalle_file.read_bytes() == (files / "dalle.safetensors").read_bytes()


def test_a_connection_that_keeps_dropping(hub: FakeHub, files: Path) -> None:
    hub.repo(ID).commit(files)
    hub.cut_after["dalle.safetensors"], hub.cuts = 0, 1000
    with pytest.raises(BundleError, match=r"download of dalle\.safetensors of someone/tiny.* was cut off; run"):
        fetch_bundle(ID)
    hub.cuts = 0
    assert fetch_bundle(ID).name == "tiny"


def test_a_damaged_file_in_the_cache_is_downloaded_again(hub: FakeHub, files: Path) -> None:
    hub.repo(ID).commit(files)
    weights = fetch_bundle(ID).dalle_file.resolve()
    os.truncate(weights, 500)
    with pytest.raises(BundleError, match=r"dalle\.safetensors is broken or only partly downloaded"):
        fetch_bundle(ID, local_files_only=True)
    assert fetch_bundle(ID).dalle_file.stat().st_size == (files / "dalle.safetensors").stat().st_size


def test_a_repository_with_a_broken_bundle(hub: FakeHub, files: Path) -> None:
    content = {path.name: path.read_bytes() for path in files.iterdir()}
    hub.repo(ID).commit(content | {"vqgan.safetensors": b"version https://git-lfs.github.com/spec/v1"})
    with pytest.raises(BundleError, match=r"vqgan\.safetensors is broken"):
        fetch_bundle(ID)
    del content["clip.safetensors"]
    hub.repo(ID).commit(content)
    with pytest.raises(BundleError, match=r"has no file clip\.safetensors"):
        fetch_bundle(ID)


def test_a_config_cannot_ask_for_files_elsewhere(hub: FakeHub, files: Path) -> None:
    content = {path.name: path.read_bytes() for path in files.iterdir()}
    content["config.json"] = content["config.json"].replace(b'"tokenizer.json"', b'"../../../token"')
    hub.repo(ID).commit(content)
    with pytest.raises(BundleError, match="must be a plain name"):
        fetch_bundle(ID)


def test_a_full_disk(hub: FakeHub, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.repo(ID).commit(files)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(BundleError, match="no space is left on the disk.*HF_HOME"):
        fetch_bundle(ID)
