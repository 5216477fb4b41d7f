"""The page around the tabs: heading, tab bar, and how it is served. Imports no tab."""

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

from ttt.errors import InvalidInput
from ttt.ui import theme
from ttt.ui.frame_policy import FramePolicy, allowed_frame_ancestors
from ttt.ui.settings import Settings

TITLE = "Training Transformers Together"
LEAD = "Generate images from text, help train the model that generates them, and check what your own GPU can train."
MAX_UPLOAD = "20mb"
CACHE_SECONDS = (3600, 24 * 3600)
"""How often Gradio deletes its own copies of files, and the age from which it does."""

Query = Mapping[str, str]


@dataclass(frozen=True)
class TabRefresh:
    """How a tab is kept up to date while it is the one shown."""

    timer: gr.Timer
    """Created inactive; runs only while the tab is shown."""
    event: Mapping[str, Any]
    """Arguments of the event that updates the tab when it is opened."""

    def keep_running(self, page: gr.Blocks) -> None:
        """For a page without tabs."""
        page.load(**self.event)
        page.load(fn=lambda: gr.Timer(active=True), outputs=[self.timer], api_visibility="undocumented")


@dataclass(frozen=True)
class Tab:
    name: str
    build: Callable[[gr.Blocks], TabRefresh | None]
    """Creates the components inside the page, which is the current context."""
    matches_query: Callable[[Query], bool] = lambda query: False
    """True if an address with this query is a link to the tab, which is then shown first."""


def create_app(tabs: Sequence[Tab]) -> gr.Blocks:
    """The page; a single tab gets no tab bar."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CACHE_SECONDS) as app:
        gr.HTML(value=f"<h1>{TITLE}</h1><p>{LEAD}</p>", elem_id="masthead")
        if len(tabs) == 1:
            if (refresh := tabs[0].build(app)) is not None:
                refresh.keep_running(app)
        else:
            _lay_out_tabs(app, tabs)
    # Our own job queue serves the users in turn; Gradio's queue only carries messages.
    app.queue(default_concurrency_limit=None, max_size=256)
    return app


def run_standalone(tab: Tab, *served: Path) -> None:
    """Serve one tab alone, for development; served: folders whose files the page shows."""
    look: dict[str, Any] = {"theme": theme.theme(), "css": theme.css(), "head": theme.head()}
    create_app([tab]).launch(**look, allowed_paths=[str(folder) for folder in served], ssr_mode=False)


def _lay_out_tabs(app: gr.Blocks, tabs: Sequence[Tab]) -> None:
    panels: list[gr.Tab] = []
    refreshes: list[TabRefresh | None] = []
    with gr.Tabs(elem_id="tabs") as bar:
        for tab in tabs:
            with gr.Tab(label=tab.name, id=tab.name.lower()) as panel:
                refreshes.append(tab.build(app))
            panels.append(panel)
    _switch_timers(panels, refreshes)

    def select_linked_tab(request: gr.Request) -> Any:
        query = dict(request.query_params)
        linked = [tab.name.lower() for tab in tabs if tab.name.lower() == query.get("tab") or tab.matches_query(query)]
        return gr.Tabs(selected=linked[0]) if linked else gr.skip()

    app.load(fn=select_linked_tab, outputs=[bar], api_visibility="undocumented", show_progress="hidden")


def _switch_timers(panels: Sequence[gr.Tab], refreshes: Sequence[TabRefresh | None]) -> None:
    """A timer keeps ticking once its tab has been opened: activate only that of the tab shown."""
    timers = [refresh.timer for refresh in refreshes if refresh is not None]
    for panel, refresh in zip(panels, refreshes, strict=True):
        active = [refresh is not None and timer is refresh.timer for timer in timers]
        if timers:
            panel.select(
                fn=partial(_set_timers, active),
                outputs=timers,
                queue=False,
                show_progress="hidden",
                api_visibility="undocumented",
            )
        if refresh is not None:
            panel.select(**refresh.event)


def _set_timers(active: Sequence[bool]) -> Any:
    timers = [gr.Timer(active=state) for state in active]
    return timers[0] if len(timers) == 1 else timers


def launch_options(settings: Settings, *served: Path) -> dict[str, Any]:
    """No sharing, no monitoring, no run history; only files below the served folders are public.

    Raises InvalidInput if such a folder contains what must stay private.
    """
    _refuse_private_folders(served, (Path.cwd(), settings.runs, settings.volunteer_folder()))
    return {
        "server_name": settings.host,
        "server_port": settings.port or None,
        "theme": theme.theme(),
        "css": theme.css(),
        "head": theme.head(),
        "allowed_paths": [str(folder) for folder in served],
        "max_file_size": MAX_UPLOAD,
        "max_threads": 100,
        "share": False,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "app_kwargs": {"middleware": [Middleware(FramePolicy, allowed=allowed_frame_ancestors(os.environ))]},
        "pwa": False,
        "mcp_server": find_spec("mcp") is not None,
        "footer_links": ["api", "gradio", "settings"],
        # Gradio requests its own page once at start and, after 3 s without an answer, gives up with advice about
        # sharing. A machine that is busy loading a model takes longer, and behind a proxy the request may never arrive.
        "_frontend": False,
    }


def _refuse_private_folders(served: Sequence[Path], private: Sequence[Path]) -> None:
    """Gradio serves every file below an allowed path; runs and peers keep their private keys in their folders."""
    for folder in served:
        for secret in private:
            if secret.resolve().is_relative_to(folder.resolve()):
                raise InvalidInput(
                    f"every file below {folder} would be public, {secret} included; choose another folder for the "
                    "results (--results)"
                )
