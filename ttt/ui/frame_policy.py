"""Which other sites may show the app inside a page of theirs. Knows no tabs.

Whoever may frame a page can lay something else over its buttons and have the owner press Start without knowing it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HUB_PAGES = ("https://huggingface.co",)
"""The Hub shows every Space inside its own page. Other Spaces may not: they are anybody's."""


def framers(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Origins besides our own: the Hub's in a Space, nobody's elsewhere."""
    return HUB_PAGES if environment.get("SPACE_ID") else ()


class Framing:
    """ASGI middleware: tells browsers with every answer (Content-Security-Policy Level 3, frame-ancestors)."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...] = ()) -> None:
        self._app = app
        self._policy = " ".join(("frame-ancestors 'self'", *allowed)).encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", self._policy)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, tell if scope["type"] == "http" else send)
