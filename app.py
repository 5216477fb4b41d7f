"""Composition root of the app: settings -> services -> tabs -> launch. `python app.py --help` lists the settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr

from calculator.page import from_query as calculator_link
from calculator.tab import build_tab
from ttt.errors import TTTError
from ttt.ui.app import Tab, TabRefresh, create_app, launch_options
from ttt.ui.contribute.api import add_peer_endpoints
from ttt.ui.contribute.auth import OwnerAuth
from ttt.ui.contribute.form import PeerForm
from ttt.ui.contribute.service import PeerController
from ttt.ui.contribute.tab import ContributeTab
from ttt.ui.dashboard.api import add_endpoints
from ttt.ui.dashboard.render_cache import DashboardRenderer
from ttt.ui.dashboard.runs import RunFolders
from ttt.ui.dashboard.tab import DashboardTab
from ttt.ui.dashboard.thumbnails import Thumbnails
from ttt.ui.generate.api import add_endpoint
from ttt.ui.generate.models import ImageGenerator, ModelRegistry, load_pipeline, sources
from ttt.ui.generate.results import ResultStore
from ttt.ui.generate.service import GenerationService
from ttt.ui.generate.tab import GenerateTab
from ttt.ui.html import file_url
from ttt.ui.settings import Settings, read_settings, temporary_folder

EXAMPLE_RUN = Path(__file__).parent / "examples" / "run"
"""History of a finished run, shown while there is no other."""


def main(arguments: list[str] | None = None, load: Callable[[str], ImageGenerator] | None = None) -> None:
    """Serve until Ctrl-C. A wrong setting prints one line and exits with code 2."""
    try:
        settings = read_settings(arguments)
        serve(settings, load or partial(load_pipeline, dtype=settings.dtype))
    except (TTTError, OSError) as error:  # OSError: a port in use, a folder that is not writable
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None


def serve(settings: Settings, load: Callable[[str], ImageGenerator]) -> None:
    models = ModelRegistry(sources(settings.bundles), load)
    service = GenerationService(models, ResultStore(settings.results_folder()))
    first = settings.first_model(models.keys)
    models.request(first)

    def generate(page: gr.Blocks) -> None:
        GenerateTab(page, service, first)
        add_endpoint(page, service, first)

    thumbnails = Thumbnails(temporary_folder("thumbnails"))
    renderer = DashboardRenderer(RunFolders(settings.runs, example=EXAMPLE_RUN), thumbnails, file_url)

    def dashboard(page: gr.Blocks) -> TabRefresh:
        add_endpoints(renderer.source)
        return DashboardTab(renderer).refresh

    auth, defaults = OwnerAuth(), PeerForm(run=settings.run, initial_peers=" ".join(settings.initial_peers))
    peer = PeerController(settings.volunteer_folder(), defaults, exit_with_pid=settings.peer_ends_with)

    def contribute(page: gr.Blocks) -> TabRefresh:
        add_peer_endpoints(peer, auth)
        return ContributeTab(page, peer, auth).refresh

    tabs = [
        Tab("Generate", generate),
        Tab("Contribute", contribute),
        Tab("Dashboard", dashboard, matches_query=lambda query: "run" in query),
        Tab("Memory", lambda page: build_tab(), lambda query: calculator_link(urlencode(query)) is not None),
    ]
    create_app(tabs).launch(**launch_options(settings, service.store.root, thumbnails.root))


if __name__ == "__main__":
    main()
