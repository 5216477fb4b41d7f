"""Real swarms on this machine, case by case: does the run survive what the Internet does to it, and what does it cost?

    python -m benchmarks.swarm                           every case
    python -m benchmarks.swarm --case agree --epochs 30  one, shorter

Every member is a process group of its own; `traffic` and `cut` also give each a network namespace (root, `ip`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.swarm_network import Network, available
from tests.support.swarm import FAST, LocalSwarm, Member, processes_of, tiny_run
from ttt.swarm.checkpoints import CheckpointStore
from ttt.swarm.fingerprint import distance
from ttt.swarm.settings import RunSettings
from ttt.swarm.status import EpochRecord, RoundRecord, read_epochs, read_rounds

Result = dict[str, Any]
UNEQUAL = (("1", 8.0), ("2", 16.0), ("4", 24.0), ("8", 48.0))
"""Micro-batch and samples per second of the peers of a case, in turn."""
START_SECONDS = 240.0


def agree(folder: Path, epochs: int, peers: int, **averaging: Any) -> Result:
    """Unequal peers: the same parameters after every step, clean rounds, the loss of a single process."""
    settings = tiny_run(folder, averaging={**FAST, "gradients": "8-bit", **averaging})
    with LocalSwarm(folder / "swarm", settings) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        members = [_unequal(swarm, number, "--until", str(epochs)) for number in range(peers)]
        began = _all_computing(members)
        for member in members:
            member.wait(lambda status: status.state == "stopped", 60.0 * epochs)
        seconds = time.monotonic() - began
        gaps = parameter_gaps(members)
        rounds = _rounds(members, since=_first_common(members))
        loss = swarm_loss(members, epochs)
    alone = single_loss(settings, epochs)
    return {
        "epochs": epochs, "peers": peers, "seconds_per_epoch": round(seconds / epochs, 2),
        "epochs_compared": len(gaps), "largest_gap": max(gaps.values(), default=None),
        "median_gap": statistics.median(gaps.values()) if gaps else None,
        "rounds": len(rounds), "clean": _share(sum(r.clean for r in rounds), len(rounds)),
        "whole_groups": _share(sum(r.group_size == peers for r in rounds), len(rounds)),
        "loss": loss, "loss_single_process": alone,
    }  # fmt: skip


def delayed(folder: Path, epochs: int, peers: int) -> Result:
    """The same while gradients travel in the background."""
    return agree(folder, epochs, peers, delayed=True)


def crash(folder: Path, epochs: int, peers: int) -> Result:
    """`kill -9` of one peer while computing, of another while averaging."""
    with LocalSwarm(folder / "swarm", tiny_run(folder)) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        members = [_unequal(swarm, number) for number in range(max(3, peers))]
        _all_computing(members)
        for member in members:
            member.wait(lambda status: status.epoch >= 3, START_SECONDS)
        stalls = {}
        for victim, state in ((members.pop(), "computing"), (members.pop(), "averaging")):
            victim.wait(lambda status, wanted=state: status.state == wanted, 120)
            victim.kill()
            killed, at = time.time(), members[0].status.epoch
            for member in members:
                member.wait(lambda status, past=at: status.epoch >= past + 4, 300)
            left = processes_of(victim.process.pid)
            stalls[state] = {"longest_epoch": _longest_epoch(members, killed), "orphans": len(left)}
        gaps = parameter_gaps(members) if len(members) > 1 else {}
        steps = {m.folder.name: _steps_once(read_epochs(m.folder)) for m in members}
        return {
            "stalls": stalls, "averaging_timeout": swarm.settings.averaging.averaging_timeout,
            "every_step_once": all(steps.values()), "last_gap": list(gaps.values())[-1] if gaps else None,
        }  # fmt: skip


def late(folder: Path, epochs: int, peers: int) -> Result:
    """A peer that joins a running swarm."""
    with LocalSwarm(folder / "swarm", tiny_run(folder)) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        members = [_unequal(swarm, number) for number in range(2)]
        _all_computing(members)
        members[0].wait(lambda status: status.epoch >= 5, START_SECONDS)
        began = time.monotonic()
        newcomer = _unequal(swarm, 2)
        newcomer.wait(lambda status: status.state == "computing", START_SECONDS)
        ready = time.monotonic() - began
        newcomer.wait(lambda status: status.epochs_done >= 1 and status.received == 1, START_SECONDS)
        contributed = time.monotonic() - began
        newcomer.wait(lambda status: status.epochs_done >= 3, START_SECONDS)
        gaps = parameter_gaps([*members, newcomer])
        return {
            "seconds_to_state": round(ready, 1), "seconds_to_contribution": round(contributed, 1),
            "epoch_at_joining": min(gaps, default=None), "gap": list(gaps.values())[-1] if gaps else None,
        }  # fmt: skip


def restart(folder: Path, epochs: int, peers: int) -> Result:
    """Everybody killed, the coordinator too; then all of them again."""
    settings = tiny_run(folder, checkpoints={"every_seconds": 10.0})
    with LocalSwarm(folder / "swarm", settings) as swarm:
        coordinator = swarm.coordinator(seconds=START_SECONDS)
        members = [_unequal(swarm, number) for number in range(2)]
        _all_computing(members)
        members[0].wait(lambda status: status.epoch >= 8, START_SECONDS)
        store = CheckpointStore(coordinator.folder, settings.run.name, settings.checkpoints)
        reached = members[0].status.epoch
        times = {e.epoch: e.time for e in read_epochs(members[0].folder)}
        for member in (coordinator, *members):
            member.kill()
        kept = store.newest()
        assert kept is not None
        points = _points(coordinator.folder)
        swarm.coordinator(seconds=START_SECONDS)
        again = [_unequal(swarm, number) for number in range(2)]
        for member in again:
            member.wait(lambda status: status.state == "computing", START_SECONDS)
            member.wait(lambda status: status.epoch > reached, START_SECONDS)
        return {
            "reached": reached, "checkpoint": kept.epoch,
            "seconds_lost": round(times[reached] - kept.manifest.time, 1),
            "interval": settings.checkpoints.every_seconds, "went_on_to": again[0].status.epoch,
            "history_points_before": points, "history_points_after": _points(coordinator.folder),
        }  # fmt: skip


def cut(folder: Path, epochs: int, peers: int) -> Result:
    """The network falls into two halves for 30 seconds."""
    if not available():
        return {"skipped": "needs root and `ip netns`"}
    with Network() as network:
        settings = tiny_run(folder, network={"host": network.address("coordinator"), "port": 8080})
        with LocalSwarm(folder / "swarm", settings, wrap=network.wrap) as swarm:
            swarm.coordinator(seconds=START_SECONDS)
            members = [_unequal(swarm, n, "--host", network.address(f"p{n}")) for n in range(max(4, peers))]
            _all_computing(members)
            for member in members:
                member.wait(lambda status: status.epoch >= 4, START_SECONDS)
            away, here = [f"p{n}" for n in (2, 3)], members[:2]
            before = [member.status.epoch for member in members]
            network.move(away, "ttt-br2")
            time.sleep(30)
            during = [member.status.epoch for member in members]
            network.move(away, "ttt-br")
            healed, at = time.monotonic(), max(during)
            for member in members:
                member.wait(lambda status: status.epoch >= at + 3, 300)
            seconds = time.monotonic() - healed
            while not _agree_now(members, at + 3):
                assert time.monotonic() - healed < 300, "the halves did not merge"
                time.sleep(1)
            merged = time.monotonic() - healed
            return {
                "epochs_before": before, "epochs_after_cut": during, "here_went_on": during[0] > before[0],
                "away_went_on": during[2] > before[2], "seconds_to_next_steps": round(seconds, 1),
                "seconds_to_merge": round(merged, 1), "peers_at_the_end": [m.status.peers for m in here],
            }  # fmt: skip


def traffic(folder: Path, epochs: int, peers: int) -> Result:
    """Bytes per step and peer of the demo's model, beside the calculator's figure."""
    found: Result = {}
    for compression in ("8-bit", "none"):
        found[compression] = _traffic(folder / compression, min(epochs, 6), min(peers, 3), compression)
    found["8-bit to float32"] = round(found["8-bit"]["measured"] / found["none"]["measured"], 3)
    return found


def _traffic(folder: Path, epochs: int, peers: int, compression: str) -> Result:
    from ttt.bundle import DEMO_FOLDER, read_bundle

    folder.mkdir()
    demo = {"bundle": "demo"}
    averaging = {**FAST, "gradients": compression, "state": compression, "state_every": 1}
    with Network() as network:
        settings = tiny_run(
            folder, model=demo, averaging=averaging, optimizer={"name": "lamb"},
            batch={"global_batch": 32}, network={"host": network.address("coordinator"), "port": 8080},
        )  # fmt: skip
        with LocalSwarm(folder / "swarm", settings, wrap=network.wrap) as swarm:
            swarm.coordinator(seconds=START_SECONDS)
            names = [f"p{number}" for number in range(peers)]
            members = [
                swarm.peer(name, "--host", network.address(name), "--micro-batch", "4", "--limit", "8")
                for name in names
            ]
            _all_computing(members)
            first = max(m.wait(lambda status: status.epochs_done >= 2, START_SECONDS).epoch for m in members)
            wire, at = [network.bytes_of(name) for name in names], time.time()
            for member in members:
                member.wait(lambda status: status.epoch >= first + epochs, 120.0 * epochs)
            sent = [network.bytes_of(name)[0] - before for name, (before, _) in zip(names, wire, strict=True)]
            rounds = [r for m in members for r in read_rounds(m.folder) if r.time > at and r.group_size == peers]
    per_kind = {
        kind: statistics.mean(r.sent_bytes for r in rounds if r.kind == kind) for kind in ("gradients", "state")
    }
    expected = _calculated(read_bundle(DEMO_FOLDER).dalle, peers, compression)
    steps = len([r for r in rounds if r.kind == "gradients"]) / peers
    return {
        "peers": peers, "steps": steps, "measured": round(sum(per_kind.values())),
        "calculated": expected, "ratio": round(sum(per_kind.values()) / expected, 3),
        "wire_sent": round(statistics.mean(sent) / steps),
        "wire_ratio": round(statistics.mean(sent) / steps / expected, 3),
    }  # fmt: skip


def _calculated(config: Any, peers: int, compression: str) -> int:
    from calculator import TrainingSetup, estimate
    from ttt.train.fit import as_architecture

    setup = TrainingSetup(
        swarm=True, swarm_peers=peers, compression={"8-bit": "run", "none": "none"}[compression],
        optimizer="lamb8bit-cpu", offload_optimizer="hivemind",
    )  # fmt: skip
    swarm = estimate(as_architecture(config), setup).swarm
    assert swarm is not None
    return swarm.gradients + swarm.state


def endurance(folder: Path, epochs: int, peers: int) -> Result:
    """Many steps: does anything grow?"""
    settings = tiny_run(folder, batch={"global_batch": 16}, checkpoints={"every_seconds": 20.0})
    with LocalSwarm(folder / "swarm", settings) as swarm:
        coordinator = swarm.coordinator(seconds=START_SECONDS)
        members = [swarm.peer(f"p{n}", "--micro-batch", "8") for n in range(2)]
        _all_computing(members)
        marks = []
        for epoch in sorted({min(20, epochs // 4), epochs // 4, epochs // 2, 3 * epochs // 4, epochs}):
            members[0].wait(lambda status, wanted=epoch: status.epoch >= wanted, 20.0 * epochs)
            marks.append({"epoch": epoch, **{m.folder.name: usage(m) for m in (coordinator, *members)}})
        rounds = _rounds(members, since=2)
        return {"epochs": epochs, "clean": _share(sum(r.clean for r in rounds), len(rounds)), "marks": marks}


CASES: dict[str, Callable[[Path, int, int], Result]] = {
    "agree": agree, "delayed": delayed, "crash": crash, "late": late, "restart": restart, "cut": cut,
    "traffic": traffic, "endurance": endurance,
}  # fmt: skip


def usage(member: Member) -> dict[str, int]:
    """MiB (shared pages divided among those who share them), open files and processes of a member's session."""
    memory = files = 0
    processes = processes_of(member.process.pid)
    for pid in processes:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            memory += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            files += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return {"mib": memory >> 10, "files": files, "processes": len(processes)}


