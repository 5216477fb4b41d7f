"""Restricts which sites may show the app in a frame. Independent of Gradio.

A site that frames the page could cover its buttons and make the owner press Start unknowingly (clickjacking).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HUB_PAGES = ("https://huggingface.co",)
"""The Hub shows every Space in a frame of its own page. Other Spaces are not trusted."""


def allowed_frame_ancestors(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Origins besides our own: the Hub's in a Space, none elsewhere."""
    return HUB_PAGES if environment.get("SPACE_ID") else ()


class FramePolicy:
    """ASGI middleware that adds the header (Content-Security-Policy Level 3, frame-ancestors) to every response."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...] = ()) -> None:
        self._app = app
        self._policy = " ".join(("frame-ancestors 'self'", *allowed)).encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", self._policy)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_policy if scope["type"] == "http" else send)
