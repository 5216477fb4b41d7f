"""Renders the parts of a run as HTML once for all visitors. Independent of Gradio."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ttt.swarm.history.types import SampleImage
from ttt.ui.dashboard import view
from ttt.ui.dashboard.runs import RunData, RunSource
from ttt.ui.dashboard.thumbnails import Thumbnails
from ttt.ui.dashboard.view import PLOTS, Order

PLOT_STEPS = 400
"""Plots are rendered again when the time axis has grown by this fraction: less would be invisible."""
PLOT_SECONDS = 300.0
"""And after this time in any case."""
FIGURE, TABLE = "figure/", "table/"


@dataclass(frozen=True)
class Fragment:
    html: str
    digest: str
    """Hash of `html`; a client that already has it is not sent the fragment again."""


@dataclass
class _Rendered:
    run: RunData
    plotted: RunData
    """The data of the plots, which may be slightly older."""
    fragments: dict[str, Fragment] = field(default_factory=dict)
    plots: dict[str, Fragment] = field(default_factory=dict)


class DashboardRenderer:
    """Caches the rendered fragments of each run."""

    def __init__(self, source: RunSource, thumbnails: Thumbnails, file_url: Callable[[object], str]) -> None:
        """file_url: the address of a file below the thumbnails' folder."""
        self.source, self._thumbnails, self._file_url = source, thumbnails, file_url
        self._rendered: dict[str, _Rendered] = {}
        self._lock = threading.Lock()

    def render(
        self, key: str, order: Order = "seconds", show_all: bool = False, opened: Collection[str] = ()
    ) -> dict[str, Fragment]:
        """Every fragment by name. opened: plots whose tables are included. Raises the errors of `RunSource.read`."""
        run = self.source.read(key)
        with self._lock:
            rendered = self._current(key, run)
            fragments = {
                "head": self._fragment(rendered.fragments, "head", lambda: view.head(run)),
                "leaderboard": self._fragment(
                    rendered.fragments,
                    f"leaderboard/{order}/{show_all}",
                    lambda: view.leaderboard(run.places, order, show_all=show_all),
                ),
                "gallery": self._fragment(rendered.fragments, "gallery", lambda: self._gallery(run)),
                "checkpoints": self._fragment(rendered.fragments, "checkpoints", lambda: view.checkpoints(run)),
                "events": self._fragment(rendered.fragments, "events", lambda: view.events(run.events, run.places)),
            }
            for name in PLOTS:
                fragments[FIGURE + name] = self._plot(rendered, FIGURE, name, view.figure)
                if name in opened:
                    fragments[TABLE + name] = self._plot(rendered, TABLE, name, view.figure_table)
        return fragments

    def _current(self, key: str, run: RunData) -> _Rendered:
        old = self._rendered.get(key)
        if old is not None and old.run.version == run.version:
            return old
        if old is not None and not _visibly_later(old.plotted, run):
            self._rendered[key] = _Rendered(run, old.plotted, plots=old.plots)
        else:
            self._rendered[key] = _Rendered(run, run)
        return self._rendered[key]

    def _plot(self, rendered: _Rendered, kind: str, name: str, render: Callable[[RunData, str], str]) -> Fragment:
        return self._fragment(rendered.plots, kind + name, lambda: render(rendered.plotted, name))

    def _gallery(self, run: RunData) -> str:
        def url(image: SampleImage) -> str | None:
            copy = self._thumbnails.of(run.folder, image.path)
            return None if copy is None else self._file_url(copy)

        return view.gallery(run, url)

    @staticmethod
    def _fragment(cache: dict[str, Fragment], name: str, render: Callable[[], str]) -> Fragment:
        if name not in cache:
            html = render()
            cache[name] = Fragment(html, hashlib.blake2b(html.encode(), digest_size=8).hexdigest())
        return cache[name]


def _visibly_later(old: RunData, new: RunData) -> bool:
    times, before = new.curves["step", "time"].x, old.curves["step", "time"].x
    if not times or not before or times[0] != before[0]:
        return True
    return times[-1] - before[-1] >= min((times[-1] - times[0]) / PLOT_STEPS, PLOT_SECONDS) or times[-1] < before[-1]
