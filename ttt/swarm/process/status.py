"""What a running peer or coordinator tells others on its machine, as small files in its folder. Knows no network.

status.json     PeerStatus, replaced once a second; read it with `read_status`
rounds.jsonl    one RoundRecord a line: every averaging round, as it really went; the newest few thousand
steps.jsonl    one StepRecord a line: every optimizer step of the whole swarm that this peer took part in; likewise
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttt.atomic import write_atomically

STATUS_FILE, ROUNDS_FILE, STEPS_FILE = "status.json", "rounds.jsonl", "steps.jsonl"
MAX_STATUS_BYTES = 1 << 18
MAX_MESSAGE, MAX_ADDRESSES, MAX_PROBLEMS = 2000, 64, 20
MAX_RECORDS, KEPT_RECORDS = 16 << 20, 8 << 20
"""Bytes that a file of records may reach, and that stay of it then: a few thousand of the newest."""
STALE_SECONDS = 15.0
"""A status that is older than this comes from a process that hangs or was killed."""

State = Literal[
    "starting", "connecting", "waiting for a donor", "downloading", "computing", "averaging", "assisting", "watching",
    "restoring", "stopping", "stopped", "failed",
]  # fmt: skip
"""helping: an auxiliary peer, which averages and does not compute; watching: the coordinator."""
RUNNING: tuple[str, ...] = State.__args__[:-2]  # type: ignore[attr-defined]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class PeerStatus(_Record):
    """What a peer does just now; all counts are since its process started unless they say otherwise."""

    state: State = "starting"
    message: str = Field(default="", max_length=MAX_MESSAGE)
    """The state in a sentence: what is awaited, what failed and what to do."""
    role: Literal["peer", "auxiliary", "coordinator"] = "peer"
    run: str = ""
    """Name of the run."""
    name: str = ""
    """How this peer calls itself on the leaderboard."""
    peer_id: str = ""
    pid: int = 0
    started: float = 0.0
    """Unix time."""
    time: float = 0.0
    """Unix time of this status."""
    step: int = 0
    """Optimizer steps of the whole swarm."""
    steps_done: int = 0
    """Optimizer steps that this process took part in."""
    samples: int = 0
    """Training samples that this process computed."""
    samples_per_second: float = 0.0
    swarm_samples: int = 0
    """Of the global batch, by all peers together, in the current step."""
    global_batch: int = 0
    micro_batch: int = 0
    """Samples that this peer computes at once."""
    gpu_bytes: int = 0
    """Of the GPU's memory, what this process holds; 0 without one."""
    gpu_total: int = 0
    loss: float | None = None
    """Mean of this peer's micro-batches in the last whole step."""
    learning_rate: float | None = None
    peers: int = 0
    """Peers that train, this one included."""
    group_size: int = 0
    """Peers in the last round of averaging gradients, this one included; 0 before the first."""
    results_received: float | None = None
    """Share of what the last round of gradients should have brought, 0 to 1; less than 1 is a partial round."""
    rounds: int = 0
    """Rounds of averaging, gradients and state."""
    complete_rounds: int = 0
    """Rounds in which every part of every tensor arrived."""
    sent_bytes: int = 0
    """Tensors sent to other peers, gradients and state (not the overhead of the network)."""
    received_bytes: int = 0
    restored: int = 0
    """Times that NaN, infinity or a lost step made it take the state from the swarm or its own backup."""
    checkpoint: str = ""
    """Newest checkpoint of this folder."""
    addresses: list[str] = Field(default_factory=list, max_length=MAX_ADDRESSES)
    """Where others reach this peer (multiaddr); empty for a client."""
    problems: list[str] = Field(default_factory=list, max_length=MAX_PROBLEMS)
    """The last warnings, newest last, each with a hint."""

    @property
    def running(self) -> bool:
        """Whether the process that wrote it still lives."""
        return self.state in RUNNING and time.time() - self.time < STALE_SECONDS and _is_alive(self.pid)


class RoundRecord(_Record):
    """One round of averaging, seen from inside: how large its group was and what share of it arrived."""

    kind: Literal["gradients", "state"]
    step: int
    time: float
    seconds: float
    group_size: int
    results_received: float
    """Share of the averages that arrived, 0 to 1."""
    inputs_received: float
    """Share of the others' parts that reached this peer for averaging, 0 to 1 (1 for a peer that averages nothing)."""
    sent_bytes: int
    received_bytes: int
    peers: list[str] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=dict)
    """What each groupmate's parts weighed (samples) in the averages that this peer made."""
    refused: list[str] = Field(default_factory=list)
    """"PEER: REASON" of everything unusable that came; it counts as received, with weight 0."""
    failed: str = ""
    """Why there was no average at all; empty where there was."""

    @property
    def complete(self) -> bool:
        return not self.failed and not self.refused and self.results_received == 1 and self.inputs_received == 1


class StepRecord(_Record):
    """One optimizer step."""

    step: int
    """The number of steps done, this one included."""
    time: float
    seconds: float
    samples: int
    """By this peer."""
    loss: float | None
    group_size: int
    results_received: float
    learning_rate: float
    norm: float
    """Euclidean norm of all parameters."""
    fingerprint: list[float]
    """Of the parameters; two peers' distance is estimated by `fingerprint.distance`."""


def write_status(folder: Path, status: PeerStatus) -> None:
    """Replace the status file so that a reader sees the old one or the new one."""
    write_atomically(folder / STATUS_FILE, status.model_dump_json().encode())


def read_status(folder: Path) -> PeerStatus | None:
    """None where there is no readable status yet."""
    try:
        with (folder / STATUS_FILE).open("rb") as file:
            return PeerStatus.model_validate_json(file.read(MAX_STATUS_BYTES))
    except (OSError, ValidationError):
        return None


def append_record(folder: Path, record: RoundRecord | StepRecord) -> None:
    """Where the disk takes it; a full one is no reason to leave the swarm. The oldest go where there are too many."""
    path = folder / (ROUNDS_FILE if isinstance(record, RoundRecord) else STEPS_FILE)
    with contextlib.suppress(OSError):
        with path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
            full = file.tell() > MAX_RECORDS
        if full:
            kept = path.read_bytes()[-KEPT_RECORDS:]
            write_atomically(path, kept[kept.index(b"\n") + 1 :])


def read_rounds(folder: Path) -> list[RoundRecord]:
    return [RoundRecord.model_validate(line) for line in _lines(folder / ROUNDS_FILE)]


def read_steps(folder: Path) -> list[StepRecord]:
    return [StepRecord.model_validate(line) for line in _lines(folder / STEPS_FILE)]


def _lines(path: Path) -> Iterator[dict[str, object]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
