"""Finding a group of one epoch, and one all-reduce with it, measured. Knows neither gradients nor state."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

from hivemind.averaging.allreduce import AveragingMode
from hivemind.averaging.control import StepControl
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.key_manager import GroupKeyManager
from hivemind.averaging.matchmaking import Matchmaking, MatchmakingException
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import get_logger

from ttt.swarm.averaging.allreduce import CheckedRunner
from ttt.swarm.averaging.group_messages import (
    ID_BYTES,
    gathered_epoch,
    group_key,
    parse_gathered,
    why_not_follow,
    why_not_join,
    why_not_together,
)
from ttt.swarm.averaging.progress import believed_epoch, parse_claims, voices
from ttt.swarm.averaging.traffic import RECEIVED, SENT, count, counted
from ttt.swarm.dht.access import AccessPolicy, Action, AllowAll

logger = get_logger(__name__)
COUNT_SECONDS, COUNT_TIMEOUT = 0.5, 5.0
FEWEST_TRAINERS = 2
MOST_REDIRECTS = 4
"""Leaders that may send us on to the next one, before we look for ourselves again."""
LIAR_SECONDS, MOST_LIARS = 120, 1000
"""Seconds for which a leader is not asked again after it announced an invalid group or a peer that our access policy
refuses; and the number of such leaders that are remembered."""


class EpochKeys(GroupKeyManager):
    """Groups of one epoch only: its number is part of the key under which peers look for each other."""

    epoch = 0

    @property
    def current_key(self) -> str:
        return group_key(self.prefix, self.epoch)

    async def get_averagers(self, group_key: str, only_active: bool) -> list[tuple[PeerID, float]]:
        """Those that look for this group; the records are unsigned, and one that names no peer is passed over."""
        found = await super().get_averagers(group_key, only_active)
        return [(peer, expires) for peer, expires in found if len(peer.to_bytes()) in ID_BYTES]

    async def update_key_on_group_assembled(self, group_info: GroupInfo) -> None:
        """Nothing: hivemind shuffles peers among several groups here, and cannot where one has an auxiliary more."""


class EpochMatchmaking(Matchmaking):
    """Looks for a group of the epoch that the step gathers, and begins as soon as everybody who trains is in it.

    hivemind begins after matchmaking_time, or with a fixed number of peers. Here that time can be generous: a group
    that is full begins at once, and it is full when it has as many trainers as the DHT just now knows of the run.
    Auxiliary peers take nobody's place, and a group of them with a single trainer is none. Nobody waits for them, so
    that they may come late: once the others are at a later epoch, such a peer looks no further.
    """

    def __init__(self, *args: Any, access: AccessPolicy | None = None, **kwargs: Any) -> None:
        self.access = access or AllowAll()
        self._trainers, self._redirects, self._liars = FEWEST_TRAINERS, 0, dict[str, float]()
        super().__init__(*args, **kwargs)
        keys: GroupKeyManager = self.group_key_manager
        self.group_key_manager: EpochKeys = EpochKeys(keys.dht, keys.prefix, keys.group_bits, keys.target_group_size)
        self._progress_key = keys.prefix.removesuffix("_grad_averager").removesuffix("_state_averager") + "_progress"

    @property
    def target_group_size(self) -> int:
        return self._trainers + self._auxiliaries()

    @target_group_size.setter
    def target_group_size(self, most: int | None) -> None:
        self.most_trainers = most

    @property
    def min_group_size(self) -> int:
        return FEWEST_TRAINERS + self._auxiliaries()

    @min_group_size.setter
    def min_group_size(self, _fewest: int) -> None:
        """hivemind's constructor sets it; ours is fixed."""

    def _auxiliaries(self) -> int:
        """Of those who are in our group now, we included."""
        own = self.step_control.data_for_gather if self.step_control is not None else b""
        everybody = [own, *(request.gather for request in self.current_followers.values())]
        return sum(one.mode == AveragingMode.AUX for one in map(parse_gathered, everybody) if one is not None)

    @contextlib.asynccontextmanager
    async def looking_for_group(self, step_control: StepControl) -> AsyncIterator[None]:
        async with super().looking_for_group(step_control):
            self.group_key_manager.epoch = gathered_epoch(step_control.data_for_gather)
            self._trainers = self.most_trainers or 1 << 30  # nobody is counted yet
            counting = asyncio.create_task(self._watch_trainers(step_control))
            try:
                yield
            finally:
                counting.cancel()

    async def _watch_trainers(self, step: StepControl) -> None:
        """How many there are, and whether they have gone on."""
        own = parse_gathered(step.data_for_gather)
        helps = own is not None and own.mode == AveragingMode.AUX
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                found = await asyncio.wait_for(
                    self.group_key_manager.dht.get(self._progress_key, latest=True, return_future=True), COUNT_TIMEOUT
                )
                claims = parse_claims(found.value) if found is not None and isinstance(found.value, dict) else []
                known = max(len(claims), FEWEST_TRAINERS)
                self._trainers = min(known, self.most_trainers or known)
                looking = step.triggered and not step.done() and not self.assembled_group.done()
                if helps and looking and believed_epoch(voices(claims)) > self.group_key_manager.epoch:
                    step.set_exception(MatchmakingException("the others have gone on"))
            if step.done():  # hivemind overlooks a cancelled step that it hears of a moment before it is marked as one
                if not self.assembled_group.done():
                    self.assembled_group.set_exception(MatchmakingException("this step is over"))
                return
            await asyncio.sleep(COUNT_SECONDS)

    def _check_reasons_to_reject(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader | None:
        rejected = super()._check_reasons_to_reject(request, context)
        if rejected is None and (why := why_not_follow(request, self.group_key_manager.epoch)):
            logger.debug(f"{context.remote_id} was not taken into a group: {why}")
            return averaging_pb2.MessageFromLeader(code=averaging_pb2.PROTOCOL_VIOLATION)
        return rejected

    async def _request_join_group(self, leader: PeerID) -> GroupInfo | None:
        """A leader that lied is left alone for a while: whoever always comes first could hold us up in every round."""
        with self._redirected() as redirects:
            if redirects > MOST_REDIRECTS or not self._may_lead(str(leader)):
                return None
            try:
                return await super()._request_join_group(leader)
            except ValueError as error:  # an answer that hivemind cannot read
                self._distrust(leader, repr(error))
            except Exception as error:  # a broken connection, or a state that has changed meanwhile: nobody's lie
                logger.debug(f"{leader} could not be asked: {error!r}")
            return None

    async def follower_assemble_group(self, leader: PeerID, msg: averaging_pb2.MessageFromLeader) -> GroupInfo | None:
        own, own_data = self.peer_id, self.step_control.data_for_gather
        why = why_not_join(msg, leader=leader, own=own, own_data=own_data)
        if why := why or why_not_together(msg, own=own, access=self.access):
            self._distrust(leader, why)
            return None
        return await super().follower_assemble_group(leader, msg)

    def _may_lead(self, peer: str) -> bool:
        left_alone = self._liars.get(peer, -math.inf) > time.monotonic()
        return not left_alone and bool(self.access.allows(peer, Action.JOIN_GROUP))

    def _distrust(self, leader: PeerID, why: str) -> None:
        if len(self._liars) >= MOST_LIARS:
            self._liars.clear()
        self._liars[str(leader)] = time.monotonic() + LIAR_SECONDS
        logger.warning(f"{leader} announced a group that cannot be joined: {why}; not asked again for {LIAR_SECONDS} s")

    @contextlib.contextmanager
    def _redirected(self) -> Iterator[int]:
        self._redirects += 1
        try:
            yield self._redirects - 1
        finally:
            self._redirects -= 1


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
