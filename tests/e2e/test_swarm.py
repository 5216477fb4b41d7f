"""Real swarms on this machine, from founding to the last step: processes, networks and signals, nothing replaced."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.backups import distance_of
from tests.support.swarm import (
    AGREE,
    LocalSwarm,
    Member,
    complete_rounds,
    free_port,
    parameter_gaps,
    processes_of,
    sick_peer,
    tiny_run,
    wait_for_steps,
)
from ttt import TextToImage
from ttt.swarm.averaging.training_state import fingerprint_distance
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.config.run_file import write_run_file
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.peer.recovery import load_backup
from ttt.swarm.process.status import StepRecord, read_rounds, read_steps

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux"),
    pytest.mark.timeout(900),
]


def steps_of(member: Member) -> dict[int, StepRecord]:
    return {record.step: record for record in read_steps(member.folder)}


def test_fast_peers_find_each_other_and_leave_a_complete_run(tmp_path: Path) -> None:
    """Each could fill the global batch ten times before it hears of the other. The last state is saved, though both
    leave at once and no checkpoint is due for hours."""
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
            assert len(together) >= 3, "they trained as two runs"
            times = [record.time for record in steps_of(peer).values()]  # when they were written, a little after
            assert all(later - earlier > 0.5 for earlier, later in pairwise(sorted(times)))
        store = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints)
        assert [kept.step for kept in store.all()] == [0, 8]
        ours, theirs = (steps_of(peer)[8] for peer in peers)
        assert fingerprint_distance(ours.fingerprint, theirs.fingerprint, ours.norm) < AGREE
        assert ours.time < store.newest().manifest.time < ours.time + 60  # type: ignore[union-attr]


def test_one_run_from_its_founding_to_its_end(tmp_path: Path) -> None:
    """One swarm for all of it, as each takes minutes: founding, a late peer, a killed one, a client and an auxiliary
    peer, a coordinator that is killed and resumed, and peers that leave at the same step."""
    settings = tiny_run(tmp_path, averaging={"state": "none"})  # in full precision: parameters can be compared exactly
    with LocalSwarm(tmp_path / "swarm", settings, wrap=sick_peer("gradients")) as swarm:
        coordinator = swarm.coordinator(seconds=180)
        a = swarm.peer("a", "--micro-batch", "2", "--limit", "10", "--seed", "1")
        b = swarm.peer("b", "--micro-batch", "4", "--limit", "30", "--seed", "2")
        check_peers_train_the_same_model(a, b)
        late = check_a_late_peer_joins_at_another_peer(swarm, a)
        check_the_swarm_survives_a_killed_peer(b, [a, late])

        newest = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints).newest()
        assert newest is not None and newest.step >= 1
        assert TextToImage.from_pretrained(newest.bundle).name == f"tiny step {newest.step}"
        assert late.stop() == 0
        assert late.status.state == "stopped"

        client, auxiliary = check_a_client_and_an_auxiliary_peer_take_part(swarm, a)
        for member in (a, client, auxiliary, coordinator):
            member.kill()
        check_the_run_resumes_and_peers_that_leave_together_agree(swarm, settings)
    with sqlite3.connect(coordinator.folder / "history.sqlite") as history:
        names = {row[0] for row in history.execute("select name from peers")}
    assert {"a", "b", "late", "sick", "auxiliary"} <= names


def check_peers_train_the_same_model(a: Member, b: Member) -> None:
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


def check_a_late_peer_joins_at_another_peer(swarm: LocalSwarm, at: Member) -> Member:
    """The address of any peer is enough: it names the coordinator."""
    late = swarm.peer("late", "--micro-batch", "4", "--limit", "30", "--seed", "3", at=at)
    joined = late.wait(lambda status: status.steps_done >= 2 and status.samples > 0, 180)
    assert joined.step > 4, "it started from the initial weights"
    return late


def check_the_swarm_survives_a_killed_peer(killed: Member, others: list[Member]) -> None:
    killed.kill()
    deadline = time.monotonic() + 15
    while processes_of(killed.process.pid):
        assert time.monotonic() < deadline, "children outlived a killed peer"
        time.sleep(0.1)
    before = others[0].status.step
    for peer in others:
        peer.wait(lambda status: status.step >= before + 3, 180)


def check_a_client_and_an_auxiliary_peer_take_part(swarm: LocalSwarm, a: Member) -> tuple[Member, Member]:
    """No peer can reach the client, so it averages through others; the auxiliary peer averages and trains nothing. Once
    the client's gradients are NaN: it keeps them to itself, and still receives the average of the others."""
    client = swarm.peer("sick", "--micro-batch", "4", "--limit", "10", "--seed", "2", "--client")
    auxiliary = swarm.peer("auxiliary", "--auxiliary")
    auxiliary.wait(lambda status: status.state == "assisting", 180)
    since = wait_for_steps(a, client, steps=6)
    assert client.status.addresses == []
    assert any("its own gradients" in problem for problem in client.status.problems)
    assert client.status.restored == a.status.restored == 0
    gaps = parameter_gaps(a, client, since=since)
    assert len(gaps) >= 3 and max(gaps.values()) < AGREE
    assert client.status.sent_bytes > 0
    assisted = [r for r in complete_rounds(auxiliary, 3) if r.received_bytes > 0]
    assert assisted, [(r.group_size, r.failed, r.refused) for r in read_rounds(auxiliary.folder)]
    ids = {peer.status.peer_id for peer in (a, client)}
    assert all(ids <= {*r.peers} for r in assisted), "an auxiliary peer took a trainer's place"
    assert set(assisted[-1].weights) == ids, "the auxiliary peer's own gradients, which do not exist, counted"
    assert auxiliary.status.samples == 0 and read_steps(auxiliary.folder) == []
    return client, auxiliary


def check_the_run_resumes_and_peers_that_leave_together_agree(swarm: LocalSwarm, settings: RunSettings) -> None:
    last = CheckpointStore(swarm.folder / "coordinator", "tiny", settings.checkpoints).newest()
    assert last is not None
    coordinator = swarm.coordinator(seconds=180)
    assert "resuming from the checkpoint" in coordinator.status.message
    until = str(last.step + 12)
    peers = [swarm.peer(name, "--until", until, "--limit", "30", "--micro-batch", "4") for name in ("a", "b")]
    coordinator.wait(lambda status: status.step > last.step, 240)
    for peer in peers:
        peer.wait(lambda status: status.state == "stopped", 240)
        joined_at = [line for line in peer.log.splitlines() if "starting at step" in line][-1]
        assert int(joined_at.rpartition(" ")[2]) >= last.step, "work before the checkpoint was lost"
        assert peer.process.wait(60) == 0
        assert processes_of(peer.process.pid) == []
    backups = [load_backup(peer.folder) for peer in peers]
    assert backups[0] is not None and backups[1] is not None
    assert backups[0].step == backups[1].step == int(until)
    assert distance_of(backups[0], backups[1]) < 1e-4
    assert coordinator.stop() == 0
    assert processes_of(coordinator.process.pid) == []
    with sqlite3.connect(coordinator.folder / "history.sqlite") as history:
        steps = [row[0] for row in history.execute("select step from points order by id")]
    assert max(steps) > last.step


def test_a_peer_that_finds_no_other_peer_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    write_run_file(run, tiny_run(tmp_path))
    absent = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC"
    line = [sys.executable, "-m", "ttt", "peer", "--run", str(run), "--folder", str(tmp_path / "peer")]
    done = subprocess.run([*line, "--initial-peer", absent], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "none of the initial peers answered" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*line, "--initial-peer", "example.org"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "not a peer's address" in done.stderr
