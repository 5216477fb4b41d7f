"""The DHT of a run: which announcements count, which peers offer the state, and why joining fails."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hivemind.utils.multiaddr.exceptions import StringParseError

from tests.support.waiting import wait_for
from tests.swarm.peers import ID
from ttt.errors import Cancelled, InvalidInput, SwarmError
from ttt.swarm.config.options import PeerOptions
from ttt.swarm.dht.access import AllowAll
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.dht.identity import load_identity
from ttt.swarm.dht.node import (
    SwarmDHT,
    add_record_rules,
    announce_run,
    check_addresses,
    check_announced,
    find_announcement,
    find_donors,
    reconnect,
    start_dht,
    visible_addresses,
)
from ttt.swarm.peer.discovery import LeaveRequest, RunDiscovery
from ttt.swarm.process.reporter import Reporter

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


def test_only_the_coordinators_announcement_counts(tmp_path: Path) -> None:
    with node(tmp_path / "coordinator") as coordinator:
        [address] = visible_addresses(coordinator)
        trusted = [address.rpartition("/p2p/")[2]]
        assert trusted == [str(coordinator.peer_id)]
        with node(tmp_path / "stranger", address) as stranger:
            add_record_rules(coordinator, "cats-g0", AllowAll(), 64)
            assert announce_run(stranger, "cats", Announcement(generation=9))
            assert find_announcement(coordinator, "cats", trusted) is None
            assert announce_run(coordinator, "cats", Announcement(generation=1))
            assert wait_for(lambda: find_announcement(stranger, "cats", trusted) is not None, 20)
            assert find_announcement(stranger, "cats", trusted) == Announcement(generation=1, coordinator=trusted[0])
            assert find_announcement(stranger, "dogs", trusted) is None
            assert find_donors(stranger, "cats-g0") == {}
            assert reconnect(stranger, [address]) == [address]


def test_newcomers_find_the_run_at_another_peer_while_the_coordinator_is_away(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with node(tmp_path / "coordinator") as coordinator:
            [address] = visible_addresses(coordinator)
            peer = stack.enter_context(node(tmp_path / "peer", address))
            [other] = visible_addresses(peer)
            assert announce_run(coordinator, "cats", Announcement(generation=1))
            assert wait_for(lambda: find_announcement(peer, "cats", [str(coordinator.peer_id)]) is not None, 20)
        newcomer = stack.enter_context(node(tmp_path / "newcomer", other))
        named = PeerOptions(run="", initial_peers=(other,), coordinator=str(coordinator.peer_id), folder=tmp_path)
        assert wait_for(lambda: find_announcement(newcomer, "cats", named.coordinators) is not None, 30)
        unnamed = PeerOptions(run="", initial_peers=(other,), folder=tmp_path)
        assert find_announcement(newcomer, "cats", unnamed.coordinators) is None, "the peer has not named it"
        assert announce_run(peer, "cats", Announcement(generation=0, coordinator=str(coordinator.peer_id)))
        expected = Announcement(generation=1, coordinator=str(coordinator.peer_id))
        assert wait_for(lambda: find_announcement(newcomer, "cats", unnamed.coordinators) == expected, 30)


def test_a_peer_names_its_coordinator_to_newcomers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of any peer is enough to join; without a coordinator, as after a day, the peer's word counts."""
    monkeypatch.setattr("ttt.swarm.peer.discovery.WATCH_SECONDS", 0.1)
    with node(tmp_path / "peer") as peer:
        [address] = visible_addresses(peer)
        options = PeerOptions(run="", initial_peers=("/ip4/127.0.0.1/tcp/1/p2p/" + ID["ada"],), folder=tmp_path)
        reporter, leave = Reporter(tmp_path), LeaveRequest()
        announcement = Announcement(generation=2, coordinator=ID["ada"])
        with node(tmp_path / "newcomer", address) as newcomer:
            with RunDiscovery(peer, options, "cats", announcement, reporter, leave).watching():
                assert wait_for(lambda: find_announcement(newcomer, "cats", [str(peer.peer_id)]) == announcement, 30)
            assert find_announcement(newcomer, "cats", [ID["bob"]]) is None, "no peer that it trusts has announced it"
        reporter.close("stopped")


