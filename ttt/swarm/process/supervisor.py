"""Supervises the peer of a folder: starts, pauses, restarts and stops it as `desired.json` says.

`python -m ttt.swarm.process.supervisor FOLDER` is started by the launcher in a session of its own, so that it outlives
a web page or app. The peer gets another session; if the supervisor is killed, the kernel sends SIGTERM to the peer,
which then leaves the swarm in order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from ttt.errors import InvalidInput
from ttt.swarm.config.options import option_arguments
from ttt.swarm.process import control_files
from ttt.swarm.process.control_files import LOG_FILE, DesiredState, Phase, SupervisorState
from ttt.swarm.process.launcher import start_ticks, tail
from ttt.swarm.process.lifecycle import die_with_parent
from ttt.swarm.process.status import PeerStatus, read_status

POLL_SECONDS = 0.3
BACK_OFF = (2.0, 5.0, 15.0, 60.0, 300.0)
"""Seconds before the first, second ... restart; the last one for all that follow."""
HEALTHY_SECONDS = 300.0
"""A peer that ran longer than this restarts the back-off."""
STOP_SECONDS = 240.0
"""Time for a round of averaging (two minutes at most by default) and for leaving; then the peer is killed."""
MAX_LOG, KEPT_LOG = 4 << 20, 1 << 16
SECRETS = ("TTT_OWNER_PASSWORD", "OAUTH_CLIENT_SECRET", "OAUTH_CLIENT_ID")
"""Variables of the web app that the peer does not need, and so does not get."""


class Supervisor:
    """The one supervisor of a folder. `clock` and `back_off` are for tests."""

    def __init__(
        self, folder: Path, *, clock: Callable[[], float] = time.time, back_off: Sequence[float] = BACK_OFF
    ) -> None:
        self.folder, self._clock, self._back_off = folder, clock, back_off
        self.stop_requested = threading.Event()
        before, last = control_files.read(SupervisorState, folder) or SupervisorState(), read_status(folder)
        accumulated = before.accumulated
        if last is not None and before.peer_pid and last.pid == before.peer_pid:
            accumulated = accumulated.plus(last)  # the supervisor before us was killed before it could add these
        self._orphan = (before.peer_pid, before.peer_start_ticks)
        self.state = SupervisorState(
            pid=os.getpid(), start_ticks=start_ticks(os.getpid()) or 0, phase="starting", accumulated=accumulated
        )
        self._peer: subprocess.Popen[bytes] | None = None
        self._last_status: PeerStatus | None = None
        self._failures = 0
        self._written = True

    def run(self) -> None:
        """Supervise until the user stops the peer, the run is complete, or SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        self._set_phase("starting")
        while not self.tick():
            self.stop_requested.wait(POLL_SECONDS)

    def tick(self) -> bool:
        """Compare the desired state with the peer once and act; True if there is nothing left to do."""
        desired, now = control_files.read(DesiredState, self.folder), self._clock()
        self._read_peer_status()
        self._trim_log()
        if not self._written:
            self._write()
        if (reason := self._reason_to_end(desired, now)) or desired is None:
            self._stop_peer("off", reason)
            return True
        if desired.desired == "pause" and (desired.pause_until is None or now < desired.pause_until):
            if self._peer is not None or self.state.phase != "paused":
                self._stop_peer("paused", "paused")
            return False
        if self._peer is None:
            if self._orphan_is_leaving(now):
                return False
            if self.state.next_attempt is None or now >= self.state.next_attempt:
                self._start_peer(desired)
        elif self._peer.poll() is not None:
            return self._on_peer_exit(self._peer.returncode)
        elif self.state.phase == "starting" and self._last_status is not None:
            self._set_phase("running", self.state.reason, self.state.hint)
        return False

    def _reason_to_end(self, desired: DesiredState | None, now: float) -> str:
        if desired is None:
            return f"{control_files.DESIRED_STATE_FILE} is missing"
        if desired.desired == "stop":
            return "stopped by the owner"
        if desired.stop_at is not None and now >= desired.stop_at:
            return "the chosen time to stop has come"
        if desired.exit_with_pid and start_ticks(desired.exit_with_pid) is None:
            return "the program that it belongs to has ended"
        return "stopped by the system (SIGTERM)" if self.stop_requested.is_set() else ""

    def _orphan_is_leaving(self, now: float) -> bool:
        """True while the peer of a killed supervisor still leaves the swarm: two would share one identity."""
        pid, ticks = self._orphan
        return pid > 0 and start_ticks(pid) == ticks and now - self.state.since < STOP_SECONDS

    def _start_peer(self, desired: DesiredState) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in SECRETS}
        if desired.gpu_fraction < 1:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = f"per_process_memory_fraction:{desired.gpu_fraction:.4f}"
        supervisor = os.getpid()
        try:
            with (self.folder / LOG_FILE).open("ab") as log:
                self._peer = subprocess.Popen(
                    peer_command(desired, self.folder, self.state.micro_batch_limit), stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, env=environment, start_new_session=True,
                    preexec_fn=lambda: die_with_parent(supervisor, signal.SIGTERM),
                )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            self._restart_later(f"the peer could not be started: {error}")
            return
        self._last_status = None
        reason, hint = (self.state.reason, self.state.hint) if self._failures else ("", "")
        pid = self._peer.pid
        self._set_phase(
            "starting", reason, hint, peer_pid=pid, peer_start_ticks=start_ticks(pid) or 0, next_attempt=None
        )

    def _on_peer_exit(self, code: int) -> bool:
        """Handle an unrequested exit: True if the peer has finished, else it is restarted later."""
        self._read_peer_status()
        assert self._peer is not None
        last = self._last_status
        if self._clock() - self.state.since > HEALTHY_SECONDS:
            self._failures = 0
        _kill_group(self._peer.pid)  # its DHT and averagers are processes of their own
        self._peer = None
        self._accumulate()
        if code == 0 and last is not None and last.state == "stopped":
            self._set_phase("finished", last.message, peer_pid=0)
            return True
        reason, hint = self._explain_exit(code, last)
        if code == -signal.SIGKILL and last is not None and last.micro_batch > 1:
            # The kernel kills when memory is full. The same micro-batch would end the same way.
            limit = last.micro_batch // 2
            self.state = self.state.model_copy(update={"micro_batch_limit": limit})
            hint = f"It restarts with a micro-batch of {limit} instead of {last.micro_batch}. {hint}"
        self._restart_later(reason, hint)
        return False

    def _restart_later(self, reason: str, hint: str = "") -> None:
        self._failures += 1
        wait = self._back_off[min(self._failures, len(self._back_off)) - 1]
        restarts = self.state.restarts + 1
        self._set_phase("waiting", reason, hint, peer_pid=0, next_attempt=self._clock() + wait, restarts=restarts)

    def _explain_exit(self, code: int, last: PeerStatus | None) -> tuple[str, str]:
        """(reason, hint)."""
        if code == -signal.SIGKILL:
            return (
                "the peer was killed by the system (SIGKILL), most often because it is out of memory",
                "If it happens again, end other programs, or choose a machine with more memory: a peer needs about "
                "2 GB beside the model.",
            )
        if last is not None and last.state == "failed" and last.message:
            return last.message, last.hint
        if code < 0:
            return f"the peer was ended by {_signal_name(-code)}", ""
        lines = tail(self.folder / LOG_FILE, 30)
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or [f"the peer exited with code {code} and without a message"])[-1][:2000], ""

    def _stop_peer(self, phase: Phase, reason: str) -> None:
        """Let the peer finish its round and leave; kill all its processes if that takes too long."""
        if self._peer is not None:
            self._set_phase("stopping", reason)
            self._peer.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            while self._peer.poll() is None and time.monotonic() < deadline:
                self._read_peer_status()
                time.sleep(POLL_SECONDS)
            if self._peer.poll() is None:
                reason += f"; it did not leave within {STOP_SECONDS:.0f} s and was killed"
            _kill_group(self._peer.pid)
            self._peer.wait()
            self._read_peer_status()
            self._peer = None
            self._accumulate()
        self._failures = 0
        self._set_phase(phase, reason, peer_pid=0, next_attempt=None)

    def _read_peer_status(self) -> None:
        """Remember the newest status of the running process: it is needed for the counts after the process ended."""
        status = read_status(self.folder)
        if self._peer is None or status is None or status.pid != self._peer.pid:
            return
        if self._last_status is not None and status.started != self._last_status.started:
            # After a roll-back a peer replaces itself (exec): the same pid counts from 0 again.
            self._accumulate()
            self._set_phase(self.state.phase, self.state.reason, self.state.hint)
        self._last_status = status

    def _accumulate(self) -> None:
        if self._last_status is not None:
            accumulated = self.state.accumulated.plus(self._last_status)
            self.state = self.state.model_copy(update={"accumulated": accumulated})
            self._last_status = None

    def _trim_log(self) -> None:
        log = self.folder / LOG_FILE
        with contextlib.suppress(OSError):
            if log.stat().st_size > MAX_LOG:
                end = log.read_bytes()[-KEPT_LOG:]
                os.truncate(log, 0)  # the peer opened the file to append, so it continues at the new end
                with log.open("ab") as file:
                    file.write(end)

    def _set_phase(self, phase: Phase, reason: str = "", hint: str = "", **fields: object) -> None:
        since = self.state.since if phase == self.state.phase and self.state.since else self._clock()
        update = {"phase": phase, "reason": reason[:4000], "hint": hint[:4000], "since": since, **fields}
        self.state = self.state.model_copy(update=update)
        self._write()

    def _write(self) -> None:
        """Write now or retry at the next tick: a full disk must not bring the peer down."""
        try:
            control_files.write(self.folder, self.state)
            self._written = True
        except InvalidInput as error:
            if self._written:
                with contextlib.suppress(OSError):
                    print(error, file=sys.stderr, flush=True)  # noqa: T201
            self._written = False

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_requested.set()


def peer_command(desired: DesiredState, folder: Path, micro_batch_limit: int = 0) -> list[str]:
    """The command line of the peer. It contains no secret, as every user can list processes.

    micro_batch_limit: upper bound of the micro-batch, whether the user chose one or not; 0: no limit.
    """
    if micro_batch_limit:
        desired = desired.model_copy(
            update={"micro_batch": min(desired.micro_batch or micro_batch_limit, micro_batch_limit)}
        )
    return [sys.executable, "-m", "ttt", "peer", "--folder", str(folder), *option_arguments(desired)]


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _supervisor_lock(folder: Path) -> Iterator[bool]:
    """Yield True if this is the only supervisor of the folder."""
    with (folder / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def main(folder: str) -> None:
    with _supervisor_lock(Path(folder)) as acquired:
        if acquired:
            Supervisor(Path(folder)).run()


if __name__ == "__main__":
    main(sys.argv[1])
