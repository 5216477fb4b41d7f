"""The endpoints `/start_peer` and `/stop_peer`, for the owner alone. Knows no page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ttt.errors import TTTError
from ttt.ui.contribute.auth import Owner, caller_of
from ttt.ui.contribute.form import FIELDS, read
from ttt.ui.contribute.redact import redact
from ttt.ui.contribute.service import Desk, with_defaults
from ttt.ui.contribute.status_view import summary


def add_peer_endpoints(desk: Desk, owner: Owner) -> None:
    """Add both to the current gr.Blocks."""

    def allow(request: gr.Request, password: str) -> None:
        verdict = owner.check(caller_of(request), str(password or ""))
        if not verdict:
            raise gr.Error(verdict.why, print_exception=False)

    def act(deed: Callable[[], None]) -> dict[str, Any]:
        try:
            deed()
        except TTTError as error:
            raise gr.Error(redact(str(error)), print_exception=False) from None
        return summary(desk.view())

    def start_peer(
        run: str = "",
        initial_peers: str = "",
        name: str = "",
        micro_batch: int = 0,
        hours: float = 0.0,
        stop_at: str = "",
        gpu_gib: float = 0.0,
        limit: float = 0.0,
        reachable: bool = False,
        port: int = 0,
        password: str = "",
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> dict[str, Any]:
        """Start this machine's peer, which goes on without the caller. For the owner alone.

        Args:
            run: the run's file, or the URL of its file; empty: that of the page
            initial_peers: addresses that the coordinator prints, separated by spaces; empty: those of the page
            name: on the leaderboard
            micro_batch: samples at once; 0: what fits
            hours: stop after so many; 0: no end
            stop_at: stop then, such as "2026-12-24 18:00" (UTC)
            gpu_gib: GiB of GPU memory to take at most; 0: what is free
            limit: samples per second not to exceed; 0: none
            reachable: whether others can connect to this machine
            port: on which they can; 0: any
            password: the owner's, where one is set
        Returns:
            status: phase, state and counts of the peer
        """
        allow(request, password)
        given = locals()
        asked = with_defaults(read([given[field] for field in FIELDS]), desk.defaults)
        return act(lambda: desk.start(asked))

    def stop_peer(password: str = "", request: gr.Request = None) -> dict[str, Any]:  # type: ignore[assignment]
        """Let this machine's peer finish its round and leave. For the owner alone.

        Args:
            password: the owner's, where one is set
        Returns:
            status: phase, state and counts of the peer
        """
        allow(request, password)
        return act(desk.stop)

    for endpoint in (start_peer, stop_peer):
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None, api_visibility="public")
