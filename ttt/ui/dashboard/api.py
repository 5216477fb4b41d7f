"""The endpoints `/swarm_status` and `/leaderboard`: public, answered from what the dashboard read. Knows no page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

import gradio as gr

from ttt.errors import InvalidInput, TTTError
from ttt.ui.dashboard.run_types import NOWHERE, RunData, RunSource
from ttt.ui.dashboard.view import ORDERS

MAX_LIMIT = 1000


def add_endpoints(source: RunSource) -> None:
    """Add both to the current gr.Blocks."""
    for function in make_endpoints(source):
        gr.api(function, api_name=function.__name__, queue=False, api_visibility="public")


def make_endpoints(source: RunSource) -> tuple[Callable[..., dict], Callable[..., list[dict]]]:
    """The functions behind the endpoints."""

    def swarm_status(run: str = "") -> dict:
        """How a training run stands: step, progress to the next one, loss, peers, speed, last checkpoint.

        Args:
            run: name of the run, as the dashboard lists it; empty: the one that goes on now, or the newest
        Returns:
            status: numbers, words and ISO dates; "active" is false where its coordinator does not run
        """
        return dict(_read(source, run).status)

    def leaderboard(run: str = "", order: str = "seconds", limit: int = 100) -> list[dict]:
        """Who contributed to a training run, counted from signed records as far as other peers confirm them.

        Names are as their owners wrote them: escape them where you show them, or take html_name.

        Args:
            run: name of the run; empty: the one that goes on now, or the newest
            order: seconds (of computing) or samples
            limit: so many places at most, from 1 to 1000
        Returns:
            places: best first, each with name, peer, seconds, samples, share, dates
        """
        if order not in ORDERS:
            raise gr.Error(f"order must be one of {', '.join(ORDERS)}; got {order!r:.40}", print_exception=False)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_LIMIT:
            raise gr.Error(f"limit must be a whole number from 1 to {MAX_LIMIT}", print_exception=False)
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
                raise InvalidInput(NOWHERE)
            run = names[0].key
        return source.read(run)
    except TTTError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
