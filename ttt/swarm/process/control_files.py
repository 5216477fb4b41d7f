"""What a volunteer asks of a peer, and what became of it, as two small files in its folder. Knows no processes.

desired.json        DesiredState, written by whoever presses the buttons
supervisor.json  SupervisorState, written by the supervisor (`supervisor.py`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttt.atomic import write_atomically
from ttt.errors import InvalidInput
from ttt.swarm.process.status import PeerStatus

DESIRED_STATE_FILE, SUPERVISOR_STATE_FILE = "desired.json", "supervisor.json"
LOG_FILE, SUPERVISOR_LOG = "log", "supervisor.log"
MAX_BYTES = 1 << 16
MAX_HOURS = 24 * 365.0

Desired = Literal["run", "pause", "stop"]
Phase = Literal["off", "starting", "running", "stopping", "paused", "waiting", "finished"]
"""waiting: for the next try after the peer died; finished: the run, or what was asked for, is complete."""


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class DesiredState(_File):
    """What the peer is to do. It holds no secret: tokens reach a peer by its environment alone."""

    run: str = Field(min_length=1, max_length=1000)
    """Run file, or its URL."""
    initial_peers: list[str] = Field(min_length=1, max_length=16)
    """Addresses to join at."""
    name: str = Field(default="", max_length=100)
    """On the leaderboard."""
    device: str = Field(default="auto", max_length=20)
    micro_batch: int = Field(default=0, ge=0, le=4096)
    """0: what fits."""
    limit: float = Field(default=0.0, ge=0, le=1e6)
    """Samples per second not to exceed; 0: none."""
    client: bool = False
    """Others cannot reach this machine."""
    host: str = Field(default="0.0.0.0", max_length=100)
    port: int = Field(default=0, ge=0, le=65_535)
    gpu_fraction: float = Field(default=1.0, gt=0, le=1)
    """Of the GPU's memory that the peer may take."""
    stop_at: float | None = None
    """Unix time."""
    desired: Desired = "run"
    pause_until: float | None = None
    """Unix time; None: until told to go on."""
    exit_with_pid: int = Field(default=0, ge=0)
    """Stop when the process of this id has ended; 0: outlive everything."""


class Contribution(_File):
    """What peers of this folder did, all their processes together."""

    samples: int = 0
    steps: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0

    def plus(self, status: PeerStatus) -> Contribution:
        return Contribution(
            samples=self.samples + status.samples,
            steps=self.steps + status.steps_done,
            sent_bytes=self.sent_bytes + status.sent_bytes,
            received_bytes=self.received_bytes + status.received_bytes,
            seconds=self.seconds + max(0.0, status.time - status.started),
        )


class SupervisorState(_File):
    """What the supervisor does just now."""

    pid: int = 0
    start_ticks: int = 0
    """When the kernel started it, in clock ticks since the machine's start: a pid alone may be another's by now."""
    phase: Phase = "off"
    reason: str = Field(default="", max_length=4000)
    """Why the peer is off, waits or was started again."""
    peer_pid: int = 0
    """Process id of the peer, which leads a session of its own; 0 while there is none."""
    peer_start_ticks: int = 0
    """When the kernel started it."""
    since: float = 0.0
    """Unix time of the phase's beginning."""
    next_attempt: float | None = None
    """Unix time at which it is started again."""
    restarts: int = 0
    """After failures, since Start."""
    accumulated: Contribution = Contribution()
    """By the processes that have ended."""


Kept = TypeVar("Kept", DesiredState, SupervisorState)


def read(kind: type[Kept], folder: Path) -> Kept | None:
    """None where there is no readable file."""
    try:
        with (folder / _name(kind)).open("rb") as file:
            return kind.model_validate_json(file.read(MAX_BYTES))
    except (OSError, ValidationError):
        return None


def write(folder: Path, kept: DesiredState | SupervisorState) -> None:
    """InvalidInput where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _name(type(kept)), kept.model_dump_json().encode())
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be written: {error}; choose another folder for the peer") from None


def _name(kind: type[DesiredState] | type[SupervisorState]) -> str:
    return DESIRED_STATE_FILE if kind is DesiredState else SUPERVISOR_STATE_FILE
