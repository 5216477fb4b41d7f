"""Composition root of the app: settings -> services -> tabs -> launch. `python app.py --help` lists the settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from calculator.page import from_query as calculator_link
from calculator.tab import build_tab
from ttt.errors import TTTError
from ttt.ui.app import Live, Tab, create_app, launch_options
from ttt.ui.contribute.api import add_peer_endpoints
from ttt.ui.contribute.auth import Owner
from ttt.ui.contribute.form import Asked
from ttt.ui.contribute.service import PeerDesk
from ttt.ui.contribute.tab import ContributeTab
from ttt.ui.dashboard.api import add_endpoints
from ttt.ui.dashboard.render_cache import Board
from ttt.ui.dashboard.runs import RunFolders
from ttt.ui.dashboard.tab import DashboardTab
from ttt.ui.dashboard.thumbnails import Thumbnails
from ttt.ui.generate.api import add_endpoint
from ttt.ui.generate.models import ModelShelf, Painter, load_real, sources
from ttt.ui.generate.results import ResultStore
from ttt.ui.generate.service import Studio
from ttt.ui.generate.tab import GenerateTab
from ttt.ui.generate.view import file_url
from ttt.ui.settings import Settings, passing_folder, read_settings

EXAMPLE_RUN = Path(__file__).parent / "examples" / "run"
"""The history of a finished run, for who has none yet."""


def main(arguments: list[str] | None = None, load: Callable[[str], Painter] | None = None) -> None:
    """Serve until Ctrl-C; what a setting has wrong is one line and exit code 2."""
    try:
        settings = read_settings(arguments)
        serve(settings, load or partial(load_real, dtype=settings.dtype))
    except (TTTError, OSError) as error:  # a port that is taken, a folder that cannot be written
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None


def serve(settings: Settings, load: Callable[[str], Painter]) -> None:
    offered = sources(settings.bundles)
    shelf = ModelShelf(offered, load)
    studio = Studio(shelf, ResultStore(settings.results_folder()))
    first = settings.first_model([source.key for source in offered])
    shelf.request(first)

    def generate() -> None:
        GenerateTab(studio, first)
        add_endpoint(studio, first)

    thumbnails = Thumbnails(passing_folder("thumbnails"))
    board = Board(RunFolders(settings.runs, example=EXAMPLE_RUN), thumbnails, file_url)

    def dashboard() -> Live:
        add_endpoints(board.source)
        return DashboardTab(board).live

    owner, asked = Owner(), Asked(run=settings.run, initial_peers=" ".join(settings.initial_peers))
    desk = PeerDesk(settings.volunteer_folder(), asked, bound_to=settings.peer_ends_with)

    def contribute() -> Live:
        add_peer_endpoints(desk, owner)
        return ContributeTab(desk, owner).live

    tabs = [
        Tab("Generate", generate),
        Tab("Contribute", contribute),
        Tab("Dashboard", dashboard, claims=lambda query: "run" in query),
        Tab("Memory", build_tab, claims=lambda query: calculator_link(urlencode(query)) is not None),
    ]
    create_app(tabs).launch(**launch_options(settings, studio.store, thumbnails.root))


if __name__ == "__main__":
    main()
