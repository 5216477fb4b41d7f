"""How large a local swarm's model is, how fast its peers are, and how long to wait for them. Measures nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.swarm import FAST, LocalSwarm, Member, tiny_run
from ttt.swarm.config.run_config import RunSettings

START_SECONDS = 240.0
Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A model, and what its peers compute: (micro-batch, samples per second) of each, in turn."""

    sections: dict[str, dict[str, Any]]
    peers: tuple[tuple[int, float], ...]


_LARGE = {
    "optimizer": {"name": "lamb8bit", "learning_rate": 0.005, "warmup_steps": 5, "bias_correction": True},
    "batch": {"global_batch": 128},
}
SIZES = {
    "tiny": Size({}, ((1, 8.0), (2, 16.0), (4, 24.0), (8, 48.0))),
    # All of the demo's tensors (94 % of the elements travel in 8 bits), a fraction of its layers' work.
    "reduced": Size({"model": {"bundle": "demo", "dalle": {"depth": 5}}, **_LARGE}, ((1, 2), (2, 4), (4, 6), (8, 12))),
    "demo": Size({"model": {"bundle": "demo"}, **_LARGE}, ((1, 1), (2, 2), (4, 4), (8, 8))),
}
"""`tiny` is the tests' model: none of its tensors has the 65,536 elements from which 8 bits are used."""


@dataclass(frozen=True)
class Wanted:
    """What the command line asks of a case."""

    steps: int = 100
    peers: int = 4
    model: str = "tiny"

    @property
    def size(self) -> Size:
        return SIZES[self.model]

    def run(self, folder: Path, **sections: dict[str, Any]) -> RunSettings:
        """A run of this model; `sections` change its settings further."""
        merged = dict(self.size.sections)
        for name, section in sections.items():
            merged[name] = {**merged.get(name, {}), **section}
        return tiny_run(folder, **merged)

    def peer(self, swarm: LocalSwarm, number: int, *options: str) -> Member:
        """The peer of this number: none is as fast as the one before."""
        micro_batch, limit = self.size.peers[number % len(self.size.peers)]
        line = ["--micro-batch", str(micro_batch), "--limit", str(limit), "--seed", str(number)]
        return swarm.peer(f"p{number}", *line, *options)


def averaging(**changes: Any) -> dict[str, Any]:
    """The section of a run on one machine."""
    return {**FAST, **changes}


def all_computing(members: list[Member]) -> float:
    for member in members:
        member.wait(lambda status: status.steps_done > 0 or status.state == "computing", START_SECONDS)
    return time.monotonic()
