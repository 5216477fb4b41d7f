"""Does a local swarm survive what the Internet does to it: peers that die, come late, or are cut off?"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.swarm.measures import (
    agree_since,
    history_points,
    last_gap,
    longest_step,
    parameter_gaps,
    steps_once,
)
from benchmarks.swarm.network import Network, available
from benchmarks.swarm.setup import START_SECONDS, Result, Wanted, all_computing
from tests.support.swarm import LocalSwarm, processes_of
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.process.status import read_steps


def crash(folder: Path, wanted: Wanted) -> Result:
    """`kill -9` of one peer while computing, of another while averaging."""
    with LocalSwarm(folder / "swarm", wanted.run(folder)) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        members = [wanted.peer(swarm, number) for number in range(max(3, wanted.peers))]
        all_computing(members)
        for member in members:
            member.wait(lambda status: status.step >= 3, START_SECONDS)
        stalls = {}
        for victim, state in ((members.pop(), "computing"), (members.pop(), "averaging")):
            victim.wait(lambda status, wanted=state: status.state == wanted, 120)
            victim.kill()
            killed, at = time.time(), members[0].status.step
            for member in members:
                member.wait(lambda status, past=at: status.step >= past + 4, 300)
            left = processes_of(victim.process.pid)
            stalls[state] = {"longest_step": longest_step(members, killed), "orphans": len(left)}
        return {
            "stalls": stalls, "averaging_timeout": swarm.settings.averaging.averaging_timeout,
            "every_step_once": all(map(steps_once, members)), "last_gap": last_gap(members),
        }  # fmt: skip


def late(folder: Path, wanted: Wanted) -> Result:
    """A peer that joins a running swarm."""
    with LocalSwarm(folder / "swarm", wanted.run(folder)) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        members = [wanted.peer(swarm, number) for number in range(2)]
        all_computing(members)
        members[0].wait(lambda status: status.step >= 5, START_SECONDS)
        began = time.monotonic()
        newcomer = wanted.peer(swarm, 2)
        newcomer.wait(lambda status: status.state == "computing", START_SECONDS)
        ready = time.monotonic() - began
        newcomer.wait(lambda status: status.steps_done >= 1 and status.results_received == 1, START_SECONDS)
        contributed = time.monotonic() - began
        newcomer.wait(lambda status: status.steps_done >= 3, START_SECONDS)
        everybody = [*members, newcomer]
        return {
            "seconds_to_state": round(ready, 1), "seconds_to_contribution": round(contributed, 1),
            "step_at_joining": min(parameter_gaps(everybody), default=None), "gap": last_gap(everybody),
        }  # fmt: skip


def restart(folder: Path, wanted: Wanted) -> Result:
    """Everybody killed, the coordinator too; then all of them again."""
    settings = wanted.run(folder, checkpoints={"every_seconds": 10.0})
    with LocalSwarm(folder / "swarm", settings) as swarm:
        coordinator = swarm.coordinator(seconds=START_SECONDS)
        members = [wanted.peer(swarm, number) for number in range(2)]
        all_computing(members)
        members[0].wait(lambda status: status.step >= 8, START_SECONDS)
        store = CheckpointStore(coordinator.folder, settings.run.name, settings.checkpoints)
        reached = members[0].status.step
        times = {e.step: e.time for e in read_steps(members[0].folder)}
        for member in (coordinator, *members):
            member.kill()
        kept = store.newest()
        assert kept is not None
        points = history_points(coordinator.folder)
        swarm.coordinator(seconds=START_SECONDS)
        again = [wanted.peer(swarm, number) for number in range(2)]
        for member in again:
            member.wait(lambda status: status.state == "computing", START_SECONDS)
            member.wait(lambda status: status.step > reached, START_SECONDS)
        return {
            "reached": reached, "checkpoint": kept.step,
            "seconds_lost": round(times[reached] - kept.manifest.time, 1),
            "interval": settings.checkpoints.every_seconds, "went_on_to": again[0].status.step,
            "history_points_before": points, "history_points_after": history_points(coordinator.folder),
        }  # fmt: skip


def cut(folder: Path, wanted: Wanted) -> Result:
    """The network falls into two halves for 30 seconds."""
    if not available():
        return {"skipped": "needs root and `ip netns`"}
    with Network() as network:
        settings = wanted.run(folder, network={"host": network.address("coordinator"), "port": 8080})
        with LocalSwarm(folder / "swarm", settings, wrap=network.wrap) as swarm:
            swarm.coordinator(seconds=START_SECONDS)
            numbers = range(max(4, wanted.peers))
            members = [wanted.peer(swarm, n, "--host", network.address(f"p{n}")) for n in numbers]
            all_computing(members)
            for member in members:
                member.wait(lambda status: status.step >= 4, START_SECONDS)
            away, here = [f"p{n}" for n in (2, 3)], members[:2]
            before = [member.status.step for member in members]
            network.move(away, "ttt-br2")
            time.sleep(30)
            during = [member.status.step for member in members]
            network.move(away, "ttt-br")
            healed, at = time.monotonic(), max(during)
            for member in members:
                member.wait(lambda status: status.step >= at + 3, 300)
            seconds = time.monotonic() - healed
            while not agree_since(members, at + 3):
                assert time.monotonic() - healed < 300, "the halves did not merge"
                time.sleep(1)
            merged = time.monotonic() - healed
            return {
                "steps_before": before, "steps_after_cut": during, "here_went_on": during[0] > before[0],
                "away_went_on": during[2] > before[2], "seconds_to_next_steps": round(seconds, 1),
                "seconds_to_merge": round(merged, 1), "peers_at_the_end": [m.status.peers for m in here],
            }  # fmt: skip
