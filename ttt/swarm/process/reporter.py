"""Keeps the status file and the records of a running process up to date, and a person informed. Knows no network."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from ttt.swarm.process.status import (
    MAX_ADDRESSES,
    MAX_MESSAGE,
    MAX_PROBLEMS,
    PeerStatus,
    RoundRecord,
    State,
    append_record,
    write_status,
)
from ttt.swarm.process.terminal import Lines, Outlet, stamped

EVERY_SECONDS = 1.0
SOONEST_SECONDS = 0.1
"""Between two writings, when one state follows another quickly."""


class Reporter:
    """Writes the status once a second and at every new state, from a thread of its own, so that a hanging process is
    seen to hang."""

    def __init__(self, folder: Path, outlet: Outlet | None = None, **about: Any) -> None:
        """outlet: where a person is told; lines on stderr by default. about: fields of the status."""
        self.folder, self.outlet = folder, outlet or Lines()
        self.status = PeerStatus(pid=os.getpid(), started=time.time(), time=time.time(), **about)
        self._lock, self._closed, self._news = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_regularly, daemon=True, name="status")
        self._write()
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Other values; a text or a list that is too long for a status is cut."""
        for name, most in (("message", MAX_MESSAGE), ("addresses", MAX_ADDRESSES)):
            if name in fields:
                fields[name] = fields[name][:most]
        if "problems" in fields:
            fields["problems"] = [text[:MAX_MESSAGE] for text in fields["problems"][-MAX_PROBLEMS:]]
        with self._lock:
            self.status = self.status.model_copy(update=fields)

    def set_state(self, state: State, message: str = "") -> None:
        """A new state, and the sentence that goes with it for a person, once."""
        changed = (state, message) != (self.status.state, self.status.message)
        self.update(state=state, message=message)
        if changed:
            self._news.set()
        if changed and message:
            self._line(f"{state}: {message}")

    def report_problem(self, text: str) -> bool:
        """Something that went wrong and did not end the work; whether it is news."""
        if text[:MAX_MESSAGE] in self.status.problems[-3:]:
            return False
        self.update(problems=[*self.status.problems, text])
        self._line(text)
        return True

    def _line(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk, a terminal that is gone
            self.outlet.line(stamped(text))

    def record_rounds(self, records: list[RoundRecord]) -> None:
        """Count rounds of averaging, and explain those that were not clean."""
        for record in records:
            append_record(self.folder, record)
            clean = self.status.complete_rounds + record.complete
            done: dict[str, Any] = {"rounds": self.status.rounds + 1, "complete_rounds": clean}
            if record.kind == "gradients":
                done |= {"group_size": record.group_size, "results_received": record.results_received}
            self.update(**done)
            if not record.complete:
                self.report_problem(explain(record))

    def close(self, state: State, message: str = "") -> None:
        """The last word; nothing is written afterwards."""
        self.set_state(state, message)
        self._closed.set()
        self._news.set()
        self._thread.join()
        self._write()

    def _write_regularly(self) -> None:
        while not self._closed.wait(SOONEST_SECONDS):
            self._news.wait(EVERY_SECONDS - SOONEST_SECONDS)
            self._news.clear()
            self._write()

    def _write(self) -> None:
        with self._lock:
            self.status = self.status.model_copy(update={"time": time.time()})
            status = self.status
        with contextlib.suppress(OSError):  # a full disk is no reason to leave the swarm, nor a closed terminal
            write_status(self.folder, status)
            self.outlet.show(status)


def explain(record: RoundRecord) -> str:
    """What a round that was not clean means, and what to do if it happens often."""
    where = f"step {record.step}, averaging {record.kind}: "
    if record.failed:
        return (
            f"{where}{record.failed}. Often? Raise matchmaking_time or averaging_timeout in the run file, or the "
            "global batch, so that steps last at least three matchmaking times"
        )
    if record.refused:
        return f"{where}unusable data was left out: {'; '.join(record.refused[:3])}"
    share = min(record.results_received, record.inputs_received)
    return (
        f"{where}only {share:.0%} of the data arrived from a group of {record.group_size}: a peer left or was too "
        "slow. Often? Raise chunk_timeout in the run file above the time of the slowest micro-batch"
    )


def quiet_hivemind() -> None:
    """hivemind's logs are for developers; ours say the same to people. TTT_HIVEMIND_LOG=INFO brings them back.

    Best called before hivemind is imported: some of its warnings, and torch's about it, come with the import.
    """
    level = os.environ.get("TTT_HIVEMIND_LOG", "CRITICAL").upper()
    for name in ("hivemind", "asyncio"):
        logging.getLogger(name).setLevel(level)
    for about in ("`torch.jit.script` is deprecated", "torch.quantize_per_tensor", "Detected call of `lr_scheduler"):
        warnings.filterwarnings("ignore", message=about)
