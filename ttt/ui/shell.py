"""The page around the tabs: heading, tabs, and how they are served. Knows no models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ttt.ui import theme
from ttt.ui.settings import Settings
from ttt.ui.store import ResultStore

TITLE = "Training Transformers Together"
LEAD = "Type a prompt. The model paints up to 128 candidates before your eyes, and CLIP picks the best."
MAX_UPLOAD = "20mb"
CACHE_SECONDS = (3600, 24 * 3600)
"""How often Gradio's own copies of files are swept, and how old they are then."""

Tab = tuple[str, Callable[[], object]]
"""Its name, and what builds it inside the current gr.Blocks."""


def create_app(tabs: Sequence[Tab]) -> gr.Blocks:
    """The page; with a single tab there is no tab bar."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CACHE_SECONDS) as app:
        gr.HTML(value=f"<h1>{TITLE}</h1><p>{LEAD}</p>", elem_id="masthead")
        if len(tabs) == 1:
            tabs[0][1]()
        else:
            with gr.Tabs():
                for name, build in tabs:
                    with gr.Tab(label=name, id=name.lower()):
                        build()
    # Requests take turns at our own desk, which knows the users; Gradio's queue only carries messages.
    app.queue(default_concurrency_limit=None, max_size=256)
    return app


def launch_options(settings: Settings, store: ResultStore) -> dict[str, Any]:
    """No sharing, no monitoring, no run history; only finished results are served as files."""
    return {
        "server_name": settings.host,
        "server_port": settings.port or None,
        "theme": theme.theme(),
        "css": theme.css(),
        "head": theme.head(),
        "allowed_paths": [str(store.root)],
        "max_file_size": MAX_UPLOAD,
        "max_threads": 100,
        "share": False,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": True,
        "footer_links": ["api", "gradio", "settings"],
    }
