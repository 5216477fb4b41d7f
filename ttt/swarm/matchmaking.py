"""Finding a group of one epoch, and one all-reduce with it, measured. Knows neither gradients nor state."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

import hivemind.averaging.averager as hivemind_averager
from hivemind.averaging.control import StepControl
from hivemind.averaging.key_manager import GroupKeyManager
from hivemind.averaging.matchmaking import Matchmaking
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MSGPackSerializer

from ttt.swarm.reducer import CheckedRunner

COUNT_SECONDS, COUNT_TIMEOUT = 0.5, 5.0
SENT, RECEIVED, STATE_SENT, STATE_RECEIVED = range(4)
_traffic: Any = None
"""Bytes sent and received by the averager of this process; shared with the process that trains."""


def count_into(traffic: Any) -> None:
    """Where this process counts its bytes: an array of four, of rounds and of whole states given and taken."""
    global _traffic
    _traffic = traffic


class EpochKeys(GroupKeyManager):
    """Groups of one epoch only: its number is part of the key under which peers look for each other."""

    epoch = 0

    @property
    def current_key(self) -> str:
        return f"{self.prefix}-{self.epoch}.0b{self.group_bits}"


class EpochMatchmaking(Matchmaking):
    """Looks for a group of the epoch that the step gathers, and begins as soon as everybody who trains is in it.

    hivemind begins after matchmaking_time, or with a fixed number of peers. Here that time can be generous: a group
    that is full begins at once, and it is full when it has as many members as the DHT just now knows of the run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keys: GroupKeyManager = self.group_key_manager
        self.group_key_manager: EpochKeys = EpochKeys(keys.dht, keys.prefix, keys.group_bits, keys.target_group_size)
        self.most_peers: int | None = keys.target_group_size
        self.target_group_size: int | None = keys.target_group_size
        self._progress_key = keys.prefix.removesuffix("_grad_averager").removesuffix("_state_averager") + "_progress"

    @contextlib.asynccontextmanager
    async def looking_for_group(self, step_control: StepControl) -> AsyncIterator[None]:
        async with super().looking_for_group(step_control):
            self.group_key_manager.epoch = gathered_epoch(step_control.data_for_gather)
            self.target_group_size = self.most_peers
            counting = asyncio.create_task(self._count_peers())
            try:
                yield
            finally:
                counting.cancel()

    async def _count_peers(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                found = await asyncio.wait_for(
                    self.group_key_manager.dht.get(self._progress_key, latest=True, return_future=True), COUNT_TIMEOUT
                )
                entries = found.value.values() if found is not None and isinstance(found.value, dict) else ()
                known = sum(isinstance(entry.value, dict) for entry in entries)
                self.target_group_size = min(max(known, 2), self.most_peers or known + 2)
            await asyncio.sleep(COUNT_SECONDS)


class MeasuredRunner(CheckedRunner):
    """One all-reduce, checked; counts the bytes of its tensors."""

    def refused(self) -> list[tuple[str, str]]:
        """Groupmates that sent something unusable, and what."""
        return [*self.findings.bad_parts, *self.findings.bad_results]

    def _get_peer_stub(self, peer: PeerID) -> Any:
        return _CountingStub(super()._get_peer_stub(peer))

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in super().rpc_aggregate_part(counted(stream, RECEIVED), context):
            count(SENT, message)
            yield message


class _CountingStub:
    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def rpc_aggregate_part(self, parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
        return counted(await self._stub.rpc_aggregate_part(counted(parts, SENT)), RECEIVED)


def install() -> None:
    """Make hivemind use these classes; before any averager is made."""
    hivemind_averager.Matchmaking = EpochMatchmaking
    hivemind_averager.AllReduceRunner = MeasuredRunner


def gathered_epoch(data: bytes) -> int:
    """Epoch of a step's gathered data `[bandwidth, mode, epoch]`; 0 for nonsense, which another peer may send."""
    try:
        epoch = MSGPackSerializer.loads(MSGPackSerializer.loads(data)[2])
    except Exception:
        return 0
    return epoch if type(epoch) is int else 0


async def counted(stream: AsyncIterator[Any], direction: int) -> AsyncIterator[Any]:
    async for message in stream:
        count(direction, message)
        yield message


def count(direction: int, message: Any) -> None:
    if _traffic is not None:
        with _traffic.get_lock():
            _traffic[direction] += message.ByteSize()
