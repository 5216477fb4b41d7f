"""The files by which a running peer or coordinator reports to other programs of its machine.

status.json     PeerStatus, replaced once a second; read it with `read_status`
rounds.jsonl    one RoundRecord a line: the newest few thousand averaging rounds, as measured by this peer
steps.jsonl     one StepRecord a line: the newest few thousand optimizer steps that this peer took part in
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
"""Bytes at which a file of records is cut, and bytes that remain."""
STALE_SECONDS = 15.0
"""An older status comes from a process that hangs or was killed."""

State = Literal[
    "starting", "connecting", "waiting for a donor", "downloading", "computing", "averaging", "assisting", "watching",
    "restoring", "stopping", "stopped", "failed",
]  # fmt: skip
"""assisting: an auxiliary peer, which averages and does not compute; watching: the coordinator."""
RUNNING: tuple[str, ...] = State.__args__[:-2]  # type: ignore[attr-defined]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class PeerStatus(_Record):
    """What a peer is doing. Counts are those of the running process unless stated otherwise."""

    state: State = "starting"
    message: str = Field(default="", max_length=MAX_MESSAGE)
    """The state as a sentence: what is awaited, or what failed."""
    hint: str = Field(default="", max_length=MAX_MESSAGE)
    """What the user can do about a failure, if known."""
    role: Literal["peer", "auxiliary", "coordinator"] = "peer"
    run: str = ""
    """Name of the run."""
    name: str = ""
    """This peer's name on the leaderboard."""
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
    """Samples of the current step so far, of all peers."""
    global_batch: int = 0
    micro_batch: int = 0
    """Samples per forward and backward pass."""
    gpu_bytes: int = 0
    """GPU memory that this process holds; 0 without a GPU."""
    gpu_total: int = 0
    loss: float | None = None
    """Mean over this peer's micro-batches in the last complete step."""
    learning_rate: float | None = None
    peers: int = 0
    """Peers that train, including this one."""
    group_size: int = 0
    """Peers in the last round that averaged gradients, including this one; 0 before the first."""
    results_received: float | None = None
    """Share of the averaged gradients that arrived in the last round, 0 to 1; less than 1 in a partial round."""
    rounds: int = 0
    """Averaging rounds, of gradients and of state."""
    complete_rounds: int = 0
    """Rounds in which every part of every tensor arrived."""
    sent_bytes: int = 0
    """Bytes of tensors sent to other peers, gradients and state, without the overhead of the network."""
    received_bytes: int = 0
    restored: int = 0
    """How often this peer loaded the state again, after NaN, infinity or a missed step."""
    checkpoint: str = ""
    """Newest checkpoint of this folder."""
    addresses: list[str] = Field(default_factory=list, max_length=MAX_ADDRESSES)
    """Multiaddrs at which others reach this peer; empty for a client peer."""
    problems: list[str] = Field(default_factory=list, max_length=MAX_PROBLEMS)
    """The last warnings, newest last, each with what to do."""

    @property
    def running(self) -> bool:
        """True while the process that wrote it is alive and reports."""
        return self.state in RUNNING and time.time() - self.time < STALE_SECONDS and _is_alive(self.pid)


class RoundRecord(_Record):
    """One averaging round, as measured by this peer: its group, and the shares of the data that arrived."""

    kind: Literal["gradients", "state"]
    step: int
    time: float
    seconds: float
    group_size: int
    results_received: float
    """Share of the averages that this peer received, 0 to 1."""
    inputs_received: float
    """Share of the inputs that this peer received for the parts that it averages, 0 to 1; 1 if it averages none."""
    sent_bytes: int
    received_bytes: int
    peers: list[str] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight (samples) of each member of the group in the averages that this peer computed."""
    refused: list[str] = Field(default_factory=list)
    """"PEER: REASON" for every input that was refused; it counts as received, with weight 0."""
    failed: str = ""
    """Why the round produced no average; empty if it did."""

    @property
    def complete(self) -> bool:
        """True if every part of every tensor arrived and was used."""
        return not self.failed and not self.refused and self.results_received == 1 and self.inputs_received == 1


class StepRecord(_Record):
    """One optimizer step."""

    step: int
    """Steps of the run, including this one."""
    time: float
    seconds: float
    samples: int
    """Computed by this peer."""
    loss: float | None
    group_size: int
    results_received: float
    learning_rate: float
    norm: float
    """Euclidean norm of all parameters."""
    fingerprint: list[float]
    """Of the parameters; `training_state.fingerprint_distance` estimates the distance of two peers."""


def write_status(folder: Path, status: PeerStatus) -> None:
    """Replace the status file; a reader sees either the old or the new one."""
    write_atomically(folder / STATUS_FILE, status.model_dump_json().encode())


def read_status(folder: Path) -> PeerStatus | None:
    """Return None if there is no readable status yet."""
    try:
        with (folder / STATUS_FILE).open("rb") as file:
            return PeerStatus.model_validate_json(file.read(MAX_STATUS_BYTES))
    except (OSError, ValidationError):
        return None


def append_record(folder: Path, record: RoundRecord | StepRecord) -> None:
    """Append a record and drop the oldest ones of a long file. A full disk is ignored: it must not stop the peer."""
    path = folder / (ROUNDS_FILE if isinstance(record, RoundRecord) else STEPS_FILE)
    with contextlib.suppress(OSError):
        with path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
            full = file.tell() > MAX_RECORDS
        if full:
            end = path.read_bytes()[-KEPT_RECORDS:]
            write_atomically(path, end[end.index(b"\n") + 1 :])


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
                continue  # a killed process may leave half a line


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
