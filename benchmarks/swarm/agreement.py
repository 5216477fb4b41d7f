"""Do unequal peers that train together hold the same parameters, and learn what one process would?"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.swarm.measures import first_common, parameter_gaps, rounds_since, share, swarm_loss
from benchmarks.swarm.setup import START_SECONDS, Result, Wanted, all_computing, averaging
from tests.support.swarm import LocalSwarm, Member
from ttt.swarm.config.run_config import RunSettings

MICRO_BATCH = 16
"""Of the single process; the gradients are those of the whole batch."""


def agree(folder: Path, wanted: Wanted, **changes: Any) -> Result:
    """Unequal peers: the same parameters after every step, clean rounds, the loss of a single process."""
    settings = wanted.run(folder, averaging=averaging(**{"gradients": "8-bit", **changes}))
    with LocalSwarm(folder / "swarm", settings) as swarm:
        swarm.coordinator(seconds=START_SECONDS)
        members = [wanted.peer(swarm, number, "--until", str(wanted.steps)) for number in range(wanted.peers)]
        began = all_computing(members)
        for member in members:
            member.wait(lambda status: status.state == "stopped", 120.0 * wanted.steps)
        seconds = time.monotonic() - began
        result = compared(members, wanted)
    print(f"the swarm is done: {result}; now one process alone", file=sys.stderr, flush=True)
    losses = single_losses(settings, wanted.steps)
    last = losses[-max(1, wanted.steps // 10) :]
    return {
        "model": wanted.model, "global_batch": settings.batch.global_batch,
        "seconds_per_step": round(seconds / wanted.steps, 2), **result,
        "loss_single_process": round(statistics.mean(last), 4),
        "loss_noise": round(statistics.pstdev(last), 4) if len(last) > 1 else None,
    }  # fmt: skip


def delayed(folder: Path, wanted: Wanted) -> Result:
    """The same while gradients travel in the background."""
    return agree(folder, wanted, delayed=True)


def blockwise(folder: Path, wanted: Wanted) -> Result:
    """The same with an 8-bit code for each block of a tensor."""
    return agree(folder, wanted, gradients="blockwise-8-bit")


def powersgd(folder: Path, wanted: Wanted) -> Result:
    """The same with gradients as factors of rank 4."""
    return agree(folder, wanted, power_sgd_rank=4)


def compared(members: list[Member], wanted: Wanted) -> Result:
    """Parameters after every step that all made, rounds since all were in, and the loss at the end."""
    gaps = parameter_gaps(members)
    rounds = rounds_since(members, first_common(members))
    return {
        "steps": wanted.steps, "peers": len(members), "steps_compared": len(gaps),
        "largest_gap": max(gaps.values(), default=None),
        "median_gap": statistics.median(gaps.values()) if gaps else None,
        "rounds": len(rounds), "clean": share(sum(r.complete for r in rounds), len(rounds)),
        "whole_groups": share(sum(r.group_size == len(members) for r in rounds), len(rounds)),
        "failures": sorted({r.failed or "; ".join(r.refused) or "parts missing" for r in rounds if not r.complete})[:5],
        "loss": swarm_loss(members, wanted.steps),
    }  # fmt: skip


def single_losses(settings: RunSettings, steps: int) -> list[float]:
    """Of each step of the same run in one process: the same global batch, optimizer and schedule, other samples."""
    from ttt.bundle import find_bundle
    from ttt.swarm.training.run_model import load_run_model
    from ttt.train.step import TrainingStep

    model = load_run_model(settings, find_bundle(settings.model.bundle), keep_activations=True)
    spec = model.optimizer_spec()
    optimizer = spec.build_optimizer(spec.groups)
    schedule, step = spec.make_schedule(optimizer), TrainingStep(model.dalle)
    losses = []
    for batch in islice(iter(model.batches(settings.batch.global_batch, seed=99)), steps):
        losses.append(step.accumulate(batch, MICRO_BATCH))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return losses