def test_peers_that_never_answer_do_not_delay_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They accept the connection. The node's process is forked, and inherits the shorter time-out."""
    monkeypatch.setattr("ttt.swarm.dht.node.CALL_SECONDS", 2.0)
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(6)]
        one, other = (stack.enter_context(node(tmp_path / name)) for name in ("one", "other"))
        dead = [
            f"/ip4/127.0.0.1/tcp/{s.getsockname()[1]}/p2p/{ID[w]}" for s, w in zip(silent, [*ID, *ID], strict=False)
        ]
        [address] = visible_addresses(other)
        assert reconnect(one, [*dead, "not an address", address]) == [address]


def test_the_watch_continues_after_an_error_and_notices_a_roll_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttt.swarm.peer.discovery.WATCH_SECONDS", 0.1)
    calls = 0

    def broken_at_first(*_: object) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("odd")
        return []

    monkeypatch.setattr("ttt.swarm.peer.discovery.reconnect", broken_at_first)
    with node(tmp_path / "coordinator") as coordinator:
        [address] = visible_addresses(coordinator)
        options = PeerOptions(run="", initial_peers=(address,), client=True, folder=tmp_path)
        reporter, leave = Reporter(tmp_path), LeaveRequest()
        old = Announcement(generation=1, coordinator=str(coordinator.peer_id))
        discovery = RunDiscovery(coordinator, options, "cats", old, reporter, leave)
        assert announce_run(coordinator, "cats", Announcement(generation=2))
        with discovery.watching():
            assert leave.wait(60)
        assert leave.restart and "rolled back" in leave.reason
        assert any("checking the network failed: odd" in text for text in reporter.status.problems)
        with pytest.raises(Cancelled):  # a newcomer whose generation no peer can serve leaves at once
            discovery.wait_for_donor()
        reporter.close("stopped")


def test_a_failure_to_join_names_its_cause(tmp_path: Path) -> None:
    with node(tmp_path / "one") as one:
        port = int(visible_addresses(one)[0].split("/")[4])
        with pytest.raises(SwarmError, match=r"in use.*--port"), node(tmp_path / "two", port=port):
            pass
    for wrong in ("example.org:8080", "/ip4/127.0.0.1/tcp/80", ""):
        with pytest.raises(InvalidInput, match="is not a peer's address"):
            check_addresses([wrong])


@pytest.mark.parametrize(
    "wrong",
    [
        "nonsense", "", "/", "203.0.113.5:8080", "/ip4/300.1.1.1/tcp/80", "/ip4/203.0.113.5", "/tcp/80",
        "/ip4/203.0.113.5/tcp/0", "/ip4/203.0.113.5/udp/0/quic-v1", "/ip4/203.0.113.5/tcp/99999", "/dns4//tcp/80",
        f"/ip4/203.0.113.5/tcp/80/p2p/{ID['ada']}",
    ],
)  # fmt: skip
def test_an_address_that_no_peer_could_connect_to_is_not_announced(tmp_path: Path, wrong: str) -> None:
    path, key = load_identity(tmp_path)
    with pytest.raises(InvalidInput, match=r"--announce.*\[network\] announce.*such as /ip4/203.0.113.5/tcp/8080"):
        start_dht([], identity=path, key=key, announce=["/ip4/203.0.113.5/tcp/80", wrong], required=False)
    check_announced(["/ip4/203.0.113.5/tcp/8080", "/dns4/example.org/tcp/443", "/ip6/::1/udp/4001/quic-v1"])


def test_a_start_whose_error_cannot_be_pickled_or_that_never_ends_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def odd(**_: object) -> None:
        raise StringParseError("odd", "nonsense")

    async def endless(**_: object) -> None:
        await asyncio.sleep(600)

    path, key = load_identity(tmp_path)
    for create, seconds, message in (
        (odd, 30.0, "exited without an error"),
        (endless, -59.0, "not ready within 1 s"),
    ):
        monkeypatch.setattr("ttt.swarm.dht.node.JOIN_SECONDS", seconds)
        monkeypatch.setattr("hivemind.dht.dht.DHTNode.create", create)
        before = set(multiprocessing.active_children())
        started = time.monotonic()
        with pytest.raises(SwarmError, match=message):
            start_dht([], identity=path, key=key, required=False)
        assert time.monotonic() - started < 60
        assert set(multiprocessing.active_children()) <= before


def test_an_identity_is_created_once_and_kept(tmp_path: Path) -> None:
    path, key = load_identity(tmp_path)
    again, same = load_identity(tmp_path)
    assert path == again
    assert key.to_bytes() == same.to_bytes()
    path.chmod(0o600)
    path.write_bytes(b"broken")
    with pytest.raises(InvalidInput, match="not a key file"):
        load_identity(tmp_path)
