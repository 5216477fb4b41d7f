"""Starts, observes, pauses and stops the peer of a folder, from any process of this machine.

The peer belongs to a supervisor in a session of its own. A page that is closed or a web app that crashes leaves both
alone, and the next launcher of the same folder finds them by process id and start time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ttt.errors import InvalidInput, SwarmError
from ttt.swarm.process import control_files
from ttt.swarm.process.control_files import (
    LOG_FILE,
    MAX_HOURS,
    SUPERVISOR_LOG,
    Contribution,
    DesiredState,
    Phase,
    SupervisorState,
)
from ttt.swarm.process.status import PeerStatus, read_status

ROOT = Path(__file__).resolve().parents[3]
LOG_LINES, TAIL_BYTES = 40, 1 << 16
START_SECONDS = 30.0
"""Time that a supervisor may take to write its state for the first time."""


@dataclass(frozen=True)
class PeerView:
    """Everything known about the peer of a folder at one time."""

    phase: Phase = "off"
    reason: str = ""
    hint: str = ""
    """What the user can do about `reason`, if known."""
    status: PeerStatus | None = None
    """Of the running process, or of the last one."""
    desired_state: DesiredState | None = None
    contribution: Contribution = field(default_factory=Contribution)
    """Of all processes of this folder."""
    restarts: int = 0
    next_attempt: float | None = None
    """Unix time of the next restart."""
    peer_pid: int = 0
    """0 without a running peer."""
    log: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """True if there is something to stop."""
        return self.phase not in ("off", "finished")


class Launcher:
    """Controls the peer of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []

    def view(self) -> PeerView:
        """Read the state of the peer from four small files, without waiting."""
        for child in self._children:
            child.poll()  # reaps zombies
        state = control_files.read(SupervisorState, self.folder) or SupervisorState()
        desired, status = control_files.read(DesiredState, self.folder), read_status(self.folder)
        alive = _is_alive(state)
        known = alive or state.phase in ("off", "finished")
        accumulated = state.accumulated
        if status is not None and status.pid == state.peer_pid and state.peer_pid > 0:
            accumulated = accumulated.plus(status)  # of a process whose end the supervisor has not seen yet
        return PeerView(
            phase=state.phase if known else "off",
            reason=state.reason if known else _abandoned(state),
            hint=state.hint if known else "",
            status=status,
            desired_state=desired,
            contribution=accumulated,
            restarts=state.restarts,
            next_attempt=state.next_attempt if alive else None,
            peer_pid=state.peer_pid if alive else 0,
            log=tuple(tail(self.folder / LOG_FILE, LOG_LINES)),
        )

    def start(self, desired: DesiredState) -> None:
        """Start a supervisor for this desired state. Raises SwarmError or InvalidInput if that is not possible."""
        if sys.platform != "linux":
            raise SwarmError("a peer needs Linux; on other systems use WSL 2, a container, or a Space")
        if desired.stop_at is not None and desired.stop_at <= time.time():
            raise InvalidInput("the time to stop has passed already; choose a later one, or none")
        with self._lock:
            view = self.view()
            if view.phase == "stopping":
                raise InvalidInput("the peer is still leaving the swarm; start it again when it is off")
            if view.active:
                raise InvalidInput("the peer runs already; stop it first to start it with other settings")
            if not self.wait_until_off(START_SECONDS):
                raise SwarmError(
                    f"the previous supervisor is still shutting down; try again later, or see its log: "
                    f"{self.folder / SUPERVISOR_LOG}"
                )
            control_files.write(self.folder, desired.model_copy(update={"desired": "run", "pause_until": None}))
            self._start_supervisor()

    def pause(self, hours: float | None = None) -> None:
        """Leave the swarm for some hours, or until `resume`."""
        until = None
        if hours is not None:
            if not 0 < hours <= MAX_HOURS:
                raise InvalidInput(f"a pause lasts more than 0 and at most {MAX_HOURS:.0f} hours, got {hours:g}")
            until = time.time() + 3600 * hours
        self._update(desired="pause", pause_until=until)

    def resume(self) -> None:
        """Join the swarm again after `pause`."""
        self._update(desired="run", pause_until=None)

    def stop(self) -> None:
        """Finish the averaging round and leave the swarm; does nothing without a running peer."""
        if self.view().active:
            self._update(desired="stop", pause_until=None)

    def wait_until_off(self, seconds: float) -> bool:
        """Return True once peer and supervisor have exited, False after `seconds`."""
        deadline = time.monotonic() + seconds
        while _is_alive(control_files.read(SupervisorState, self.folder)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _update(self, **fields: object) -> None:
        desired = control_files.read(DesiredState, self.folder)
        if desired is None or not self.view().active:
            raise InvalidInput("no peer is running; start it first")
        control_files.write(self.folder, desired.model_copy(update=fields))

    def _start_supervisor(self) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        with (self.folder / SUPERVISOR_LOG).open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "ttt.swarm.process.supervisor", str(self.folder)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        self._children.append(child)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if _is_alive(control_files.read(SupervisorState, self.folder)):
                return
            if child.poll() is not None:
                break
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        output = " ".join(tail(self.folder / SUPERVISOR_LOG, 1))
        raise SwarmError(f"the peer's supervisor did not start; its log is {self.folder / SUPERVISOR_LOG}. {output}")


def start_ticks(pid: int) -> int | None:
    """When a running process was started, in clock ticks since boot; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file of any size that are not empty; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _is_alive(supervisor: SupervisorState | None) -> bool:
    return supervisor is not None and supervisor.pid > 0 and start_ticks(supervisor.pid) == supervisor.start_ticks


def _abandoned(state: SupervisorState) -> str:
    return f"the supervisor was killed while the peer was {state.phase}; the peer then left the swarm"
