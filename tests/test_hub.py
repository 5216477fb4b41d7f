"""Models by name: the Hub path against a local server that answers as the Hub does, good days and bad ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.hub_server import FakeHub, serve_hub
from tests.support.tiny import (
    TINY_DALLE,
    tiny_dalle,
    tiny_vqgan,
    write_published_files,
    write_tiny_bundle,
    write_tokenizer,
)
from ttt import hub as hub_module
from ttt.bundle import load_dalle_from, read_bundle
from ttt.errors import BundleError, CheckpointError, InvalidInput, UnsafeCheckpoint
from ttt.hub import PUBLISHED, fetch_bundle, find_bundle

ID = "someone/tiny"
TEXT = torch.tensor([[2, 3, 6, 0, 0, 0]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").root


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published_files(tmp_path_factory.mktemp("published"), tiny_dalle(), tiny_vqgan())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    import huggingface_hub.constants as constants
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    with serve_hub() as server:
        # The library reads HF_ENDPOINT and HF_HOME once, at import.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for module in (_http, file_download):  # retries wait for seconds
            monkeypatch.setattr(module.time, "sleep", lambda _: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("TTT_VQGAN", raising=False)
        yield server


@pytest.fixture
def small_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model in the size of the tests."""
    monkeypatch.setattr("ttt.config.PAPER", TINY_DALLE)


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
        unplug(monkeypatch)
    assert fetch_bundle(ID, local_files_only=way == "argument").name == "tiny"
    assert hub.requests == []


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_offline_and_not_in_the_cache(hub: FakeHub, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "environment":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match="not in the cache, and downloads are switched off"):
        fetch_bundle(ID, local_files_only=way == "argument")
    assert hub.requests == []


def test_no_network_and_not_in_the_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    unplug(monkeypatch)
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
    monkeypatch.setattr(hub_module, "VQGAN_URLS", urls)
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


def test_the_environment_variables_of_the_hub(hub: FakeHub, files: Path, tmp_path: Path) -> None:
    """A fresh process, as users have it: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN."""
    hub.repo(ID).commit(files)
    hub.repo(ID).token = "hf_right"
    code = f"from ttt.hub import find_bundle; print(find_bundle({ID!r}).name)"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "fresh"), "HF_TOKEN": "hf_right"}
    for offline in ("0", "1"):
        hub.requests.clear()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "HF_HUB_OFFLINE": offline},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "tiny", done.stderr
        assert (len(hub.requests) > 0) == (offline == "0")


def test_names_of_models(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_tokenizer_of_the_tests_is_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "t.json")))
    assert tokenizer.encode("a red circle", add_special_tokens=False).ids == [2, 3, 6]
