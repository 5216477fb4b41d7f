"""A peer in a terminal and in a pipe: the same facts, drawn or as lines, and nothing that steers the terminal."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from rich.console import Console

from tests.support.swarm import ROOT, LocalSwarm, tiny_run
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.status import PeerStatus
from ttt.swarm.process.terminal import LiveOutput, PlainOutput, open_output, status_panel

ESCAPE = "\x1b"
HOSTILE = "Ada \x1b[2J\x1b]0;owned\x07 [bold red]x[/] \u202etxt\nline two"
PROBLEM = "AllreduceException: received 50.0% of the averaged tensors"


def status(**fields: Any) -> PeerStatus:
    whole = {
        "state": "computing", "message": "training on cpu since step 12", "run": "cats", "name": "Ada", "step": 12,
        "steps_done": 9, "samples": 12_345, "samples_per_second": 3.21, "swarm_samples": 1203, "global_batch": 4096,
        "loss": 6.1234, "peers": 7, "group_size": 7, "results_received": 1.0, "sent_bytes": 10 << 20,
        "received_bytes": 1 << 30, "gpu_bytes": 5 << 30, "gpu_total": 15 << 30, "started": 0.0, "time": 7500.0,
    }  # fmt: skip
    return PeerStatus.model_validate({**whole, **fields})


def drawn(shown: PeerStatus, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(status_panel(shown, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [50, 100])
def test_every_fact_of_the_page_is_in_the_terminal(width: int) -> None:
    text = drawn(status(problems=[PROBLEM]), width)
    for fact in (
        "cats as Ada", "Computing gradients", "training on cpu since step 12", "12,345", "3.21", "6.123", "10 MiB",
        "1.0 GiB", "5.0 GiB of 15.0 GiB", "7 peers", "2 h 5 min", "1,203 of 4,096 samples towards step 13",
        "Last problem", "Ignore this if it is rare",
    ):  # fmt: skip
        assert fact in text, fact
    assert max(len(line) for line in text.splitlines()) <= width


def test_unknown_numbers_are_dashes_and_empty_parts_are_left_out() -> None:
    text = drawn(PeerStatus(state="connecting", run="cats"))
    assert "Connecting to the swarm" in text
    assert re.search(r"Loss\s+–", text) and re.search(r"GPU memory\s+–", text)
    assert "towards step" not in text and "Last problem" not in text


def test_text_from_strangers_cannot_control_the_terminal(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = drawn(status(name=HOSTILE, message=HOSTILE, problems=[HOSTILE]))
    assert ESCAPE not in text and "\x07" not in text and "\u202e" not in text
    assert "[bold red]x[/]" in text
    reporter = Reporter(tmp_path, run="cats")
    reporter.report_problem(HOSTILE)
    reporter.close("failed", HOSTILE)
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 2 and ESCAPE not in said and "\x07" not in said


def test_lines_scroll_above_the_status_panel() -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    with LiveOutput(console).shown() as screen:
        screen.show(status())
        screen.line("12:00:01  something happened")
        screen.show(status(samples=12_346))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("something happened") == 1
    assert text.rindex("something happened") < text.rindex("12,346")
    assert text.rindex("\x1b[?25h") > text.index("\x1b[?25l"), "the cursor stays away"


def test_a_pipe_gets_plain_lines() -> None:
    with open_output(plain=False) as out:  # pytest's stdout is not a terminal
        assert isinstance(out, PlainOutput)


class Terminal:
    """A command at a terminal of its own; what it has written so far."""

    def __init__(self, line: list[str], **variables: str) -> None:
        self._end, other = os.openpty()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        self.process = subprocess.Popen(
            line, cwd=ROOT, stdin=other, stdout=other, stderr=other, env={**environment, **variables},
            start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.written = ""

    @property
    def text(self) -> str:
        """Without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written)

    def read(self) -> bool:
        """What came meanwhile; False when the command has ended."""
        if not select.select([self._end], [], [], 0.2)[0]:
            return True
        try:
            self.written += os.read(self._end, 1 << 16).decode(errors="replace")
        except OSError:
            return False
        return True

    def until(self, true: Callable[[str], object], what: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not true(self.text):
            alive = self.read()
            assert alive or true(self.text), f"{what}: it has ended\n{self.text[-3000:]}"
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n{self.text[-3000:]}"


def test_a_real_peer_at_a_terminal(tmp_path: Path) -> None:
    """It draws its samples and its progress, finishes two steps, and leaves the terminal as it was."""
    with LocalSwarm(tmp_path / "swarm", tiny_run(tmp_path)) as swarm:
        address = swarm.coordinator().status.addresses[0]
        peer = Terminal(
            [sys.executable, "-m", "ttt", "peer", "--run", str(swarm.run_file), "--folder", str(tmp_path / "peer"),
             "--initial-peer", address, "--host", "127.0.0.1", "--name", "Ada", "--until", "2", "--limit", "24"]
        )  # fmt: skip
        try:
            peer.until(lambda text: "Connecting to the swarm" in text, "the first block")
            peer.until(lambda text: re.search(r"\d+ of 64 samples towards step [12]", text), "progress")
            peer.until(lambda text: re.search(r"Samples contributed\D*[1-9]", text), "samples")
            peer.until(lambda text: "step 2 is done, as requested" in text, "the end")
            while peer.read():
                pass
            assert peer.process.wait(60) == 0
        finally:
            peer.process.kill()
            peer.process.wait()
        assert "tiny as Ada" in peer.text
        assert "in micro-batches of 8, activations kept" in peer.text
        assert peer.written.rindex("\x1b[?25h") > peer.written.rindex("\x1b[?25l")
