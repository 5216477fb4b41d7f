"""The page around the tabs: heading, tabs, and how they are served. Knows no models."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ttt.ui import theme
from ttt.ui.frame_policy import Framing, framers
from ttt.ui.generate.results import ResultStore
from ttt.ui.settings import Settings

TITLE = "Training Transformers Together"
LEAD = "Paint pictures from a prompt, train the model that paints them together with others, plan one of your own."
MAX_UPLOAD = "20mb"
CACHE_SECONDS = (3600, 24 * 3600)
"""How often Gradio's own copies of files are swept, and how old they are then."""

Query = Mapping[str, str]


@dataclass(frozen=True)
class Live:
    """What happens while a tab is the one shown."""

    clock: gr.Timer
    """Made inactive; it ticks while the tab is shown, and no longer."""
    refresh: Mapping[str, Any]
    """Arguments of the event that brings the tab up to date when it is opened."""

    def while_alone(self, page: gr.Blocks) -> None:
        """There are no tabs: always."""
        page.load(**self.refresh)
        page.load(fn=lambda: gr.Timer(active=True), outputs=[self.clock], api_visibility="undocumented")


@dataclass(frozen=True)
class Tab:
    name: str
    build: Callable[[], Live | None]
    """Makes the components inside the current gr.Blocks."""
    claims: Callable[[Query], bool] = lambda query: False
    """Whether an address is meant for this tab, which then is the one shown."""


def create_app(tabs: Sequence[Tab]) -> gr.Blocks:
    """The page; with a single tab there is no tab bar."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CACHE_SECONDS) as app:
        gr.HTML(value=f"<h1>{TITLE}</h1><p>{LEAD}</p>", elem_id="masthead")
        if len(tabs) == 1:
            if (live := tabs[0].build()) is not None:
                live.while_alone(app)
        else:
            _lay_out_tabs(app, tabs)
    # Requests take turns at our own desk, which knows the users; Gradio's queue only carries messages.
    app.queue(default_concurrency_limit=None, max_size=256)
    return app


def _lay_out_tabs(app: gr.Blocks, tabs: Sequence[Tab]) -> None:
    shown: list[gr.Tab] = []
    lives: list[Live | None] = []
    with gr.Tabs(elem_id="tabs") as bar:
        for tab in tabs:
            with gr.Tab(label=tab.name, id=tab.name.lower()) as place:
                lives.append(tab.build())
            shown.append(place)
    _switch_clocks(shown, lives)

    def choose(request: gr.Request) -> Any:
        query = dict(request.query_params)
        claimed = [tab.name.lower() for tab in tabs if tab.name.lower() == query.get("tab") or tab.claims(query)]
        return gr.Tabs(selected=claimed[0]) if claimed else gr.skip()

    app.load(fn=choose, outputs=[bar], api_visibility="undocumented", show_progress="hidden")


def _switch_clocks(places: Sequence[gr.Tab], lives: Sequence[Live | None]) -> None:
    """A timer would tick for ever once its tab was opened: only that of the tab shown may."""
    clocks = [live.clock for live in lives if live is not None]
    for place, own in zip(places, lives, strict=True):
        active = [own is not None and clock is own.clock for clock in clocks]
        if clocks:
            place.select(
                fn=partial(_set_clocks, active),
                outputs=clocks,
                queue=False,
                show_progress="hidden",
                api_visibility="undocumented",
            )
        if own is not None:
            place.select(**own.refresh)


def _set_clocks(active: Sequence[bool]) -> Any:
    timers = [gr.Timer(active=one) for one in active]
    return timers[0] if len(timers) == 1 else timers


def launch_options(settings: Settings, store: ResultStore, *served: Path) -> dict[str, Any]:
    """No sharing, no monitoring, no run history; only finished results, and these folders, are served as files."""
    return {
        "server_name": settings.host,
        "server_port": settings.port or None,
        "theme": theme.theme(),
        "css": theme.css(),
        "head": theme.head(),
        "allowed_paths": [str(store.root), *map(str, served)],
        "max_file_size": MAX_UPLOAD,
        "max_threads": 100,
        "share": False,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "app_kwargs": {"middleware": [Middleware(Framing, allowed=framers(os.environ))]},
        "pwa": False,
        "mcp_server": find_spec("mcp") is not None,
        "footer_links": ["api", "gradio", "settings"],
        # Gradio asks its own page once, for 3 s, and gives up with advice about sharing. A machine that is busy loading
        # a model needs longer, and behind a proxy the question may never arrive.
        "_frontend": False,
    }
