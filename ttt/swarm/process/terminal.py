"""A peer in the terminal: a block that is drawn anew every second, or plain lines. Knows a status, no swarm.

The same facts as on the page (`words.py`). What others have written into them cannot steer the terminal.
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
from ttt.swarm.process.status import PeerStatus
from ttt.swarm.process.text import clean_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LONGEST_LINE = 2000
TWO_COLUMNS = 76
"""Characters of a line from which on figures stand side by side."""
ELSEWHERE = ("share",)
"""Figures that only the page knows."""
COLORS = {"computing": "green", "averaging": "green", "assisting": "green", "failed": "red", "restoring": "red"}


class Outlet(Protocol):
    """Where a running process speaks to a person."""

    def line(self, text: str) -> None:
        """Something happened."""

    def show(self, status: PeerStatus) -> None:
        """How things stand; about once a second."""


class Lines:
    """For logs, pipes, and whoever has text read to them."""

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def show(self, status: PeerStatus) -> None:
        """The lines told it."""


class Screen:
    """Lines that scroll, and below them the block."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        # Nothing is redirected and no thread draws: hivemind forks this process, and a lock of rich's that happened to
        # be held would be held in the child for ever.
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._console = console

    @contextmanager
    def shown(self) -> Iterator[Screen]:
        with self._live:
            self._console.show_cursor(True)  # a process that is killed cannot bring it back
            yield self

    def line(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))

    def show(self, status: PeerStatus) -> None:
        self._live.update(block(status, self._console.width), refresh=True)


@contextmanager
def outlet(*, plain: bool) -> Iterator[Outlet]:
    """The block where a person sits at a terminal that can draw it and has not asked for plain lines."""
    if plain or not (sys.stdout.isatty() and sys.stderr.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        yield Lines()
        return
    from rich.console import Console

    with Screen(Console(file=sys.stderr, highlight=False)).shown() as screen:
        yield screen


def block(status: PeerStatus, width: int) -> RenderableType:
    """State, progress, figures and the last problem, for a terminal `width` characters wide."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    head = Text(STATE_LABELS[status.state], style=f"bold {COLORS.get(status.state, 'yellow')}")
    parts: list[RenderableType] = [head]
    if said := status.message or STATE_DETAILS.get(status.state, ""):
        parts.append(Text(clean_text(said, LONGEST_LINE), style="dim"))
    parts += [*_progress(status), Text(""), _table(status, 2 if width >= TWO_COLUMNS else 1), *_problem(status)]
    who = " as " + clean_text(status.name, 40) if status.name else ""
    return Panel(Group(*parts), title=Text(f"{status.run}{who}"), title_align="left", padding=(0, 1))


def _progress(status: PeerStatus) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    towards = step_progress(status)
    if towards is None:
        return []
    lines = Table.grid(expand=True)
    lines.add_row(ProgressBar(total=1.0, completed=towards[0], complete_style="green"))
    lines.add_row(towards[1])
    return [lines]


def _table(status: PeerStatus, columns: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    told = [one for one in status_rows(Contribution().plus(status), status) if one[0] not in ELSEWHERE]
    cells = [(Text(label, style="dim"), Text(value, style="bold")) for _, label, value in told]
    rows = -(-len(cells) // columns)
    table = Table.grid(padding=(0, 2))
    for row in range(rows):
        table.add_row(*(cell for pair in cells[row::rows] for cell in pair))
    return table


def _problem(status: PeerStatus) -> list[RenderableType]:
    """The last one, with what it means and what to try where that is known."""
    from rich.text import Text

    if not status.problems:
        return []
    last = clean_text(status.problems[-1], 400)
    text = Text("\nLast problem: ", style="yellow").append(last, style="default")
    for _, complaint in recent_issues([last]):
        text.append(f"\n{complaint.cause} {complaint.remedy}", style="dim")
    return [text]


def stamped(text: str) -> str:
    """One line with the clock before it, fit for any terminal."""
    return f"{time.strftime('%H:%M:%S')}  {clean_text(text, LONGEST_LINE)}"
