"""What a peer of a swarm sends and receives in one step. Knows hivemind's compressions; no GPU."""

from __future__ import annotations

from dataclasses import dataclass

from calculator.optimizers import Sizes
from calculator.setup import TrainingSetup

CODE_BOOK = 256 * 4
"""Bytes that go with every tensor of an 8-bit quantisation."""
RUN_THRESHOLD = 2**16
"""Elements from which the 2021 run sent 8 bits."""


@dataclass(frozen=True)
class SwarmTraffic:
    """Bytes of one swarm step of one peer, in each direction (butterfly all-reduce among all peers)."""

    gradients: int
    state: int
    """The parameters, when the peers' states are averaged in the same step."""
    seconds: float
    """Of both, at the set-up's bandwidth."""
    by_compression: dict[str, tuple[int, float]]
    """Bytes and seconds of both for each compression."""


def traffic(sizes: Sizes, setup: TrainingSetup) -> SwarmTraffic:
    """Every peer sends its parts to their reducers, and the averages of its own part to all others."""
    share = 2 * (1 - 1 / setup.swarm_peers)
    rows = {}
    for name in ("none", "16-bit", "8-bit", "run"):
        both = 2 * int(share * wire_bytes(sizes, name))
        rows[name] = (both, both * 8 / (setup.bandwidth_mbit * 1e6))
    one = rows[setup.compression][0] // 2
    return SwarmTraffic(one, one, rows[setup.compression][1], rows)


def wire_bytes(sizes: Sizes, compression: str) -> int:
    """All tensors once, compressed."""
    total = 0
    for x, repeat in sizes:
        bits = compression
        if compression == "run":
            bits = "8-bit" if x.n >= RUN_THRESHOLD else "16-bit"
        total += repeat * {"none": 4 * x.n, "16-bit": 2 * x.n, "8-bit": x.n + CODE_BOOK}[bits]
    return total
