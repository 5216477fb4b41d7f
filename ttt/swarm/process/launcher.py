"""Starts, finds, pauses and stops the peer of a folder from any process of this machine. Knows no pages.

The peer belongs to a supervisor in a session of its own: a page that closes or a web app that dies leaves both alone,
and the next launcher of the same folder finds them by pid and start time.
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
from ttt.swarm.process import control_files as files
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
BIRTH_SECONDS = 30.0
"""How long a supervisor may take to write its first word."""


@dataclass(frozen=True)
class PeerView:
    """All that can be said of a folder's peer."""

    phase: Phase = "off"
    reason: str = ""
    status: PeerStatus | None = None
    """Of the living process, or of the last one."""
    desired_state: DesiredState | None = None
    contribution: Contribution = field(default_factory=Contribution)
    """By all processes of this folder."""
    restarts: int = 0
    next_attempt: float | None = None
    peer_pid: int = 0
    log: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether Stop has something to stop."""
        return self.phase not in ("off", "finished")


class Launcher:
    """The peer of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []

    def view(self) -> PeerView:
        """Reads four small files; never waits."""
        for child in self._children:
            child.poll()  # no zombies
        supervision, desired = files.read(SupervisorState, self.folder), files.read(DesiredState, self.folder)
        status = read_status(self.folder)
        now = supervision or SupervisorState()
        alive = self._supervisor(supervision) is not None
        unbanked = status is not None and status.pid == now.peer_pid and now.peer_pid > 0
        return PeerView(
            phase=now.phase if alive or now.phase in ("off", "finished") else "off",
            reason=now.reason if alive or now.phase in ("off", "finished") else _abandoned(now),
            status=status,
            desired_state=desired,
            contribution=now.accumulated.plus(status) if unbanked and status is not None else now.accumulated,
            restarts=now.restarts,
            next_attempt=now.next_attempt if alive else None,
            peer_pid=now.peer_pid if alive else 0,
            log=tuple(tail(self.folder / LOG_FILE, LOG_LINES)),
        )

    def start(self, order: DesiredState) -> None:
        """Begin under this order. SwarmError where that is impossible."""
        if sys.platform != "linux":
            raise SwarmError("a peer needs Linux; on other systems use WSL 2, a container, or a Space")
        if order.stop_at is not None and order.stop_at <= time.time():
            raise InvalidInput("the time to stop has passed already; choose a later one, or none")
        with self._lock:
            view = self.view()
            if view.phase == "stopping":
                raise InvalidInput("the peer is just leaving; start it again when it is off")
            if view.active:
                raise InvalidInput("the peer runs already; stop it first to start it with other settings")
            if not self.wait_until_off(BIRTH_SECONDS):
                raise SwarmError("the last supervisor does not end; look at its log, or stop it by hand")
            files.write(self.folder, order.model_copy(update={"desired": "run", "pause_until": None}))
            self._begin_supervisor()

    def pause(self, hours: float | None = None) -> None:
        """Leave the swarm for some hours, or until `resume`."""
        until = None
        if hours is not None:
            if not 0 < hours <= MAX_HOURS:
                raise InvalidInput(f"a pause lasts more than 0 and at most {MAX_HOURS:.0f} hours, got {hours:g}")
            until = time.time() + 3600 * hours
        self._wish(desired="pause", pause_until=until)

    def resume(self) -> None:
        self._wish(desired="run", pause_until=None)

    def stop(self) -> None:
        """Finish the round of averaging and leave. Nothing happens where no peer runs."""
        if self.view().active:
            self._wish(desired="stop", pause_until=None)

    def wait_until_off(self, seconds: float) -> bool:
        """Whether the peer and its supervisor have ended in time."""
        deadline = time.monotonic() + seconds
        while self._supervisor(files.read(SupervisorState, self.folder)) is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _wish(self, **fields: object) -> None:
        order = files.read(DesiredState, self.folder)
        if order is None or not self.view().active:
            raise InvalidInput("no peer runs here; start it first")
        files.write(self.folder, order.model_copy(update=fields))

    def _supervisor(self, supervision: SupervisorState | None) -> int | None:
        """Pid of the living supervisor."""
        if supervision is None or not supervision.pid:
            return None
        return supervision.pid if start_ticks(supervision.pid) == supervision.start_ticks else None

    def _begin_supervisor(self) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        with (self.folder / SUPERVISOR_LOG).open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "ttt.swarm.process.supervisor", str(self.folder)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        self._children.append(child)
        deadline = time.monotonic() + BIRTH_SECONDS
        while time.monotonic() < deadline:
            if self._supervisor(files.read(SupervisorState, self.folder)) is not None:
                return
            if child.poll() is not None:
                break
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        said = " ".join(tail(self.folder / SUPERVISOR_LOG, 1))
        raise SwarmError(f"the peer's supervisor did not start; its log is {self.folder / SUPERVISOR_LOG}. {said}")


def start_ticks(pid: int) -> int | None:
    """When a living process was started, in clock ticks since the machine's start; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a file of any size."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _abandoned(now: SupervisorState) -> str:
    return f"its supervisor was killed while the peer was {now.phase}; the peer left the swarm then"
