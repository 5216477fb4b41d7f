"""A local Hub with a new cache for each test, and the files published on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import FakeHub, point_to, serve_hub
from tests.support.tiny import TINY_DALLE, tiny_dalle, tiny_vqgan, write_published_files
from ttt.bundle import Bundle


@pytest.fixture(scope="session")
def files(bundle: Bundle) -> Path:
    return bundle.root


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published_files(tmp_path_factory.mktemp("published"), tiny_dalle(), tiny_vqgan())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    with serve_hub() as server:
        point_to(server.url, monkeypatch)
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
    """The published model, with the small sizes of the tests."""
    monkeypatch.setattr("ttt.config.PAPER", TINY_DALLE)
