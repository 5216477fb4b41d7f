"""The version of hivemind that the overrides were written for."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from ttt.errors import SwarmError
from ttt.swarm.averaging import SUPPORTED_HIVEMIND, check_hivemind

ROOT = Path(__file__).resolve().parents[3]


def test_the_supported_version_is_the_pinned_one() -> None:
    assert f"\nhivemind=={SUPPORTED_HIVEMIND};" in (ROOT / "requirements.txt").read_text()
    assert f"\nhivemind=={SUPPORTED_HIVEMIND}\n" in (ROOT / "constraints.txt").read_text()


def test_another_version_is_refused_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: SUPPORTED_HIVEMIND)
    check_hivemind()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.0")
    with pytest.raises(SwarmError, match=rf"hivemind 1\.2\.0 is installed.*pip install hivemind=={SUPPORTED_HIVEMIND}"):
        check_hivemind()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(SwarmError, match="not installed"):
        check_hivemind()


@pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux")
def test_the_version_is_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttt.swarm.cli import _prepare
    from ttt.swarm.coordinator.coordinator import run_coordinator
    from ttt.swarm.peer.peer import run_peer

    monkeypatch.setattr("ttt.swarm.averaging.SUPPORTED_HIVEMIND", "0.0.1")
    for start, arguments in ((_prepare, ()), (run_peer, (None, None)), (run_coordinator, (None, None))):
        with pytest.raises(SwarmError, match="works with that version only"):
            start(*arguments)
