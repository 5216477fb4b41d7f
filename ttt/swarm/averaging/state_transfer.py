"""Taking a state from a donor that may lie: whom to ask first, and checking what comes while it comes.

Every donor says for itself how new its state is. So nobody counts as newer than what the swarm's progress makes
believable; those who claim that or more are asked in random order, those who failed us before after the others. A
state that does not fit is dropped with its donor, and the next one is asked. Knows no optimizer: the owner says which
tensors and numbers it expects.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hivemind.averaging.averager import DecentralizedAverager
from hivemind.compression import deserialize_torch_tensor
from hivemind.p2p import PeerID
from hivemind.proto import averaging_pb2, runtime_pb2
from hivemind.utils import MPFuture, MSGPackSerializer, get_logger
from hivemind.utils.asyncio import aiter_with_timeout
from hivemind.utils.streaming import combine_from_streaming
from torch import Tensor

from ttt.errors import Cancelled, CheckpointError
from ttt.swarm.averaging.allreduce import misfit
from ttt.swarm.averaging.progress import believed_epoch
from ttt.swarm.averaging.traffic import STATE_RECEIVED, count
from ttt.swarm.averaging.training_state import TrainingState, check_state
from ttt.swarm.dht.access import AccessPolicy, Action
from ttt.swarm.dht.node import parse_donors
from ttt.swarm.dht.records import MAX_STEP

logger = get_logger(__name__)
STATE_FORMAT = 1
SLACK = 1
"""Steps that a donor may be ahead of what the swarm's progress says: it may just have made one."""
POLL_SECONDS = 0.5
PATIENCE = 3
"""Times the timeout of one donor, after which a search is given up; donors may be slow on purpose."""

SLOWEST_DONOR = 1 << 20
"""Bytes a second with which a donor is still waited for: 8 Mbit/s, at which the paper's model takes 12 minutes."""


@dataclass
class IncomingState:
    """A state on its way in; CheckpointError at the first thing that does not fit."""

    own: Mapping[str, Any]
    """Name -> our own tensor or number, of the shape and type that is expected."""
    lowest: int
    highest: int
    epoch: int = -1
    names: list[str] = field(default_factory=list)
    scalars: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    _parts: list[runtime_pb2.Tensor] = field(default_factory=list)
    _bytes: int = 0

    def add(self, message: averaging_pb2.DownloadData) -> None:
        if not self.names:
            self._begin(message.metadata)
        part = message.tensor_part
        if part.dtype and self._parts:  # a type marks the first part of the next tensor
            self._finish_tensor()
        elif self._parts and not part.buffer:
            raise CheckpointError("it sends nothing, again and again")
        self._bytes += len(part.buffer)
        if self._bytes > self._expected.numel() * self._expected.element_size():
            raise CheckpointError(f"it sends more than {self._name} holds")
        self._parts.append(part)

    def finish(self) -> TrainingState:
        if not self.names:
            raise CheckpointError("it has none to give")
        if self._parts:
            self._finish_tensor()
        state = TrainingState(self.epoch, self.tensors, self.scalars)
        check_state(self.own, state)
        return state

    @property
    def _name(self) -> str:
        if len(self.tensors) == len(self.names):
            raise CheckpointError("it sends more tensors than it named")
        return self.names[len(self.tensors)]

    @property
    def _expected(self) -> Tensor:
        return self.own[self._name]

    def _begin(self, metadata: bytes) -> None:
        about = MSGPackSerializer.loads(metadata) if metadata else None
        if not isinstance(about, dict) or about.get("format") != STATE_FORMAT:
            raise CheckpointError("it runs another version of this program")
        epoch, names, scalars = about.get("epoch"), about.get("names"), about.get("scalars")
        if type(epoch) is not int or not self.lowest <= epoch <= self.highest:
            raise CheckpointError(f"its step is {epoch!r}; {self.lowest} to {self.highest} can be believed")
        tensors = {name for name, value in self.own.items() if isinstance(value, Tensor)}
        if not isinstance(names, list) or len(names) != len(tensors) or {*map(str, names)} != tensors:
            raise CheckpointError("its tensors are not those of our model and optimizer")
        if not isinstance(scalars, dict) or not {*map(str, scalars)} <= self.own.keys():
            raise CheckpointError("its numbers are not those of our optimizer")
        self.epoch, self.names, self.scalars = epoch, names, scalars

    def _finish_tensor(self) -> None:
        name, own = self._name, self._expected
        whole = combine_from_streaming(self._parts)
        if whole.compression != runtime_pb2.CompressionType.NONE or tuple(whole.size) != tuple(own.shape):
            raise CheckpointError(f"{name} is {list(whole.size)}, expected {list(own.shape)}, uncompressed")
        tensor = deserialize_torch_tensor(whole).detach()
        if wrong := misfit(tensor, own.shape, own.dtype):
            raise CheckpointError(f"{name}: {wrong}")
        self.tensors[name] = tensor
        self._parts, self._bytes = [], 0


