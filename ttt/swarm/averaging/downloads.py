"""Places for those who take the state from us. Knows no tensors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from ttt.swarm.averaging.state_transfer import SLOWEST_DONOR

MOST_DOWNLOADS = 4
"""At a time from one donor."""
DOWNLOAD_GRACE = 60.0
"""Seconds beside those in which the state goes at `SLOWEST_DONOR`."""


class Downloads:
    """Who is taking the state from us: a few at a time, each once, and nobody longer than a slow line needs.

    Each has a copy of the whole state meanwhile, so that a crowd, or one peer that asks again and again, could use up
    the memory of a donor. Whoever finds no place is answered nothing and asks the next donor.
    """

    def __init__(self) -> None:
        self._taking: set[str] = set()
        self._owed: dict[asyncio.Task[Any], asyncio.Future[Any]] = {}

    @contextlib.contextmanager
    def place(self, peer: str, size: int) -> Iterator[bool]:
        """Whether there is a place for `peer`; ends the task that serves it when its time is over, wherever that
        waits. size: bytes of the state."""
        serving = asyncio.current_task()
        if serving is None or peer in self._taking or len(self._taking) >= MOST_DOWNLOADS:
            yield False
            return
        self._taking.add(peer)
        ending = asyncio.get_running_loop().call_later(DOWNLOAD_GRACE + size / SLOWEST_DONOR, serving.cancel)
        try:
            yield True
        finally:
            ending.cancel()
            owed = self._owed.pop(serving, None)
            if owed is not None and not owed.done():
                owed.add_done_callback(lambda _: self._taking.discard(peer))
            else:
                self._taking.discard(peer)

    def owe(self, answer: asyncio.Future[Any]) -> None:
        """Whoever the current task serves keeps the place until `answer` is there, even if they have gone."""
        if (serving := asyncio.current_task()) is not None:
            self._owed[serving] = answer
