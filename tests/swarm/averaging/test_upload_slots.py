"""Upload slots: how many clients a donor serves at the same time, and for how long."""

from __future__ import annotations

import asyncio
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.support.waiting import run_async
from ttt.swarm.averaging.state_transfer import MAX_UPLOADS, UploadSlots


def test_a_donor_serves_a_few_at_a_time_and_each_once() -> None:
    slots, size = UploadSlots(), 1000

    async def serve(peer: str, going: asyncio.Event, end: asyncio.Event) -> bool:
        with slots.acquire(peer, size) as acquired:
            going.set()
            if acquired:
                await end.wait()
            return acquired

    async def crowd() -> None:
        end, served = asyncio.Event(), []
        for number in range(MAX_UPLOADS + 2):
            going = asyncio.Event()
            served.append(asyncio.create_task(serve(f"peer {max(number - 1, 0)}", going, end)))  # the first asks twice
            await going.wait()
        assert [task.done() for task in served] == [False, True, *[False] * (MAX_UPLOADS - 1), True]
        end.set()
        assert sum(await asyncio.gather(*served)) == MAX_UPLOADS
        assert await serve("peer 0", asyncio.Event(), end), "a client that has finished may download again"

    run_async(crowd())


def test_a_download_that_never_ends_loses_its_slot() -> None:
    """Even if the client reads nothing, so that the donor waits inside of sending."""
    slots = UploadSlots(grace_seconds=0.2)

    async def stuck() -> None:
        with slots.acquire("a peer", 1000) as acquired:
            assert acquired
            await asyncio.Event().wait()

    async def ended() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.create_task(stuck()), 30)
        with slots.acquire("a peer", 1000) as acquired:
            assert acquired

    run_async(ended())


def test_a_client_that_has_disconnected_keeps_the_slot_until_the_snapshot_is_complete() -> None:
    slots = UploadSlots()

    async def gone(snapshot: asyncio.Future[None]) -> None:
        with slots.acquire("a peer", 1000) as acquired:
            assert acquired
            slots.hold_until(snapshot)
            await asyncio.shield(snapshot)

    async def again() -> list[bool]:
        snapshot = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(gone(snapshot))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        results = []
        for _ in range(2):
            with slots.acquire("a peer", 1000) as acquired:
                results.append(acquired)
            if not snapshot.done():
                snapshot.set_result(None)
            await asyncio.sleep(0)
        return results

    assert run_async(again()) == [False, True]
