"""The DHT of a run: whose word counts, who offers the state, and why joining fails."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import wait_for
from tests.swarm.peers import ID
from ttt.errors import Cancelled, InvalidInput, SwarmError
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
)
from ttt.swarm.gate import OpenGate
from ttt.swarm.generation import Announcement
from ttt.swarm.identity import load_identity
from ttt.swarm.lookout import Lookout
from ttt.swarm.options import PeerOptions
from ttt.swarm.reporter import Reporter

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
            assert find_donors(stranger, "cats-g0") == {}
            assert reconnect(stranger, [address]) == [address]


def test_newcomers_find_the_run_at_another_peer_while_the_coordinator_is_away(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with node(tmp_path / "coordinator") as coordinator:
            [address] = visible_addresses(coordinator)
            peer = stack.enter_context(node(tmp_path / "peer", address))
            [other] = visible_addresses(peer)
            assert announce_run(coordinator, "cats", Announcement(generation=1, founded=2.0))
            assert wait_for(lambda: find_run(peer, "cats", [str(coordinator.peer_id)]) is not None, 20)
        newcomer = stack.enter_context(node(tmp_path / "newcomer", other))
        told = PeerOptions(run="", initial_peers=(other,), coordinator=str(coordinator.peer_id), folder=tmp_path)
        assert wait_for(lambda: find_run(newcomer, "cats", told.coordinators) is not None, 30)
        untold = PeerOptions(run="", initial_peers=(other,), folder=tmp_path)
        assert find_run(newcomer, "cats", untold.coordinators) is None


def test_peers_that_accept_and_never_answer_keep_nobody_from_the_others(tmp_path: Path) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(6)]
        one, other = (stack.enter_context(node(tmp_path / name)) for name in ("one", "other"))
        dead = [
            f"/ip4/127.0.0.1/tcp/{s.getsockname()[1]}/p2p/{ID[w]}" for s, w in zip(silent, [*ID, *ID], strict=False)
        ]
        [address] = visible_addresses(other)
        assert reconnect(one, [*dead, "not an address", address]) == [address]


def test_the_watch_goes_on_after_an_error_and_sees_a_roll_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttt.swarm.lookout.LOOK_AROUND_SECONDS", 0.1)
    calls = 0

    def rolled_back() -> None:
        nonlocal calls
        calls += 1
        stop.set()
        if calls == 1:
            raise OSError("odd")

    with node(tmp_path / "coordinator") as coordinator:
        [address] = visible_addresses(coordinator)
        options = PeerOptions(run="", initial_peers=(address,), folder=tmp_path)
        reporter, stop = Reporter(tmp_path), threading.Event()
        lookout = Lookout(coordinator, options, "cats", reporter, stop)
        assert announce_run(coordinator, "cats", Announcement(generation=2, founded=2.0))
        with lookout.watching(1, rolled_back):
            assert wait_for(lambda: calls > 1, 60)
        assert any("looking around in the network failed: odd" in text for text in reporter.status.problems)
        with pytest.raises(Cancelled):  # a newcomer that nobody of its generation can serve leaves at once
            lookout.wait_for_donor("cats-g1", 1, rolled_back)
        reporter.close("stopped")


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
