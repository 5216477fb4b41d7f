"""A real swarm on this machine, from its founding to its end: processes, networks, signals, nothing replaced."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.backups import distance_of
from tests.support.swarm import LocalSwarm, Member, free_port, processes_of, tiny_run
from ttt import TextToImage
from ttt.swarm.averaging.training_state import fingerprint_distance
from ttt.swarm.config.run_file import write_run_file
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.peer.recovery import load_backup
from ttt.swarm.process.status import StepRecord, read_rounds, read_steps

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux"),
    pytest.mark.timeout(600),
]
AGREE = 0.02
"""Of the parameters' norm: 16-bit averaging leaves 0.0003; a step on gradients of one's own, on purpose, 0.002."""


def steps_of(member: Member) -> dict[int, StepRecord]:
    return {record.step: record for record in read_steps(member.folder)}


def test_peers_who_could_each_go_on_alone_find_together_and_leave_a_complete_run(tmp_path: Path) -> None:
    """Each fills the global batch ten times in the second that it takes to hear of the other. The last state is kept,
    though both leave at once and no checkpoint is due for hours."""
    settings = tiny_run(
        tmp_path, batch={"global_batch": 16}, optimizer={"total_steps": 8}, checkpoints={"every_seconds": 3600.0}
    )
    with LocalSwarm(tmp_path / "swarm", settings) as swarm:
        coordinator = swarm.coordinator()
        peers = [swarm.peer(name, "--micro-batch", "8", "--seed", name) for name in ("1", "2")]
        for peer in peers:
            assert peer.process.wait(240) == 0, peer.log[-3000:]
            assert "the run is complete: 8 steps; staying until the coordinator has them" in peer.log
            together = [
                r for r in read_rounds(peer.folder) if r.complete and r.group_size == 2 and r.kind == "gradients"
            ]
            assert len(together) >= 3, "they went on as two runs"
            times = [record.time for record in steps_of(peer).values()]  # when they were written, a little after
            assert all(later - earlier > 0.5 for earlier, later in pairwise(sorted(times)))
        store = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints)
        assert [kept.step for kept in store.all()] == [0, 8]
        ours, theirs = (steps_of(peer)[8] for peer in peers)
        assert fingerprint_distance(ours.fingerprint, theirs.fingerprint, ours.norm) < AGREE
        assert ours.time < store.newest().manifest.time < ours.time + 60  # type: ignore[union-attr]


def test_a_run_from_its_founding_to_its_end(tmp_path: Path) -> None:
    settings = tiny_run(tmp_path)
    with LocalSwarm(tmp_path / "swarm", settings) as swarm:
        coordinator = swarm.coordinator()
        a = swarm.peer("a", "--micro-batch", "2", "--limit", "16", "--seed", "1")
        b = swarm.peer("b", "--micro-batch", "4", "--limit", "30", "--seed", "2")
        for peer in (a, b):
            peer.wait(lambda status: status.step >= 4, 180)

        ours, theirs = steps_of(a), steps_of(b)
        shared = sorted(ours.keys() & theirs.keys())
        assert len(shared) >= 3
        for step in shared:
            gap = fingerprint_distance(ours[step].fingerprint, theirs[step].fingerprint, ours[step].norm)
            assert gap < AGREE, f"after step {step} the peers hold different parameters: {gap}"
        assert any(record.group_size == 2 and record.complete for record in read_rounds(a.folder))
        assert a.status.sent_bytes > 100_000, "nothing was exchanged"
        moved = fingerprint_distance(ours[shared[0]].fingerprint, ours[shared[-1]].fingerprint, ours[shared[0]].norm)
        assert moved > 10 * 0.0003, "nothing was learnt"

        late = swarm.peer("late", "--micro-batch", "4", "--limit", "30", "--seed", "3")
        joined = late.wait(lambda status: status.steps_done >= 2 and status.samples > 0, 180)
        assert joined.step > 4, "it began anew"

        b.kill()
        deadline = time.monotonic() + 15
        while processes_of(b.process.pid):
            assert time.monotonic() < deadline, "children outlived a killed peer"
            time.sleep(0.1)
        before = a.status.step
        for peer in (a, late):
            peer.wait(lambda status: status.step >= before + 3, 180)

        kept = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints).newest()
        assert kept is not None
        assert kept.step >= 1
        assert TextToImage.from_pretrained(kept.bundle).name == f"tiny step {kept.step}"

        assert late.stop() == 0
        assert late.status.state == "stopped"
        for member in (a, coordinator):
            member.kill()
        last = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints).newest()
        assert last is not None
        again = swarm.coordinator()
        assert "resuming from the checkpoint" in again.status.message
        back = swarm.peer("a", "--micro-batch", "4", "--seed", "4")
        back.wait(lambda status: status.step > last.step, 240)
        taken_over = [line for line in back.log.splitlines() if "starting at step" in line][-1]
        assert int(taken_over.rpartition(" ")[2]) >= last.step, "work before the checkpoint was lost"
        again.wait(lambda status: status.step > last.step, 60)
        assert again.stop() == 0
        assert back.stop() == 0
        assert processes_of(again.process.pid) == processes_of(back.process.pid) == []
    with sqlite3.connect(coordinator.folder / "history.sqlite") as history:
        steps = [row[0] for row in history.execute("select step from points order by id")]
        names = {row[0] for row in history.execute("select name from peers")}
    assert max(steps) > last.step
    assert {"a", "b", "late"} <= names


def test_two_peers_that_leave_at_the_same_step_hold_the_same_model(tmp_path: Path) -> None:
    with LocalSwarm(tmp_path / "swarm", tiny_run(tmp_path, averaging={"state": "none"})) as swarm:
        swarm.coordinator()
        peers = [swarm.peer(name, "--until", "4", "--limit", "30", "--micro-batch", "4") for name in ("a", "b")]
        for peer in peers:
            peer.wait(lambda status: status.state == "stopped", 240)
        one, two = (load_backup(peer.folder) for peer in peers)
        assert one is not None
        assert two is not None
        assert one.epoch == two.epoch == 4
        assert distance_of(one, two) < 1e-4


def test_a_peer_that_finds_nobody_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    write_run_file(run, tiny_run(tmp_path))
    nobody = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC"
    line = [sys.executable, "-m", "ttt", "peer", "--run", str(run), "--folder", str(tmp_path / "peer")]
    done = subprocess.run([*line, "--initial-peer", nobody], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "none of the initial peers answered" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*line, "--initial-peer", "example.org"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "not a peer's address" in done.stderr
