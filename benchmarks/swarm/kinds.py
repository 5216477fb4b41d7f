"""Do peers of every kind work together: behind a firewall, without training, rolled back, with broken numbers?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.swarm.measures import agree_since, last_gap, rounds_since, share
from benchmarks.swarm.setup import START_SECONDS, Result, Wanted, all_computing
from tests.support.swarm import LocalSwarm, Member


def client(folder: Path, wanted: Wanted) -> Result:
    """Two of the peers cannot be reached: they average through the others."""
    with LocalSwarm(folder / "swarm", wanted.run(folder)) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        members = [wanted.peer(swarm, n, *(["--client"] if n >= 2 else [])) for n in range(max(3, wanted.peers))]
        return _together(members, wanted)


def auxiliary(folder: Path, wanted: Wanted) -> Result:
    """An auxiliary peer averages for the others without training."""
    with LocalSwarm(folder / "swarm", wanted.run(folder)) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        auxiliary = swarm.peer("auxiliary", "--auxiliary")
        members = [wanted.peer(swarm, number) for number in range(max(2, wanted.peers))]
        auxiliary.wait(lambda status: status.state == "assisting", START_SECONDS)
        result = _together(members, wanted, auxiliary_peers=1)
        rounds = rounds_since([auxiliary], 3)
        clean = share(sum(r.complete for r in rounds), len(rounds))
        return {
            **result, "rounds_of_auxiliary": len(rounds), "clean_of_auxiliary": clean,
            "sent_by_auxiliary": auxiliary.status.sent_bytes, "received_by_auxiliary": auxiliary.status.received_bytes,
        }  # fmt: skip


def rollback(folder: Path, wanted: Wanted) -> Result:
    """`ttt run rollback` while peers run: they come along by themselves."""
    settings = wanted.run(folder, checkpoints={"every_seconds": 5.0, "keep_last": 100})
    with LocalSwarm(folder / "swarm", settings) as swarm:
        coordinator = swarm.coordinator(seconds=START_SECONDS)
        members = [wanted.peer(swarm, number) for number in range(2)]
        all_computing(members)
        members[0].wait(lambda status: status.step >= 8, START_SECONDS)
        coordinator.stop()
        steps = sorted(int(path.name.partition("-")[2]) for path in (coordinator.folder / "checkpoints").glob("step-*"))
        to = steps[len(steps) // 2]
        line = ["run", "rollback", "--run", str(swarm.run_file), "--folder", str(coordinator.folder), "--to", str(to)]
        done = subprocess.run([sys.executable, "-m", "ttt", *line], capture_output=True, text=True, check=True)
        reached = [member.status.step for member in members]
        swarm.coordinator(seconds=START_SECONDS)
        for member in members:
            member.wait(lambda status: status.state == "computing" and status.step < max(reached), START_SECONDS)
            member.wait(lambda status: status.step >= to + 2, START_SECONDS)
        taken = [line for member in members for line in member.log.splitlines() if "rolled back" in line]
        return {"checkpoints": steps, "to": to, "reached": reached, "output": done.stdout.strip(),
                "peers_restarted": len(taken), "agree": agree_since(members, to)}  # fmt: skip


def _together(members: list[Member], wanted: Wanted, auxiliary_peers: int = 0) -> Result:
    """Until the wanted step, from the first that everybody was in."""
    all_computing(members)
    first = max(member.wait(lambda status: status.steps_done >= 1, START_SECONDS).step for member in members)
    for member in members:
        member.wait(lambda status: status.step >= first + wanted.steps, 120.0 * wanted.steps)
    rounds = [r for r in rounds_since(members, first + 1) if r.kind == "gradients"]
    return {
        "peers": len(members), "steps": wanted.steps, "rounds": len(rounds),
        "clean": share(sum(r.complete for r in rounds), len(rounds)),
        "whole_groups": share(sum(r.group_size == len(members) + auxiliary_peers for r in rounds), len(rounds)),
        "failures": sorted({r.failed or "; ".join(r.refused) or "parts missing" for r in rounds if not r.complete})[:5],
        "last_gap": last_gap(members),
    }  # fmt: skip
