"""Composition root of the app: settings -> services -> tabs -> launch. `python app.py --help` lists the settings."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from calculator.page import from_query as calculator_link
from calculator.tab import build_tab
from ttt.ui.endpoint import add_endpoint
from ttt.ui.generate import GenerateTab
from ttt.ui.models import ModelShelf, Painter, load_real, sources
from ttt.ui.settings import read_settings
from ttt.ui.shell import Tab, create_app, launch_options
from ttt.ui.store import ResultStore
from ttt.ui.studio import Studio


def main(arguments: list[str] | None = None, load: Callable[[str], Painter] = load_real) -> None:
    settings = read_settings(arguments)
    offered = sources(settings.bundles)
    shelf = ModelShelf(offered, load)
    studio = Studio(shelf, ResultStore(settings.results_folder()))
    first = settings.first_model([source.key for source in offered])
    shelf.request(first)

    def generate() -> None:
        GenerateTab(studio, first)
        add_endpoint(studio, first)

    tabs = [
        Tab("Generate", generate),
        Tab("Memory", build_tab, claims=lambda query: calculator_link(urlencode(query)) is not None),
    ]
    create_app(tabs).launch(**launch_options(settings, studio.store))


if __name__ == "__main__":
    main()
