"""How many bytes of tensors this process sent and received. Knows neither what they mean nor to whom they go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

SENT, RECEIVED, STATE_SENT, STATE_RECEIVED = range(4)
_traffic: Any = None
"""The counters of this process's averager; shared with the process that trains."""


def count_into(traffic: Any) -> None:
    """Where this process counts its bytes: an array of four, of rounds and of whole states given and taken."""
    global _traffic
    _traffic = traffic


def count(direction: int, message: Any) -> None:
    if _traffic is not None:
        with _traffic.get_lock():
            _traffic[direction] += message.ByteSize()


async def counted(stream: AsyncIterator[Any], direction: int) -> AsyncIterator[Any]:
    async for message in stream:
        count(direction, message)
        yield message
