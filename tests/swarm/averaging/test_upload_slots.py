"""Who may take the state from a donor at the same time, and for how long."""

from __future__ import annotations

import asyncio
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.support.waiting import run_async
from ttt.swarm.averaging.state_transfer import MAX_UPLOADS, UploadSlots


def test_a_donor_serves_a_few_at_a_time_and_each_once() -> None:
    downloads, size = UploadSlots(), 1000

    async def serve(peer: str, going: asyncio.Event, end: asyncio.Event) -> bool:
        with downloads.acquire(peer, size) as free:
            going.set()
            if free:
                await end.wait()
            return free

    async def crowd() -> None:
        end, served = asyncio.Event(), []
        for number in range(MAX_UPLOADS + 2):
            going = asyncio.Event()
            served.append(asyncio.create_task(serve(f"peer {max(number - 1, 0)}", going, end)))  # the first asks twice
            await going.wait()
        assert [task.done() for task in served] == [False, True, *[False] * (MAX_UPLOADS - 1), True]
        end.set()
        assert sum(await asyncio.gather(*served)) == MAX_UPLOADS
        assert await serve("peer 0", asyncio.Event(), end), "who has left may come again"

    run_async(crowd())


def test_who_takes_the_state_without_end_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it reads nothing, so that the donor waits for ever inside of sending."""
    downloads = UploadSlots(grace_seconds=0.2)

    async def stuck() -> None:
        with downloads.acquire("a peer", 1000) as free:
            assert free
            await asyncio.Event().wait()

    async def ended() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.create_task(stuck()), 30)
        with downloads.acquire("a peer", 1000) as free:
            assert free

    run_async(ended())


def test_who_has_gone_keeps_the_place_until_the_copy_is_made() -> None:
    downloads = UploadSlots()

    async def gone(answer: asyncio.Future[None]) -> None:
        with downloads.acquire("a peer", 1000) as free:
            assert free
            downloads.hold_until(answer)
            await asyncio.shield(answer)

    async def again() -> list[bool]:
        answer = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(gone(answer))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        found = []
        for _ in range(2):
            with downloads.acquire("a peer", 1000) as free:
                found.append(free)
            if not answer.done():
                answer.set_result(None)
            await asyncio.sleep(0)
        return found

    assert run_async(again()) == [False, True]
