"""The real app with a drawn model and a dashboard that looks more often; run by the end-to-end tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import app
import ttt.ui.dashboard.runs
import ttt.ui.dashboard.tab
from ttt.ui.generate.fake import FakeGenerator

if __name__ == "__main__":
    app.EXAMPLE_RUN = Path(__file__).with_name("no example")
    ttt.ui.dashboard.tab.REFRESH_SECONDS = 0.7
    ttt.ui.dashboard.runs.CHECK_SECONDS = 0.2
    ttt.ui.dashboard.runs.SEARCH_SECONDS = 0.5
    app.main(sys.argv[1:], lambda target: FakeGenerator(delay=0.02))