def parameter_gaps(members: list[Member]) -> dict[int, float]:
    """Epoch -> largest distance between two members' parameters, by their fingerprints."""
    records = [{r.epoch: r for r in read_epochs(member.folder)} for member in members]
    shared = sorted(set.intersection(*(set(one) for one in records)))
    return {e: max(_gap(records[0][e], one[e]) for one in records[1:]) for e in shared} if len(records) > 1 else {}


def swarm_loss(members: list[Member], epochs: int) -> float:
    """Mean over the last tenth of the steps, by samples."""
    last = [r for m in members for r in read_epochs(m.folder) if r.epoch > epochs * 0.9 and r.loss is not None]
    samples = sum(r.samples for r in last)
    return round(sum((r.loss or 0.0) * r.samples for r in last) / samples, 4) if samples else float("nan")


def single_loss(settings: RunSettings, epochs: int) -> float:
    """The same run in one process: the same global batch, optimizer and schedule, other samples."""
    from ttt.hub import find_bundle
    from ttt.swarm.task import load_task
    from ttt.train.step import TrainingStep

    task = load_task(settings, find_bundle(settings.model.bundle), remember=True)
    trainee = task.trainee()
    optimizer = trainee.optimizer(trainee.groups)
    schedule, step = trainee.make_schedule(optimizer), TrainingStep(task.dalle)
    batches, losses = iter(task.batches(settings.batch.global_batch, seed=99)), []
    for batch in islice(batches, epochs):
        losses.append(step.accumulate(batch, 16))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    last = losses[-max(1, epochs // 10) :]
    return round(sum(last) / len(last), 4)


def _unequal(swarm: LocalSwarm, number: int, *options: str) -> Member:
    micro_batch, limit = UNEQUAL[number % len(UNEQUAL)]
    return swarm.peer(
        f"p{number}", "--micro-batch", micro_batch, "--limit", str(limit), "--seed", str(number), *options
    )


def _all_computing(members: list[Member]) -> float:
    for member in members:
        member.wait(lambda status: status.epochs_done > 0 or status.state == "computing", START_SECONDS)
    return time.monotonic()


def _rounds(members: list[Member], since: int) -> list[RoundRecord]:
    return [r for m in members for r in read_rounds(m.folder) if r.epoch >= since]


def _first_common(members: list[Member]) -> int:
    """The first epoch after everybody was in; joining may cost the others a round."""
    return max(min((r.epoch for r in read_epochs(m.folder)), default=0) for m in members) + 1


def _gap(a: EpochRecord, b: EpochRecord) -> float:
    return round(distance(a.fingerprint, b.fingerprint, a.norm), 7)


def _agree_now(members: list[Member], since: int) -> bool:
    gaps = {epoch: gap for epoch, gap in parameter_gaps(members).items() if epoch > since}
    return bool(gaps) and list(gaps.values())[-1] < 0.01


def _longest_epoch(members: list[Member], since: float) -> float:
    gaps = []
    for member in members:
        times = [r.time for r in read_epochs(member.folder)]
        gaps += [b - a for a, b in pairwise(times) if b > since]
    return round(max(gaps), 1)


def _steps_once(records: list[EpochRecord]) -> bool:
    """No step twice, and none backwards (a peer may skip some, which it then takes over from others)."""
    steps = [r.epoch for r in records]
    return steps == sorted(set(steps))


def _points(folder: Path) -> int:
    import sqlite3

    with sqlite3.connect(folder / "history.sqlite") as history:
        return int(history.execute("select count(*) from points").fetchone()[0])


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="may be given several times; default: all")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--peers", type=int, default=4)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(1)))  # and every member with us
    results: Result = {}
    for name in options.case or CASES:
        with tempfile.TemporaryDirectory(prefix="swarm-") as folder:
            try:
                results[name] = CASES[name](Path(folder), options.epochs, options.peers)
            except AssertionError as error:
                results[name] = {"failed": str(error).splitlines()[0]}
        print(f"{name}:")
        for key, value in results[name].items():
            print(f"  {key:24} {value}", flush=True)
    print(json.dumps({"benchmark": "swarm", "results": results}))


if __name__ == "__main__":
    main()
