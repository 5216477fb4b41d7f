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
from ttt.ui.board import Board
from ttt.ui.contribute import ContributeTab
from ttt.ui.contribute_api import add_peer_endpoints
from ttt.ui.contribute_form import Asked
from ttt.ui.dashboard import DashboardTab
from ttt.ui.dashboard_api import add_endpoints
from ttt.ui.endpoint import add_endpoint
from ttt.ui.generate import GenerateTab
from ttt.ui.models import ModelShelf, Painter, load_real, sources
from ttt.ui.owner import Owner
from ttt.ui.peer_desk import PeerDesk
from ttt.ui.runs import RunFolders
from ttt.ui.settings import Settings, passing_folder, read_settings
from ttt.ui.shell import Live, Tab, create_app, launch_options
from ttt.ui.store import ResultStore
from ttt.ui.studio import Studio
from ttt.ui.thumbnails import Thumbnails
from ttt.ui.view import file_url

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

    thumbnails = Thumbnails(passing_folder("pictures"))
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
