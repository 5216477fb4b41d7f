"""Models by name, with a local server that answers as the Hub does, online and offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.hub_server import ID, NOBODY, FakeHub, point_to
from tests.support.tiny import tiny_dalle
from ttt.bundle import fetch_bundle, find_bundle, read_bundle
from ttt.bundle import hub as hub_module
from ttt.bundle.weights import load_dalle_from
from ttt.errors import BundleError, InvalidInput

TEXT = torch.tensor([[2, 3, 6, 0, 0, 0]])


def test_a_bundle_repository(hub: FakeHub, files: Path) -> None:
    commit = hub.repo(ID).commit(files)
    bundle = find_bundle(ID)
    assert (bundle.name, bundle.root.name) == ("tiny", commit)
    expected = tiny_dalle()(TEXT)
    assert torch.equal(load_dalle_from(bundle)(TEXT), expected)


def test_only_what_the_bundle_needs_is_downloaded(hub: FakeHub, files: Path) -> None:
    extra = {"README.md": b"text", "training.ckpt": b"x" * 1000}
    hub.repo(ID).commit({path.name: path.read_bytes() for path in files.iterdir()} | extra)
    fetch_bundle(ID)
    assert hub.downloads("README.md") == hub.downloads("training.ckpt") == 0
    assert hub.downloads("dalle.safetensors") == 1
    fetch_bundle(ID)
    assert hub.downloads("dalle.safetensors") == 1


def test_revisions_are_pinned(hub: FakeHub, files: Path) -> None:
    first = hub.repo(ID).commit(files)
    changed = {p.name: p.read_bytes().replace(b'"tiny"', b'"newer"') for p in files.iterdir()}
    second = hub.repo(ID).commit(changed)
    hub.repo(ID).refs["v1"] = first
    assert fetch_bundle(ID).name == "newer"
    assert fetch_bundle(ID, revision=first).name == fetch_bundle(ID, revision="v1").name == "tiny"
    assert fetch_bundle(ID, revision=second).root.name == second
    with pytest.raises(BundleError, match="has no revision 'v9'; use a branch, a tag or a commit"):
        fetch_bundle(ID, revision="v9")


def test_a_moved_repository_is_followed(hub: FakeHub, files: Path) -> None:
    hub.repo("new/home").commit(files)
    hub.moved["old/home"] = "new/home"
    assert fetch_bundle("old/home").name == "tiny"


@pytest.mark.parametrize("way", ["argument", "environment", "unplugged"])
def test_the_cache_is_enough_without_a_network(
    hub: FakeHub, files: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo(ID).commit(files)
    fetch_bundle(ID)
    hub.requests.clear()
    if way == "environment":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if way == "unplugged":
        point_to(NOBODY, monkeypatch)
    assert fetch_bundle(ID, local_files_only=way == "argument").name == "tiny"
    assert hub.requests == []


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_offline_and_not_in_the_cache(hub: FakeHub, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "environment":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match="not in the cache, and downloads are switched off"):
        fetch_bundle(ID, local_files_only=way == "argument")
    assert hub.requests == []


def test_the_environment_variables_of_the_hub(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    """In a new process, as for users: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN."""
    hub.repo(ID).commit(files)
    hub.repo(ID).token = "hf_right"
    code = f"from ttt.bundle.hub import find_bundle; print(find_bundle({ID!r}).name)"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "fresh"), "HF_TOKEN": "hf_right"}
    for offline in ("0", "1"):
        hub.requests.clear()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "HF_HUB_OFFLINE": offline},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "tiny", done.stderr
        assert (len(hub.requests) > 0) == (offline == "0")


def test_names_of_models(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # without a ../x
    assert find_bundle(files).name == find_bundle(str(files)).name == "tiny"
    monkeypatch.setattr(hub_module, "DEMO_FOLDER", files)
    assert find_bundle("demo") == read_bundle(files)
    (tmp_path / "half").mkdir()
    with pytest.raises(BundleError, match=r"config\.json is missing"):
        find_bundle(tmp_path / "half")
    with pytest.raises(BundleError, match="neither 'demo'"):
        find_bundle("")
    for name in ("dem0", "/no/such/folder", "a/b/c", "../x", tmp_path / "a"):
        with pytest.raises(BundleError, match="neither 'demo', nor a folder that exists, nor a Hub id"):
            find_bundle(name)


def test_a_wrong_hub_id() -> None:
    for name in ("a b/c", "../x", "x/../y", "a/b/c"):
        with pytest.raises(InvalidInput, match="a Hub id looks like 'owner/name'"):
            fetch_bundle(name)
