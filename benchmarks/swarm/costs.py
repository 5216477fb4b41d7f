"""What a swarm costs: bytes per step beside the calculator's figure, and what grows over many steps."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.swarm.measures import rounds_since, share, usage
from benchmarks.swarm.network import Network, available
from benchmarks.swarm.setup import START_SECONDS, Result, Wanted, all_computing, averaging
from tests.support.swarm import LocalSwarm, tiny_run
from ttt.swarm.process.status import read_rounds


def traffic(folder: Path, wanted: Wanted) -> Result:
    """Bytes per step and peer of the demo's model, beside the calculator's figure."""
    if not available():
        return {"skipped": "needs root and `ip netns`"}
    found: Result = {}
    for compression in ("8-bit", "none"):
        found[compression] = _traffic(folder / compression, min(wanted.steps, 6), min(wanted.peers, 3), compression)
    for key in ("measured", "wire_sent"):
        found[f"8-bit to float32, {key}"] = round(found["8-bit"][key] / found["none"][key], 4)
    return found


def _traffic(folder: Path, steps: int, peers: int, compression: str) -> Result:
    from ttt.bundle import DEMO_FOLDER, read_bundle

    folder.mkdir()
    with Network() as network:
        settings = tiny_run(
            folder, model={"bundle": "demo"}, optimizer={"name": "lamb"}, batch={"global_batch": 32},
            averaging=averaging(gradients=compression, state=compression, state_every=1),
            # No download for a checkpoint among what is measured.
            checkpoints={"every_seconds": 3600.0},
            network={"host": network.address("coordinator"), "port": 8080},
        )  # fmt: skip
        with LocalSwarm(folder / "swarm", settings, wrap=network.wrap) as swarm:
            swarm.coordinator(seconds=START_SECONDS)
            names = [f"p{number}" for number in range(peers)]
            members = [
                swarm.peer(name, "--host", network.address(name), "--micro-batch", "4", "--limit", "8")
                for name in names
            ]
            all_computing(members)
            first = max(m.wait(lambda status: status.steps_done >= 2, START_SECONDS).step for m in members)
            wire, at = [network.bytes_of(name) for name in names], time.time()
            for member in members:
                member.wait(lambda status: status.step >= first + steps, 120.0 * steps)
            sent = [network.bytes_of(name)[0] - before for name, (before, _) in zip(names, wire, strict=True)]
            rounds = [r for m in members for r in read_rounds(m.folder) if r.time > at and r.group_size == peers]
    per_kind = {
        kind: statistics.mean(r.sent_bytes for r in rounds if r.kind == kind) for kind in ("gradients", "state")
    }
    expected = _calculated(read_bundle(DEMO_FOLDER).dalle, peers, compression)
    steps = len([r for r in rounds if r.kind == "gradients"]) / peers
    return {
        "peers": peers, "steps": steps, "measured": round(sum(per_kind.values())),
        "calculated": expected, "ratio": round(sum(per_kind.values()) / expected, 4),
        "wire_sent": round(statistics.mean(sent) / steps),
        "wire_ratio": round(statistics.mean(sent) / steps / expected, 4),
        "clean": share(sum(r.complete for r in rounds), len(rounds)),
    }  # fmt: skip


def _calculated(config: Any, peers: int, compression: str) -> int:
    from calculator import TrainingSetup, estimate
    from ttt.train.micro_batch import as_architecture

    setup = TrainingSetup(
        swarm=True, swarm_peers=peers, compression={"8-bit": "run", "none": "none"}[compression],
        optimizer="lamb8bit-cpu", offload_optimizer="hivemind",
    )  # fmt: skip
    swarm = estimate(as_architecture(config), setup).swarm
    assert swarm is not None
    return swarm.gradients + swarm.state


def endurance(folder: Path, wanted: Wanted) -> Result:
    """Many steps: does anything grow?"""
    steps = wanted.steps
    settings = wanted.run(folder, batch={"global_batch": 16}, checkpoints={"every_seconds": 20.0})
    with LocalSwarm(folder / "swarm", settings) as swarm:
        coordinator = swarm.coordinator(seconds=START_SECONDS)
        members = [swarm.peer(f"p{n}", "--micro-batch", "8") for n in range(2)]
        all_computing(members)
        marks = []
        for step in sorted({min(20, steps // 4), steps // 4, steps // 2, 3 * steps // 4, steps}):
            members[0].wait(lambda status, wanted=step: status.step >= wanted, 20.0 * steps)
            marks.append({"step": step, **{m.folder.name: usage(m) for m in (coordinator, *members)}})
        rounds = rounds_since(members, 2)
        return {"steps": steps, "clean": share(sum(r.complete for r in rounds), len(rounds)), "marks": marks}
