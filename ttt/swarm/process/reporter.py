"""Writes the status and the records of a running process, and prints what happens for its user."""

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
from ttt.swarm.process.terminal import Output, PlainOutput, timestamped

WRITE_SECONDS = 1.0
MIN_WRITE_SECONDS = 0.1
"""Between two writes, when states change quickly."""


class Reporter:
    """Writes the status once a second and at every change of state.

    It does so on a thread of its own, so that a long step does not make the status look stale.
    """

    def __init__(self, folder: Path, output: Output | None = None, **fields: Any) -> None:
        """output: where the user sees what happens; lines on stderr by default. fields: of the status."""
        self.folder, self.output = folder, output or PlainOutput()
        self.status = PeerStatus(pid=os.getpid(), started=time.time(), time=time.time(), **fields)
        self._lock, self._closed, self._changed = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_regularly, daemon=True, name="status")
        self._write()
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Set fields of the status; texts and lists that are too long for it are cut."""
        for name, limit in (("message", MAX_MESSAGE), ("hint", MAX_MESSAGE), ("addresses", MAX_ADDRESSES)):
            if name in fields:
                fields[name] = fields[name][:limit]
        if "problems" in fields:
            fields["problems"] = [text[:MAX_MESSAGE] for text in fields["problems"][-MAX_PROBLEMS:]]
        with self._lock:
            self.status = self.status.model_copy(update=fields)

    def set_state(self, state: State, message: str = "", hint: str = "") -> None:
        """Change the state and print its message, unless both are as before."""
        changed = (state, message) != (self.status.state, self.status.message)
        self.update(state=state, message=message, hint=hint)
        if changed:
            self._changed.set()
        if changed and message:
            self._print(f"{state}: {message}{f' ({hint})' if hint else ''}")

    def report_problem(self, text: str) -> bool:
        """Record and print a problem that does not end the work; False if it was one of the last three already."""
        if text[:MAX_MESSAGE] in self.status.problems[-3:]:
            return False
        self.update(problems=[*self.status.problems, text])
        self._print(text)
        return True

    def record_rounds(self, records: list[RoundRecord]) -> None:
        """Count averaging rounds, and report those that were not complete."""
        for record in records:
            append_record(self.folder, record)
            complete = self.status.complete_rounds + record.complete
            fields: dict[str, Any] = {"rounds": self.status.rounds + 1, "complete_rounds": complete}
            if record.kind == "gradients":
                fields |= {"group_size": record.group_size, "results_received": record.results_received}
            self.update(**fields)
            if not record.complete:
                self.report_problem(describe_round(record))

    def close(self, state: State, message: str = "", hint: str = "") -> None:
        """Write the last state; nothing is written afterwards."""
        self.set_state(state, message, hint)
        self._closed.set()
        self._changed.set()
        self._thread.join()
        self._write()

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk, or a terminal that was closed
            self.output.line(timestamped(text))

    def _write_regularly(self) -> None:
        while not self._closed.wait(MIN_WRITE_SECONDS):
            self._changed.wait(WRITE_SECONDS - MIN_WRITE_SECONDS)
            self._changed.clear()
            self._write()

    def _write(self) -> None:
        with self._lock:
            self.status = self.status.model_copy(update={"time": time.time()})
            status = self.status
        with contextlib.suppress(OSError):  # a full disk or a closed terminal must not stop the peer
            write_status(self.folder, status)
            self.output.show(status)


def describe_round(record: RoundRecord) -> str:
    """Explain a round that was not complete, and what to do if that is frequent."""
    where = f"step {record.step}, averaging {record.kind}: "
    if record.failed:
        return (
            f"{where}{record.failed}. Rare failures are normal. If they are frequent, the steps of this run are too "
            "short: in the run file, raise global_batch until a step lasts three times matchmaking_time, or raise "
            "averaging_timeout"
        )
    if record.refused:
        return f"{where}unusable data was left out: {'; '.join(record.refused[:3])}"
    share = min(record.results_received, record.inputs_received)
    return (
        f"{where}only {share:.0%} of the data arrived from a group of {record.group_size}: a peer left or was too "
        "slow. This is harmless if it is rare. If it is frequent, lower the micro-batch, or raise chunk_timeout in the "
        "run file above the time of the slowest micro-batch"
    )


def quiet_hivemind() -> None:
    """Silence hivemind's logs, which are for developers: ours report the same. TTT_HIVEMIND_LOG=INFO shows them.

    Call it before hivemind is imported: some of its warnings, and torch's about it, are issued at import.
    """
    level = os.environ.get("TTT_HIVEMIND_LOG", "CRITICAL").upper()
    for name in ("hivemind", "asyncio"):
        logging.getLogger(name).setLevel(level)
    for message in ("`torch.jit.script` is deprecated", "torch.quantize_per_tensor", "Detected call of `lr_scheduler"):
        warnings.filterwarnings("ignore", message=message)
