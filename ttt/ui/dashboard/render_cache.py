"""A run's parts as HTML, drawn once and shared by all visitors. Knows where runs are read, and no gradio."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ttt.swarm.history.types import SampleImage
from ttt.ui.dashboard import view
from ttt.ui.dashboard.run_types import RunData, RunSource
from ttt.ui.dashboard.thumbnails import Thumbnails
from ttt.ui.dashboard.view import PLOTS, Order

PLOT_STEPS = 400
"""Plots are drawn anew when time moved on by this part of them: less can't be seen."""
PLOT_SECONDS = 300.0
"""And after so long in any case."""
FIGURE, TABLE = "figure/", "table/"


@dataclass(frozen=True)
class Part:
    html: str
    digest: str
    """Of the HTML: a page that has it needs nothing."""


@dataclass
class _Drawn:
    run: RunData
    plotted: RunData
    parts: dict[str, Part] = field(default_factory=dict)
    plots: dict[str, Part] = field(default_factory=dict)


class Board:
    """What the dashboard shows, by run."""

    def __init__(self, source: RunSource, thumbnails: Thumbnails, file_url: Callable[[object], str]) -> None:
        """file_url: from a file below the thumbnails' folder to its address."""
        self.source, self._thumbnails, self._file_url = source, thumbnails, file_url
        self._drawn: dict[str, _Drawn] = {}
        self._lock = threading.Lock()

    def draw(
        self, key: str, order: Order = "seconds", everybody: bool = False, opened: Collection[str] = ()
    ) -> dict[str, Part]:
        """Every part by name; opened: the plots whose tables are wanted too. Errors are those of `RunSource.read`."""
        run = self.source.read(key)
        with self._lock:
            drawn = self._current(key, run)
            parts = {
                "head": self._part(drawn.parts, "head", lambda: view.head(run)),
                "leaderboard": self._part(
                    drawn.parts,
                    f"leaderboard/{order}/{everybody}",
                    lambda: view.leaderboard(run.places, order, everybody=everybody),
                ),
                "gallery": self._part(drawn.parts, "gallery", lambda: self._gallery(run)),
                "checkpoints": self._part(drawn.parts, "checkpoints", lambda: view.checkpoints(run)),
                "events": self._part(drawn.parts, "events", lambda: view.events(run.events, run.places)),
            }
            for name in PLOTS:
                parts[FIGURE + name] = self._plot(drawn, FIGURE, name, view.figure)
                if name in opened:
                    parts[TABLE + name] = self._plot(drawn, TABLE, name, view.figure_table)
        return parts

    def _current(self, key: str, run: RunData) -> _Drawn:
        old = self._drawn.get(key)
        if old is not None and old.run.version == run.version:
            return old
        if old is not None and not _visibly_later(old.plotted, run):
            self._drawn[key] = _Drawn(run, old.plotted, plots=old.plots)
        else:
            self._drawn[key] = _Drawn(run, run)
        return self._drawn[key]

    def _plot(self, drawn: _Drawn, kind: str, name: str, draw: Callable[[RunData, str], str]) -> Part:
        return self._part(drawn.plots, kind + name, lambda: draw(drawn.plotted, name))

    def _gallery(self, run: RunData) -> str:
        def url(image: SampleImage) -> str | None:
            copy = self._thumbnails.of(run.folder, image.path)
            return None if copy is None else self._file_url(copy)

        return view.gallery(run, url)

    @staticmethod
    def _part(kept: dict[str, Part], name: str, draw: Callable[[], str]) -> Part:
        if name not in kept:
            html = draw()
            kept[name] = Part(html, hashlib.blake2b(html.encode(), digest_size=8).hexdigest())
        return kept[name]


def _visibly_later(old: RunData, new: RunData) -> bool:
    times, before = new.curves["step", "time"].x, old.curves["step", "time"].x
    if not times or not before or times[0] != before[0]:
        return True
    return times[-1] - before[-1] >= min((times[-1] - times[0]) / PLOT_STEPS, PLOT_SECONDS) or times[-1] < before[-1]
