"""Network traffic of one peer in one swarm step, for hivemind's compressions. Independent of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from calculator.optimizers import Sizes
from calculator.setup import TrainingSetup

CODE_BOOK = 256 * 4
"""Bytes of the code book sent with every 8-bit tensor."""
RUN_THRESHOLD = 2**16
"""Smallest number of elements that the 2021 run sent in 8 bits."""


@dataclass(frozen=True)
class SwarmTraffic:
    """Bytes that one peer sends in one swarm step, and receives again (butterfly all-reduce over all peers)."""

    gradients: int
    state: int
    """Bytes of the parameters, if the peers average their states in the same step."""
    seconds: float
    """Transfer time of both, at the setup's bandwidth."""
    by_compression: dict[str, tuple[int, float]]
    """Bytes and seconds of both, by compression."""


def traffic(sizes: Sizes, setup: TrainingSetup) -> SwarmTraffic:
    """Every peer sends its parts to their reducers, and the average of its own part to all other peers."""
    share = 2 * (1 - 1 / setup.swarm_peers)
    rows = {}
    for name in ("none", "16-bit", "8-bit", "run"):
        both = 2 * int(share * wire_bytes(sizes, name))
        rows[name] = (both, both * 8 / (setup.bandwidth_mbit * 1e6))
    each = rows[setup.compression][0] // 2
    return SwarmTraffic(each, each, rows[setup.compression][1], rows)


def wire_bytes(sizes: Sizes, compression: str) -> int:
    """Bytes of all tensors once, compressed."""
    total = 0
    for x, repeat in sizes:
        bits = compression
        if compression == "run":
            bits = "8-bit" if x.n >= RUN_THRESHOLD else "16-bit"
        total += repeat * {"none": 4 * x.n, "16-bit": 2 * x.n, "8-bit": x.n + CODE_BOOK}[bits]
    return total
