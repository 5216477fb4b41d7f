"""The endpoints `/swarm_status` and `/leaderboard`: public, answered from what the dashboard has read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

import gradio as gr

from ttt.errors import InvalidInput, TTTError
from ttt.fields import check_whole_number
from ttt.ui.dashboard.runs import NO_RUNS, RunData, RunSource
from ttt.ui.dashboard.view import ORDERS

MAX_LIMIT = 1000


def add_endpoints(source: RunSource) -> None:
    """Add both to the current gr.Blocks."""
    for function in make_endpoints(source):
        gr.api(function, api_name=function.__name__, queue=False, api_visibility="public")


def make_endpoints(source: RunSource) -> tuple[Callable[..., dict], Callable[..., list[dict]]]:
    """The functions behind the endpoints."""

    def swarm_status(run: str = "") -> dict:
        """The state of a training run: step, progress to the next one, loss, peers, speed, last checkpoint.

        Args:
            run: name of the run, as the dashboard lists it; empty: the one that is running, or the newest
        Returns:
            status: numbers, text and ISO dates; "active" is false if its coordinator is not running
        """
        return dict(_read(source, run).status)

    def leaderboard(run: str = "", order: str = "seconds", limit: int = 100) -> list[dict]:
        """The participants of a training run, credited with work that other peers confirmed.

        Names are as their owners wrote them: escape them before you show them, or use html_name.

        Args:
            run: name of the run; empty: the one that is running, or the newest
            order: seconds (of training) or samples
            limit: the most rows to return, from 1 to 1000
        Returns:
            places: best first, each with name, peer, seconds, samples, share, dates
        """
        if order not in ORDERS:
            raise gr.Error(f"order must be one of {', '.join(ORDERS)}; got {order!r:.40}", print_exception=False)
        try:
            limit = check_whole_number("limit", limit, 1, MAX_LIMIT)
        except TTTError as error:
            raise gr.Error(str(error), print_exception=False) from None
        ranked = sorted(_read(source, run).places, key=lambda place: -getattr(place, order))
        return [
            {**asdict(place), "rank": rank, "first_seen": _iso(place.first_seen), "last_seen": _iso(place.last_seen)}
            for rank, place in enumerate(ranked[:limit], start=1)
        ]

    return swarm_status, leaderboard


def _read(source: RunSource, run: str) -> RunData:
    try:
        if not run:
            names = source.names()
            if not names:
                raise InvalidInput(NO_RUNS)
            run = names[0].key
        return source.read(run)
    except TTTError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
