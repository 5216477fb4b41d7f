"""The Dashboard tab: layout and events. `python -m ttt.ui.dashboard.tab` runs it alone, with a simulated run."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from ttt.errors import InvalidInput, TTTError
from ttt.ui.app import Tab, TabRefresh, run_standalone
from ttt.ui.dashboard import view
from ttt.ui.dashboard.render_cache import FIGURE, TABLE, DashboardRenderer, Fragment
from ttt.ui.dashboard.runs import NO_RUNS
from ttt.ui.dashboard.view import ORDERS, PLOTS
from ttt.ui.html import file_url

REFRESH_SECONDS = 5.0
"""A coordinator writes about every ten seconds."""
Changes = dict[Any, Any]


class DashboardTab:
    """Components of the tab and what happens when they are used."""

    def __init__(self, renderer: DashboardRenderer) -> None:
        self.renderer = renderer
        self._lay_out()
        self._wire()

    def _lay_out(self) -> None:
        self.clock = gr.Timer(value=REFRESH_SECONDS, active=False)
        self.opened: gr.State = gr.State(value=[], time_to_live=24 * 3600)
        self.seen: gr.State = gr.State(value={}, time_to_live=24 * 3600)
        self.parts: dict[str, gr.HTML] = {}
        self.tables: dict[str, gr.Accordion] = {}
        with gr.Column(elem_id="dashboard"):
            self.run = gr.Dropdown(label="Run", choices=[], value=None, elem_id="run", visible=False)
            with gr.Column(elem_classes="ttt-card"):
                self.parts["head"] = gr.HTML(value="", elem_id="run-head")
            with gr.Column(visible=False, elem_id="run-body") as self.body:
                self._lay_out_plots()
                self._lay_out_lists()

    def _lay_out_plots(self) -> None:
        with gr.Row(elem_id="plots"):
            for name, (title, *_) in PLOTS.items():
                with gr.Column(elem_classes="ttt-card", min_width=280):
                    self.parts[FIGURE + name] = gr.HTML(value="", elem_id=f"plot-{name}")
                    with gr.Accordion(label=f"{title} as a table", open=False, elem_id=f"table-{name}") as table:
                        self.parts[TABLE + name] = gr.HTML(value="")
                    self.tables[name] = table

    def _lay_out_lists(self) -> None:
        with gr.Column(elem_classes="ttt-card", elem_id="leaderboard"):
            gr.HTML(value="<h2>Leaderboard</h2>")
            with gr.Row(elem_id="board-options"):
                choices = [(label, order) for order, label in ORDERS.items()]
                self.order = gr.Radio(choices=choices, value="seconds", label="Ranked by", elem_id="order")
                self.show_all = gr.Checkbox(value=False, label="Show all", elem_id="show-all")
            self.parts["leaderboard"] = gr.HTML(value="")
        with gr.Column(elem_classes="ttt-card", elem_id="gallery"):
            gr.HTML(value="<h2>Sample images</h2>")
            self.parts["gallery"] = gr.HTML(value="")
        with gr.Column(elem_classes="ttt-card", elem_id="checkpoints"):
            gr.HTML(value="<h2>Checkpoints</h2>")
            self.parts["checkpoints"] = gr.HTML(value="")
        with (
            gr.Column(elem_classes="ttt-card", elem_id="events"),
            gr.Accordion(label="Recent events", open=False),
        ):
            self.parts["events"] = gr.HTML(value="")

    def _wire(self) -> None:
        inputs = [self.run, self.order, self.show_all, self.opened, self.seen]
        self._show_event: dict[str, Any] = {
            "fn": self.show,
            "inputs": inputs,
            "outputs": [self.run, self.body, self.seen, *self.parts.values()],
            "preprocess": False,
            "queue": False,  # answered from memory; queueing would cost more than the answer
            "show_progress": "hidden",
            "api_visibility": "undocumented",
        }
        self.clock.tick(**self._show_event)
        for control in (self.run, self.order, self.show_all):
            control.input(**self._show_event)
        self.run.input(fn=None, inputs=[self.run], js="(run) => { window.ttt?.addressOf({ tab: 'dashboard', run }); }")
        hidden: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "undocumented"}
        for name, table in self.tables.items():
            where: dict[str, Any] = {"inputs": [self.opened], "outputs": [self.opened], **hidden}
            table.expand(fn=partial(_with, name), **where).then(**self._show_event)
            table.collapse(fn=partial(_without, name), **where)

    @property
    def refresh(self) -> TabRefresh:
        """Keeps the tab up to date while it is shown."""
        return TabRefresh(self.clock, self._show_event)

    def show(
        self, run: Any, order: Any, show_all: Any, opened: Any, seen: Any, request: gr.Request | None = None
    ) -> Changes:
        """The fragments that have changed since this page was last updated."""
        names = self.renderer.source.names()
        keys = [name.key for name in names]
        chosen = run or (dict(request.query_params).get("run") if request is not None else None)
        key = chosen if isinstance(chosen, str) and chosen else keys[0] if keys else ""
        known = seen if isinstance(seen, dict) else {}
        try:
            if not names:
                raise InvalidInput(NO_RUNS)
            tables = [name for name in PLOTS if isinstance(opened, list) and name in opened]
            parts = self.renderer.render(key, "samples" if order == "samples" else "seconds", show_all is True, tables)
        except TTTError as error:
            parts = {"head": Fragment(view.problem(str(error)), str(error))}
        changed = {name: part for name, part in parts.items() if known.get(name) != part.digest}
        listed = repr([key, names])
        if not changed and known.get("names") == listed:
            return {self.seen: gr.skip()}
        changes: Changes = {self.parts[name]: part.html for name, part in changed.items()}
        whole = len(parts) > 1
        if known.get("whole") != whole:
            changes[self.body] = gr.Column(visible=whole)
        if known.get("names") != listed:
            value = key if key in keys else None
            choices = [(name.label, name.key) for name in names]
            changes[self.run] = gr.Dropdown(choices=choices, value=value, visible=bool(names))
        digests = {name: part.digest for name, part in changed.items()}
        changes[self.seen] = {**known, **digests, "names": listed, "whole": whole}
        return changes


def _with(name: str, opened: Any) -> list[str]:
    return [*_without(name, opened), name]


def _without(name: str, opened: Any) -> list[str]:
    return [other for other in opened or [] if other != name]


def main() -> None:
    import time

    from ttt.ui.dashboard.fake import Simulation
    from ttt.ui.dashboard.runs import RunFolders
    from ttt.ui.dashboard.thumbnails import Thumbnails
    from ttt.ui.settings import temporary_folder

    folder = temporary_folder("dashboard")
    Simulation(end=time.time()).write(folder / "runs" / "simulated")
    thumbnails = Thumbnails(folder / "thumbnails")
    renderer = DashboardRenderer(RunFolders(folder / "runs"), thumbnails, file_url)
    run_standalone(Tab("Dashboard", lambda page: DashboardTab(renderer).refresh), thumbnails.root)


if __name__ == "__main__":
    main()
