"""The endpoints `/start_peer` and `/stop_peer`, for the owner only. Independent of the page's layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ttt.errors import TTTError
from ttt.ui.contribute.auth import OwnerAuth, request_context
from ttt.ui.contribute.form import FIELDS, read
from ttt.ui.contribute.redact import redact
from ttt.ui.contribute.service import PeerControl, with_defaults
from ttt.ui.contribute.status_view import summary


def add_peer_endpoints(peer: PeerControl, auth: OwnerAuth) -> None:
    """Add both to the current gr.Blocks."""

    def allow(request: gr.Request, password: str) -> None:
        decision = auth.check(request_context(request), str(password or ""))
        if not decision:
            raise gr.Error(decision.reason, print_exception=False)

    def run_action(action: Callable[[], None]) -> dict[str, Any]:
        try:
            action()
        except TTTError as error:
            raise gr.Error(redact(str(error)), print_exception=False) from None
        return summary(peer.view())

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
        """Start this machine's peer, which keeps running after the call. For the owner only.

        Args:
            run: run file or its URL; empty: that of the page
            initial_peers: addresses of peers of the run, separated by spaces; empty: those of the page
            name: your name on the leaderboard
            micro_batch: samples at once; 0: automatic
            hours: stop after so many hours; 0: never
            stop_at: stop at this time, for example "2026-12-24 18:00" (UTC)
            gpu_gib: most GPU memory to use, in GiB; 0: all free memory
            limit: most samples per second; 0: no limit
            reachable: true if others can connect to this machine
            port: on which they connect; 0: any
            password: the owner password, if one is set
        Returns:
            status: phase, state and counts of the peer
        """
        allow(request, password)
        values = locals()
        given = [values[name] for name in FIELDS]
        return run_action(lambda: peer.start(with_defaults(read(given), peer.defaults)))

    def stop_peer(password: str = "", request: gr.Request = None) -> dict[str, Any]:  # type: ignore[assignment]
        """Stop this machine's peer once it has finished its round. For the owner only.

        Args:
            password: the owner password, if one is set
        Returns:
            status: phase, state and counts of the peer
        """
        allow(request, password)
        return run_action(peer.stop)

    for endpoint in (start_peer, stop_peer):
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None, api_visibility="public")
