"""What the members of a local swarm left behind, as numbers: agreement, rounds, losses, steps. Starts nothing."""

from __future__ import annotations

import os
import sqlite3
from itertools import pairwise
from pathlib import Path

from tests.support.swarm import Member, processes_of
from ttt.swarm.averaging.training_state import fingerprint_distance
from ttt.swarm.process.status import RoundRecord, StepRecord, read_rounds, read_steps


def parameter_gaps(members: list[Member]) -> dict[int, float]:
    """Step -> largest distance between two members' parameters, by their fingerprints."""
    records = [{r.step: r for r in read_steps(member.folder)} for member in members]
    shared = sorted(set.intersection(*(set(one) for one in records)))
    return {e: max(_gap(records[0][e], one[e]) for one in records[1:]) for e in shared} if len(records) > 1 else {}


def last_gap(members: list[Member]) -> float | None:
    gaps = parameter_gaps(members) if len(members) > 1 else {}
    return list(gaps.values())[-1] if gaps else None


def agree_since(members: list[Member], step: int, limit: float = 0.01) -> bool:
    """Whether all hold the same parameters after the newest step later than `step` that all made."""
    gaps = {e: gap for e, gap in parameter_gaps(members).items() if e > step}
    return bool(gaps) and list(gaps.values())[-1] < limit


def swarm_loss(members: list[Member], steps: int) -> float:
    """Mean over the last tenth of the steps, by samples."""
    last = [r for m in members for r in read_steps(m.folder) if r.step > steps * 0.9 and r.loss is not None]
    samples = sum(r.samples for r in last)
    return round(sum((r.loss or 0.0) * r.samples for r in last) / samples, 4) if samples else float("nan")


def rounds_since(members: list[Member], step: int) -> list[RoundRecord]:
    return [r for m in members for r in read_rounds(m.folder) if r.step >= step]


def first_common(members: list[Member]) -> int:
    """The first step after everybody was in; joining may cost the others a round."""
    return max(min((r.step for r in read_steps(m.folder)), default=0) for m in members) + 1


def longest_step(members: list[Member], since: float) -> float:
    """Seconds between two steps, of those that ended after `since` (Unix time)."""
    gaps = []
    for member in members:
        times = [r.time for r in read_steps(member.folder)]
        gaps += [b - a for a, b in pairwise(times) if b > since]
    return round(max(gaps), 1)


def steps_once(member: Member) -> bool:
    """No step twice, and none backwards (a peer may skip some, which it then takes over from others)."""
    steps = [r.step for r in read_steps(member.folder)]
    return steps == sorted(set(steps))


def history_points(folder: Path) -> int:
    with sqlite3.connect(folder / "history.sqlite") as history:
        return int(history.execute("select count(*) from points").fetchone()[0])


def usage(member: Member) -> dict[str, int]:
    """MiB (shared pages divided among those who share them), those of them that belong to no file (libraries weigh more
    once another program that shared them has ended), open files and processes of a member's session."""
    memory = own = files = 0
    processes = processes_of(member.process.pid)
    for pid in processes:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            pss = (line.split() for line in lines if line.startswith("Pss"))
            sizes = {name.rstrip(":"): int(size) for name, size, _ in pss}
            memory += sizes["Pss"]
            own += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
            files += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return {"mib": memory >> 10, "own_mib": own >> 10, "files": files, "processes": len(processes)}


def share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _gap(a: StepRecord, b: StepRecord) -> float:
    return round(fingerprint_distance(a.fingerprint, b.fingerprint, a.norm), 7)
