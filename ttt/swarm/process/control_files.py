"""The two files that control the peer of a folder: what its user wants, and what its supervisor does.

desired.json     DesiredState, written by a `Launcher` (page, script, command line)
supervisor.json  SupervisorState, written by the supervisor (`supervisor.py`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ttt.atomic import write_atomically
from ttt.errors import InvalidInput
from ttt.swarm.config.options import JoinOptions
from ttt.swarm.process.status import PeerStatus

DESIRED_STATE_FILE, SUPERVISOR_STATE_FILE = "desired.json", "supervisor.json"
LOG_FILE, SUPERVISOR_LOG = "log", "supervisor.log"
MAX_BYTES = 1 << 16
MAX_HOURS = 24 * 365.0

Desired = Literal["run", "pause", "stop"]
Phase = Literal["off", "starting", "running", "stopping", "paused", "waiting", "finished"]
"""waiting: the peer failed and will be restarted; finished: the run, or the peer's share of it, is complete."""


class DesiredState(JoinOptions):
    """What the peer should do, and with which options. It holds no secret: tokens reach a peer by its environment."""

    model_config = ConfigDict(extra="ignore")

    gpu_fraction: float = Field(default=1.0, gt=0, le=1, description="Share of the GPU's memory that the peer may use.")
    stop_at: float | None = Field(default=None, description="Unix time at which the peer stops.")
    desired: Desired = "run"
    pause_until: float | None = Field(default=None, description="Unix time; None: until resumed.")
    exit_with_pid: int = Field(
        default=0, ge=0, description="Stop when the process with this id has ended; 0: outlive every process."
    )


class Contribution(BaseModel):
    """Work and traffic of all processes that ran in this folder."""

    samples: int = 0
    steps: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0

    def plus(self, status: PeerStatus) -> Contribution:
        """Add the counts of one process, which start at 0 with it."""
        return Contribution(
            samples=self.samples + status.samples,
            steps=self.steps + status.steps_done,
            sent_bytes=self.sent_bytes + status.sent_bytes,
            received_bytes=self.received_bytes + status.received_bytes,
            seconds=self.seconds + max(0.0, status.time - status.started),
        )


class SupervisorState(BaseModel):
    """What the supervisor is doing."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    pid: int = 0
    start_ticks: int = 0
    """When the kernel started it, in clock ticks since boot: the pid alone may belong to another process by now."""
    phase: Phase = "off"
    reason: str = Field(default="", max_length=4000)
    """Why the peer is off, waits or was restarted."""
    hint: str = Field(default="", max_length=4000)
    """What the user can do about it, if known."""
    peer_pid: int = 0
    """Process id of the peer, which leads a session of its own; 0 without a peer."""
    peer_start_ticks: int = 0
    since: float = 0.0
    """Unix time at which the phase began."""
    next_attempt: float | None = None
    """Unix time of the next restart."""
    restarts: int = 0
    """Restarts after failures since the user pressed Start."""
    micro_batch_limit: int = 0
    """Largest micro-batch for the next process, after one ran out of memory; 0: no limit."""
    accumulated: Contribution = Contribution()
    """Of the processes that have ended."""


File = TypeVar("File", DesiredState, SupervisorState)


def read(kind: type[File], folder: Path) -> File | None:
    """Return None if there is no readable file."""
    try:
        with (folder / _name(kind)).open("rb") as file:
            return kind.model_validate_json(file.read(MAX_BYTES))
    except (OSError, ValidationError):
        return None


def write(folder: Path, content: DesiredState | SupervisorState) -> None:
    """Replace the file of this kind. Raises InvalidInput if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _name(type(content)), content.model_dump_json().encode())
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be written: {error}; choose another folder for the peer") from None


def _name(kind: type[DesiredState] | type[SupervisorState]) -> str:
    return DESIRED_STATE_FILE if kind is DesiredState else SUPERVISOR_STATE_FILE
