"""Runs one peer as its order says: starts, pauses, stops and restarts it. Knows no pages and outlives them.

`python -m ttt.swarm.process.supervisor FOLDER` is started by the launcher in a session of its own. The peer gets
another one; should the supervisor be killed, the kernel asks the peer to leave in order.
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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ttt.errors import InvalidInput
from ttt.swarm.process import control_files as files
from ttt.swarm.process.control_files import LOG_FILE, DesiredState, Phase, SupervisorState
from ttt.swarm.process.launcher import start_ticks, tail
from ttt.swarm.process.lifecycle import die_with_parent
from ttt.swarm.process.status import PeerStatus, read_status

POLL_SECONDS = 0.3
BACK_OFF = (2.0, 5.0, 15.0, 60.0, 300.0)
"""Seconds before the first, second ... new start; the last one for all that follow."""
HEALTHY_SECONDS = 300.0
"""A peer that lived so long begins the count anew."""
DRAIN_SECONDS = 240.0
"""A round of averaging (two minutes at most by default) and leaving the network; then the peer is killed."""
MAX_LOG, KEPT_LOG = 4 << 20, 1 << 16
SECRETS = ("TTT_OWNER_PASSWORD", "OAUTH_CLIENT_SECRET", "OAUTH_CLIENT_ID")
"""Of the web app; a peer has no use for them."""


class Supervisor:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = threading.Event()
        kept, last = files.read(SupervisorState, folder) or SupervisorState(), read_status(folder)
        forgotten = (
            last is not None and kept.peer_pid and last.pid == kept.peer_pid
        )  # a supervisor before us was killed
        accumulated = kept.accumulated.plus(last) if forgotten and last is not None else kept.accumulated
        self.orphan = (kept.peer_pid, kept.peer_start_ticks)
        self.now = SupervisorState(
            pid=os.getpid(), start_ticks=start_ticks(os.getpid()) or 0, phase="starting", accumulated=accumulated
        )
        self.peer: subprocess.Popen[bytes] | None = None
        self.seen: PeerStatus | None = None
        self.failures = 0
        self.written = True

    def run(self) -> None:
        """Until the order says stop, the run is complete, or SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        self._set_phase("starting")
        while not self._turn():
            self.asked.wait(POLL_SECONDS)

    def _turn(self) -> bool:
        """Look at order and peer once; True when there is nothing left to do."""
        order, now = files.read(DesiredState, self.folder), time.time()
        self._watch_status()
        self._trim_log()
        if not self.written:
            self._write()
        if (why := self._why_end(order, now)) or order is None:
            self._stop_peer("off", why)
            return True
        if order.desired == "pause" and (order.pause_until is None or now < order.pause_until):
            if self.peer is not None or self.now.phase != "paused":
                self._stop_peer("paused", "paused")
            return False
        if self.peer is None:
            orphan, its_birth = self.orphan
            if orphan and start_ticks(orphan) == its_birth and now - self.now.since < DRAIN_SECONDS:
                return False  # a killed supervisor's peer is still leaving the swarm
            if self.now.next_attempt is None or now >= self.now.next_attempt:
                self._start(order)
        elif self.peer.poll() is not None:
            return self._on_peer_exit(self.peer.returncode)
        elif self.now.phase == "starting" and self.seen is not None:
            self._set_phase("running", self.now.reason)
        return False

    def _why_end(self, order: DesiredState | None, now: float) -> str:
        if order is None:
            return "its order is gone"
        if order.desired == "stop":
            return "stopped by its owner"
        if order.stop_at is not None and now >= order.stop_at:
            return "the time it was given is over"
        if order.exit_with_pid and start_ticks(order.exit_with_pid) is None:
            return "the program it belonged to has ended"
        return "asked to stop by the system" if self.asked.is_set() else ""

    def _start(self, order: DesiredState) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in SECRETS}
        if order.gpu_fraction < 1:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = f"per_process_memory_fraction:{order.gpu_fraction:.4f}"
        supervisor = os.getpid()
        try:
            with (self.folder / LOG_FILE).open("ab") as log:
                self.peer = subprocess.Popen(
                    command(order, self.folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                    start_new_session=True, preexec_fn=lambda: die_with_parent(supervisor, signal.SIGTERM),
                )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            self._try_later(f"the peer could not be started: {error}")
            return
        self.seen = None
        why = self.now.reason if self.failures else ""
        self._set_phase(
            "starting", why, peer_pid=self.peer.pid, peer_start_ticks=start_ticks(self.peer.pid) or 0, next_attempt=None
        )

    def _on_peer_exit(self, code: int) -> bool:
        """The peer has ended unasked: finished, or to be tried again."""
        self._watch_status()
        assert self.peer is not None
        last = self.seen
        if time.time() - self.now.since > HEALTHY_SECONDS:
            self.failures = 0
        _kill_group(self.peer.pid)  # whatever is left of it
        self.peer = None
        self._accumulate()
        if code == 0 and last is not None and last.state == "stopped":
            self._set_phase("finished", last.message, peer_pid=0)
            return True
        self._try_later(self._why_died(code, last))
        return False

    def _try_later(self, why: str) -> None:
        self.failures += 1
        wait = BACK_OFF[min(self.failures, len(BACK_OFF)) - 1]
        self._set_phase("waiting", why, peer_pid=0, next_attempt=time.time() + wait, restarts=self.now.restarts + 1)

    def _why_died(self, code: int, last: PeerStatus | None) -> str:
        if last is not None and last.state == "failed" and last.message:
            return last.message
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            often = ": most often the system had no memory left" if code == -signal.SIGKILL else ""
            return f"the peer was ended by {name}{often}"
        lines = tail(self.folder / LOG_FILE, 30)
        told = [line for line in lines if "Error" in line]
        return (told or lines or [f"the peer ended with code {code} and no word"])[-1][:2000]

    def _stop_peer(self, then: Phase, why: str) -> None:
        """Ask the peer to finish its round and leave; kill all of it only where it does not."""
        if self.peer is not None:
            self._set_phase("stopping", why)
            self.peer.terminate()
            deadline = time.monotonic() + DRAIN_SECONDS
            while self.peer.poll() is None and time.monotonic() < deadline:
                self._watch_status()
                time.sleep(POLL_SECONDS)
            if self.peer.poll() is None:
                why += f"; it did not leave within {DRAIN_SECONDS:.0f} s and was killed"
            _kill_group(self.peer.pid)
            self.peer.wait()
            self._watch_status()
            self.peer = None
            self._accumulate()
        self.failures = 0
        self._set_phase(then, why, peer_pid=0, next_attempt=None)

    def _watch_status(self) -> None:
        """Remember what the peer reports: a process that begins anew counts from 0."""
        status = read_status(self.folder)
        if self.peer is None or status is None or status.pid != self.peer.pid:
            return
        if self.seen is not None and status.started != self.seen.started:
            self._accumulate()  # it replaced itself after a roll-back
            self._set_phase(self.now.phase, self.now.reason)
        self.seen = status

    def _accumulate(self) -> None:
        if self.seen is not None:
            self.now = self.now.model_copy(update={"accumulated": self.now.accumulated.plus(self.seen)})
            self.seen = None

    def _trim_log(self) -> None:
        log = self.folder / LOG_FILE
        with contextlib.suppress(OSError):
            if log.stat().st_size > MAX_LOG:
                kept = log.read_bytes()[-KEPT_LOG:]
                os.truncate(log, 0)  # the peer appends, so it goes on from the new end
                with log.open("ab") as file:
                    file.write(kept)

    def _set_phase(self, phase: Phase, reason: str = "", **fields: object) -> None:
        since = self.now.since if phase == self.now.phase and self.now.since else time.time()
        self.now = self.now.model_copy(update={"phase": phase, "reason": reason[:4000], "since": since, **fields})
        self._write()

    def _write(self) -> None:
        """Where the disk takes it, else at a later turn: the peer must not end with us for that."""
        try:
            files.write(self.folder, self.now)
            self.written = True
        except InvalidInput as error:
            if self.written:
                with contextlib.suppress(OSError):
                    print(error, file=sys.stderr, flush=True)  # noqa: T201
            self.written = False

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked.set()


def command(order: DesiredState, folder: Path) -> list[str]:
    """The peer as a terminal would start it; every secret stays out of it, as everybody can list processes."""
    line = [sys.executable, "-m", "ttt", "peer", "--run", order.run, "--folder", str(folder)]
    line += [word for address in order.initial_peers for word in ("--initial-peer", address)]
    line += ["--name", order.name, "--device", order.device, "--micro-batch", str(order.micro_batch)]
    line += ["--limit", str(order.limit), "--host", order.host, "--port", str(order.port)]
    return [*line, *(["--client"] if order.client else [])]


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether this is the folder's only supervisor."""
    with (folder / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def main(folder: str) -> None:
    with _alone(Path(folder)) as alone:
        if alone:
            Supervisor(Path(folder)).run()


if __name__ == "__main__":
    main(sys.argv[1])
