"""Who may speak: the open gate, bans in a file that every process sees, and gates in a row."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from ttt.errors import InvalidInput
from ttt.swarm.dht.access import AllOf, BanList, Decision, Entrance, Gate, OpenGate


@pytest.mark.parametrize("entrance", Entrance)
def test_the_open_gate_is_open(entrance: Entrance) -> None:
    assert OpenGate().allows("anybody", entrance)


def test_bans_hold_until_they_are_lifted(tmp_path: Path) -> None:
    bans = BanList(tmp_path / "bans.json")
    assert bans.allows("eve", Entrance.JOIN_GROUP)
    bans.ban("eve", "sent NaN 20 times")
    decision = bans.allows("eve", Entrance.JOIN_GROUP)
    assert not decision and decision.reason == "banned: sent NaN 20 times"
    assert bans.allows("ada", Entrance.JOIN_GROUP)
    assert BanList(tmp_path / "bans.json").bans() == {"eve": "sent NaN 20 times"}
    bans.lift("eve")
    bans.lift("nobody")
    assert bans.allows("eve", Entrance.JOIN_GROUP) and bans.bans() == {}


def _ban(path: Path) -> None:
    BanList(path).ban("eve", "elsewhere")


def test_a_ban_by_another_process_is_heard_within_a_second(tmp_path: Path) -> None:
    now = [0.0]
    bans = BanList(tmp_path / "bans.json", clock=lambda: now[0])
    assert bans.allows("eve", Entrance.DHT_RECORD)
    process = multiprocessing.get_context("spawn").Process(target=_ban, args=(tmp_path / "bans.json",))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert bans.allows("eve", Entrance.DHT_RECORD)  # it looks once a second
    now[0] = 1.0
    assert not bans.allows("eve", Entrance.DHT_RECORD)


def test_a_broken_file_lifts_no_ban_and_is_told_to_who_writes(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "bans.json"
    bans = BanList(path, clock=lambda: now[0])
    bans.ban("eve", "why")
    for content in ("{broken", "[1]", '{"a": 1}'):
        path.write_text(content)
        now[0] += 2
        assert not bans.allows("eve", Entrance.DHT_RECORD)
        with pytest.raises(InvalidInput, match=r"bans\.json"):
            bans.ban("bob", "why")
        assert path.read_text() == content
    path.unlink()
    now[0] += 2
    assert bans.allows("eve", Entrance.DHT_RECORD)


class Refusing(Gate):
    def __init__(self, reason: str) -> None:
        self.reason = reason

    def allows(self, peer_id: str, entrance: Entrance) -> Decision:
        return Decision(False, self.reason)


def test_gates_in_a_row() -> None:
    assert AllOf(()).allows("ada", Entrance.JOIN_GROUP)
    assert AllOf((OpenGate(), OpenGate())).allows("ada", Entrance.JOIN_GROUP)
    decision = AllOf((OpenGate(), Refusing("first"), Refusing("second"))).allows("ada", Entrance.JOIN_GROUP)
    assert not decision and decision.reason == "first"
