"""The dashboard's tab over HTTP, as a browser asks it: bytes and milliseconds."""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2

from ttt.swarm.history.writer import HistoryWriter
from ttt.ui.app import TabRefresh
from ttt.ui.dashboard import runs
from ttt.ui.dashboard.render_cache import DashboardRenderer
from ttt.ui.dashboard.runs import RunFolders
from ttt.ui.dashboard.tab import DashboardTab
from ttt.ui.dashboard.thumbnails import Thumbnails
from ttt.ui.html import file_url

VISITORS, AT_ONCE = 100, 8


class Visitor:
    """One page: opens the tab, then asks as its timer does."""

    def __init__(self, url: str, event: int, number: int) -> None:
        self._url, self._body = f"{url}gradio_api/run/predict", {"fn_index": event, "session_hash": f"visitor{number}"}
        self._client = httpx2.Client(timeout=60)

    def ask(self) -> tuple[float, float, int]:
        """(milliseconds, those of CPU, bytes of the answer): the CPU is the server's and the client's together."""
        asked = {**self._body, "data": [None, "seconds", False, None, None], "trigger_id": None}
        began, busy = time.perf_counter(), time.process_time()
        answer = self._client.post(self._url, json=asked)
        took, cpu = 1000 * (time.perf_counter() - began), 1000 * (time.process_time() - busy)
        answer.raise_for_status()
        return took, cpu, len(answer.content)


def measure(
    history: HistoryWriter, folder: Path, repeats: int, news: Callable[[HistoryWriter], None]
) -> dict[str, float]:
    """news: writes what a coordinator writes every ten seconds or so."""
    runs.CHECK_SECONDS = 0.0  # every question finds out whether something changed
    with tempfile.TemporaryDirectory() as thumbnails:
        with gr.Blocks(analytics_enabled=False) as page:
            refresh = DashboardTab(
                DashboardRenderer(RunFolders(folder), Thumbnails(Path(thumbnails)), file_url)
            ).refresh
            refresh.keep_running(page)
        launched = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "_frontend": False}
        _, url, _ = page.launch(server_port=_free_port(), **launched)  # type: ignore[arg-type]
        try:
            return _ask(url, _event(page, refresh), history, repeats, news)
        finally:
            page.close(verbose=False)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _event(page: gr.Blocks, refresh: TabRefresh) -> int:
    return next(number for number, fn in page.fns.items() if (refresh.timer._id, "tick") in fn.targets)


def _ask(
    url: str, event: int, history: HistoryWriter, repeats: int, news: Callable[[HistoryWriter], None]
) -> dict[str, float]:
    one = Visitor(url, event, 0)
    figures: dict[str, float] = {}
    figures["page_cold_ms"], _, size = one.ask()
    figures["page_opened_bytes"] = float(size)
    opened = [Visitor(url, event, number).ask()[0] for number in range(1, 1 + repeats)]
    figures["page_opened_ms"] = statistics.median(opened)
    after_news = [_after(news, history, one) for _ in range(repeats)]
    quiet = [one.ask() for _ in range(repeats)]
    for name, asked in (("page_news", after_news), ("page_no_news", quiet)):
        for unit, values in zip(("ms", "cpu_ms", "bytes"), zip(*asked, strict=True), strict=True):
            figures[f"{name}_{unit}"] = float(statistics.median(values))
    return {**figures, **_many(url, event, history, news)}


def _after(news: Callable[[HistoryWriter], None], history: HistoryWriter, visitor: Visitor) -> tuple[float, float, int]:
    news(history)
    return visitor.ask()


def _many(url: str, event: int, history: HistoryWriter, news: Callable[[HistoryWriter], None]) -> dict[str, float]:
    """All visitors' pages ask after the same news, some at once."""
    visitors = [Visitor(url, event, 1000 + number) for number in range(VISITORS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def everybody() -> Any:
            return list(pool.map(Visitor.ask, visitors))

        everybody()
        news(history)
        began, busy = time.perf_counter(), time.process_time()
        everybody()
        took, cpu = 1000 * (time.perf_counter() - began), 1000 * (time.process_time() - busy)
        return {f"page_{VISITORS}_visitors_ms": took, f"page_{VISITORS}_visitors_cpu_ms": cpu}
