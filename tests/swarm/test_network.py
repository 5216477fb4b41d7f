"""The DHT of a run: whose word counts, who offers the state, and why joining fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ttt.errors import InvalidInput, SwarmError
from ttt.swarm.dht import (
    SwarmDHT,
    announce_run,
    check_addresses,
    find_donors,
    find_run,
    guard,
    reconnect,
    start_dht,
    visible_addresses,
    wait_for,
)
from ttt.swarm.gate import OpenGate
from ttt.swarm.generation import Announcement
from ttt.swarm.identity import load_identity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux")


@contextmanager
def node(folder: Path, *initial_peers: str, port: int = 0) -> Iterator[SwarmDHT]:
    folder.mkdir()
    path, key = load_identity(folder)
    dht = start_dht(initial_peers, identity=path, key=key, listen=[f"/ip4/127.0.0.1/tcp/{port}"])
    try:
        yield dht
    finally:
        dht.shutdown()


def test_only_the_coordinators_word_counts(tmp_path: Path) -> None:
    with node(tmp_path / "coordinator") as coordinator:
        [address] = visible_addresses(coordinator)
        trusted = [address.rpartition("/p2p/")[2]]
        assert trusted == [str(coordinator.peer_id)]
        with node(tmp_path / "stranger", address) as stranger:
            guard(coordinator, "cats-g0", OpenGate(), 64)
            assert announce_run(stranger, "cats", Announcement(generation=9, founded=time.time()))
            assert find_run(coordinator, "cats", trusted) is None
            assert announce_run(coordinator, "cats", Announcement(generation=1, founded=2.0))
            assert wait_for(lambda: find_run(stranger, "cats", trusted) is not None, 20)
            assert find_run(stranger, "cats", trusted) == Announcement(generation=1, founded=2.0)
            assert find_run(stranger, "dogs", trusted) is None
            assert find_donors(stranger, "cats-g0") == []
            assert reconnect(stranger, [address]) == 1


def test_joining_says_why_it_failed(tmp_path: Path) -> None:
    with node(tmp_path / "one") as one:
        port = int(visible_addresses(one)[0].split("/")[4])
        with pytest.raises(SwarmError, match=r"in use.*--port"), node(tmp_path / "two", port=port):
            pass
    for wrong in ("example.org:8080", "/ip4/127.0.0.1/tcp/80", ""):
        with pytest.raises(InvalidInput, match="is not a peer's address"):
            check_addresses([wrong])


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    path, key = load_identity(tmp_path)
    again, same = load_identity(tmp_path)
    assert path == again
    assert key.to_bytes() == same.to_bytes()
    path.chmod(0o600)
    path.write_bytes(b"broken")
    with pytest.raises(InvalidInput, match="not a key file"):
        load_identity(tmp_path)
