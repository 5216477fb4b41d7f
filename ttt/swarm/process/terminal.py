"""A peer in the terminal: a panel that is redrawn every second, or plain lines.

It shows the same facts as the page (`formatting.py`). Text from other peers cannot control the terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ttt.swarm.process.control_files import Contribution
from ttt.swarm.process.formatting import STATE_DETAILS, STATE_LABELS, status_rows, step_progress
from ttt.swarm.process.log_hints import recent_issues
from ttt.swarm.process.sanitize import clean_text
from ttt.swarm.process.status import PeerStatus

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MAX_LINE = 2000
TWO_COLUMN_WIDTH = 76
"""Width of the terminal from which on the numbers are shown in two columns."""
ONLY_ON_PAGE = ("share",)
"""Rows that only the page has values for."""
COLORS = {"computing": "green", "averaging": "green", "assisting": "green", "failed": "red", "restoring": "red"}


class Output(Protocol):
    """Where a running process shows its user what happens."""

    def line(self, text: str) -> None:
        """Print an event."""

    def show(self, status: PeerStatus) -> None:
        """Show the current status; called about once a second."""


class PlainOutput:
    """Lines on stderr: for logs, pipes and screen readers."""

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def show(self, status: PeerStatus) -> None:
        """No-op: `line` has already reported the change."""


class LiveOutput:
    """Lines that scroll, and below them the status panel."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        # No redirection and no refresh thread: hivemind forks this process, and a lock of rich that is held at that
        # moment would stay locked in the child.
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._console = console

    @contextmanager
    def shown(self) -> Iterator[LiveOutput]:
        with self._live:
            self._console.show_cursor(True)  # rich hides it, and a killed process could not bring it back
            yield self

    def line(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))

    def show(self, status: PeerStatus) -> None:
        self._live.update(status_panel(status, self._console.width), refresh=True)


@contextmanager
def open_output(*, plain: bool) -> Iterator[Output]:
    """Yield a `LiveOutput` if stdout is a terminal that can draw it and `plain` is not set, else a `PlainOutput`."""
    if plain or not (sys.stdout.isatty() and sys.stderr.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        yield PlainOutput()
        return
    from rich.console import Console

    with LiveOutput(Console(file=sys.stderr, highlight=False)).shown() as output:
        yield output


def status_panel(status: PeerStatus, width: int) -> RenderableType:
    """State, progress, numbers and the last problem, for a terminal `width` characters wide."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    state = Text(STATE_LABELS[status.state], style=f"bold {COLORS.get(status.state, 'yellow')}")
    parts: list[RenderableType] = [state]
    if detail := status.message or STATE_DETAILS.get(status.state, ""):
        parts.append(Text(clean_text(detail, MAX_LINE), style="dim"))
    if status.hint:
        parts.append(Text(clean_text(status.hint, MAX_LINE), style="dim"))
    parts += [*_progress(status), Text(""), _table(status, 2 if width >= TWO_COLUMN_WIDTH else 1), *_problem(status)]
    name = " as " + clean_text(status.name, 40) if status.name else ""
    return Panel(Group(*parts), title=Text(f"{status.run}{name}"), title_align="left", padding=(0, 1))


def _progress(status: PeerStatus) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    progress = step_progress(status)
    if progress is None:
        return []
    fraction, text = progress
    lines = Table.grid(expand=True)
    lines.add_row(ProgressBar(total=1.0, completed=fraction, complete_style="green"))
    lines.add_row(text)
    return [lines]


def _table(status: PeerStatus, columns: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    cells = [
        (Text(label, style="dim"), Text(value, style="bold"))
        for name, label, value in status_rows(Contribution().plus(status), status)
        if name not in ONLY_ON_PAGE
    ]
    rows = -(-len(cells) // columns)
    table = Table.grid(padding=(0, 2))
    for row in range(rows):
        table.add_row(*(cell for pair in cells[row::rows] for cell in pair))
    return table


def _problem(status: PeerStatus) -> list[RenderableType]:
    """The last problem; one of a library comes with its likely cause and remedy."""
    from rich.text import Text

    if not status.problems:
        return []
    last = clean_text(status.problems[-1], 400)
    text = Text("\nLast problem: ", style="yellow").append(last, style="default")
    for _, issue in recent_issues([last]):
        text.append(f"\n{issue.cause} {issue.remedy}", style="dim")
    return [text]


def timestamped(text: str) -> str:
    """One line that begins with the time, without control characters."""
    return f"{time.strftime('%H:%M:%S')}  {clean_text(text, MAX_LINE)}"