def state_bytes(state: Mapping[str, Any]) -> int:
    """Of its tensors."""
    return sum(one.numel() * one.element_size() for one in state.values() if isinstance(one, Tensor))


def in_order(donors: Mapping[Any, float], newest: int, failures: Mapping[Any, int]) -> list[Any]:
    """Whom to ask first: the newest, but nobody counts as newer than `newest`; among equals whoever failed us least."""
    claims = {donor: min(claim, newest) for donor, claim in donors.items() if math.isfinite(claim)}
    return sorted(claims, key=lambda donor: (-claims[donor], failures.get(donor, 0), random.random()))


class Taking(DecentralizedAverager):
    """An averager that takes a state from other peers, one donor after the other until a state fits."""

    access: AccessPolicy
    stopped: Callable[[], bool] = staticmethod(lambda: False)
    """Whether the peer is asked to leave, which ends its waiting."""
    _failures: Counter[PeerID]
    expected_state: Callable[[], dict[str, Any]]
    """Name -> tensor or number, as a donor must deliver them; of each kind of averager."""

    def take_state(self, lowest: int, newest: int | None, timeout: float | None) -> TrainingState | None:
        """A donor's state of step `lowest` or later; None where nobody gave one that fits.

        newest: the believable step of the swarm; None where nobody reports progress. timeout: seconds for one donor,
        beside those in which a state of this size comes at `SLOWEST_DONOR`. Raises Cancelled when asked to stop
        meanwhile.
        """
        future = MPFuture()
        if timeout is not None:
            timeout += state_bytes(self.expected_state()) / SLOWEST_DONOR
        limits = {"future": future, "timeout": timeout, "lowest": lowest, "newest": newest}
        self._outer_pipe.send(("_load_state_from_peers", [], limits))
        deadline = math.inf if timeout is None else time.monotonic() + (PATIENCE + 1) * timeout
        while time.monotonic() < deadline:
            try:
                return future.result(POLL_SECONDS)
            except TimeoutError:
                if self.stopped():
                    raise Cancelled("stopped while taking the state from another peer") from None
        return None

    async def _load_state_from_peers(
        self, future: MPFuture, timeout: float | None = None, lowest: int = 0, newest: int | None = None
    ) -> None:
        """In the averager's process."""
        state = None
        try:
            state = await self._ask_donors(lowest, newest, timeout)
        except Exception as error:
            logger.warning(f"No donor could be asked: {error!r}")
        finally:
            future.set_result(state)

    async def _ask_donors(self, lowest: int, newest: int | None, timeout: float | None) -> TrainingState | None:
        key = f"{self._matchmaking.group_key_manager.prefix}.all_averagers"
        found = await asyncio.wait_for(self.dht.get(key, latest=True, return_future=True), timeout)
        donors = parse_donors(found.value if found is not None else None)
        donors.pop(self.peer_id, None)
        if newest is None:  # nobody trains: the donors are all there is to judge by
            newest = believed_epoch([int(min(max(claim, 0), MAX_STEP)) for claim in donors.values()])
        began = time.monotonic()
        for donor in in_order(donors, newest, self._failures):
            if timeout is not None and time.monotonic() - began > (PATIENCE - 1) * timeout:
                break
            if not self.access.allows(str(donor), Action.STATE_DOWNLOAD):
                continue
            try:
                incoming = IncomingState(self.expected_state(), lowest, newest + SLACK)
                return await asyncio.wait_for(self._download(donor, incoming), timeout)
            except Exception as error:
                self._failures[donor] += 1
                logger.warning(f"{donor} gave no state that fits: {error or type(error).__name__}")
        return None

    async def _download(self, donor: PeerID, incoming: IncomingState) -> TrainingState:
        stub = self.get_stub(self._p2p, donor, namespace=self.prefix)
        stream = await stub.rpc_download_state(averaging_pb2.DownloadRequest())
        async for message in aiter_with_timeout(stream, self.next_chunk_timeout):
            count(STATE_RECEIVED, message)
            incoming.add(message)
        return incoming.finish()
