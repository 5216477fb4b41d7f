"""Peers of every kind in real swarms on this machine: behind a firewall, without training, with broken numbers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.swarm import FAST, LocalSwarm, Member, tiny_run
from ttt.swarm.averaging.training_state import fingerprint_distance
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.process.status import RoundRecord, read_rounds, read_steps

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux"),
    pytest.mark.timeout(600),
]
SICK = Path(__file__).with_name("sick_peer.py")
AGREE = 0.02
"""Of the parameters' norm: 16-bit averaging leaves 0.0003."""
PACE = ("--micro-batch", "4", "--limit", "24")
UNHURRIED = ("--micro-batch", "4", "--limit", "10")
"""Three seconds a step of two peers: a helper that missed one round finds the next."""


def sick(kind: str) -> Callable[[str, list[str]], list[str]]:
    """Runs the member called "sick" with numbers that break after a while."""

    def wrap(name: str, command: list[str]) -> list[str]:
        return [command[0], str(SICK), kind, *command[3:]] if name == "sick" else command

    return wrap


def gaps(*members: Member, since: int = 0) -> dict[int, float]:
    """Step -> largest distance of any member's parameters from the first's."""
    first, *others = ({record.step: record for record in read_steps(member.folder)} for member in members)
    shared = sorted(step for step in first if step > since and all(step in other for other in others))
    return {
        step: max(
            fingerprint_distance(first[step].fingerprint, other[step].fingerprint, first[step].norm)
            for other in others
        )
        for step in shared
    }  # fmt: skip


def complete_rounds(member: Member, size: int, kind: str = "gradients") -> list[RoundRecord]:
    return [r for r in read_rounds(member.folder) if r.complete and r.group_size == size and r.kind == kind]


def go_on(*members: Member, steps: int) -> int:
    """Until each has made so many steps more than any of them had; returns where that began."""
    began = max(member.wait(lambda status: status.steps_done > 0, 180).step for member in members)
    for member in members:
        member.wait(lambda status: status.step >= began + steps, 240)
    return began


def test_a_client_and_a_helper_take_part(tmp_path: Path) -> None:
    """Nobody can reach the client, so that it averages through others; the helper averages and trains nothing. Once
    the client's gradients are NaN: they stay at home, and it gets the others' average all the same."""
    with LocalSwarm(tmp_path / "swarm", tiny_run(tmp_path), wrap=sick("gradients")) as swarm:
        swarm.coordinator(seconds=180)
        a = swarm.peer("a", *UNHURRIED, "--seed", "1")
        client = swarm.peer("sick", *UNHURRIED, "--seed", "2", "--client")
        helper = swarm.peer("helper", "--auxiliary")
        helper.wait(lambda status: status.state == "assisting", 180)
        since = go_on(a, client, steps=6)
        assert client.status.addresses == []
        assert any("its own gradients" in problem for problem in client.status.problems)
        assert client.status.restored == a.status.restored == 0
        found = gaps(a, client, since=since)
        assert len(found) >= 3 and max(found.values()) < AGREE
        assert client.status.sent_bytes > 0
        helped = [r for r in complete_rounds(helper, 3) if r.received_bytes > 0]
        assert helped, [(r.group_size, r.failed, r.refused) for r in read_rounds(helper.folder)]
        ids = {peer.status.peer_id for peer in (a, client)}
        assert all(ids <= {*r.peers} for r in helped), "a helper took a trainer's place"
        assert set(helped[-1].weights) == ids, "its own gradients, which are none, counted"
        assert helper.status.samples == 0 and read_steps(helper.folder) == []


def test_broken_parameters_are_restored_and_a_rollback_takes_the_peers_along(tmp_path: Path) -> None:
    """With gradients as factors of rank 4, as in no other test."""
    averaging = {**FAST, "power_sgd_rank": 4}
    settings = tiny_run(tmp_path, averaging=averaging, checkpoints={"every_seconds": 3.0, "keep_last": 50})
    with LocalSwarm(tmp_path / "swarm", settings, wrap=sick("parameters")) as swarm:
        coordinator = swarm.coordinator(seconds=180)
        healthy, ill = swarm.peer("healthy", *PACE, "--seed", "1"), swarm.peer("sick", *PACE, "--seed", "2")
        ill.wait(lambda status: status.restored == 1, 240)
        assert any("restored from the swarm" in problem for problem in ill.status.problems)
        since = max(ill.status.step, go_on(healthy, ill, steps=5))
        assert healthy.status.restored == 0
        found = gaps(healthy, ill, since=since)
        assert len(found) >= 2 and max(found.values()) < AGREE
        assert len(complete_rounds(ill, 2)) > 2

        assert coordinator.stop() == 0
        kept = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints).all()
        to = kept[1].step
        assert to < healthy.status.step - 2
        line = ["run", "rollback", "--run", str(swarm.run_file), "--folder", str(coordinator.folder), "--to", str(to)]
        subprocess.run([sys.executable, "-m", "ttt", *line], check=True, timeout=300)
        began = time.time()
        again = swarm.coordinator(seconds=180)
        for peer in (healthy, ill):
            peer.wait(lambda status, peer=peer: "rolled back" in peer.log and status.state == "computing", 240)
        again.wait(lambda status: status.peers == 2 and status.step >= to + 2, 120)  # it counts those of its own run
        records = [record for peer in (healthy, ill) for record in read_steps(peer.folder) if record.time > began]
        assert min(record.step for record in records) == to + 1
