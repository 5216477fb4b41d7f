"""Matchmaking: finds a group of peers that average the same step. Independent of gradients and state.

hivemind's protocol, for one round: every reachable peer declares in the DHT, under the group key, that it looks for a
group until some time. A peer asks those that declared an earlier time to lead it, and may itself lead those that ask.
A leader starts the all-reduce when its group is complete, or when its time is over.

Changed here:
- the group key contains the step. hivemind's does not, so that in delayed mode rounds of different steps match each
  other, wait until the timeout, and are logged as a success;
- a group is complete when it has as many trainers as the DHT currently knows of the run. hivemind's starts at the end
  of `matchmaking_time`, or with a fixed number of peers. Here that time can be generous: a complete group starts at
  once;
- auxiliary peers do not count toward the group size, and a group needs at least two trainers. Trainers do not wait for
  auxiliary peers, so a late auxiliary peer gives up once the others have moved on to a later step;
- requests and announcements of strangers are validated, and the access policy is asked about leaders and members.
"""

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

from ttt.swarm.averaging.group_messages import (
    ID_BYTES,
    check_group,
    check_join_request,
    check_members,
    gathered_epoch,
    group_key,
    parse_gathered,
)
from ttt.swarm.averaging.progress import counted_epochs, credible_epoch, parse_claims
from ttt.swarm.dht.access import AccessPolicy, Action, AllowAll

logger = get_logger(__name__)
COUNT_SECONDS, COUNT_TIMEOUT = 0.5, 5.0
"""Seconds between two counts of the trainers, and for the DHT's answer to one."""
MIN_TRAINERS = 2
UNLIMITED = 1 << 30
MAX_REDIRECTS = 4
"""Leaders in a row that may each redirect us to another one; then we search again ourselves."""
BLACKLIST_SECONDS, MAX_BLACKLISTED = 120, 1000
"""Seconds for which a leader is not asked again after it announced an invalid group or a member that our access policy
refuses; and the number of such leaders that are remembered."""


class EpochKeys(GroupKeyManager):
    """Group keys that contain the step (hivemind's "epoch")."""

    epoch = 0

    @property
    def current_key(self) -> str:
        return group_key(self.prefix, self.epoch)

    async def get_averagers(self, group_key: str, only_active: bool) -> list[tuple[PeerID, float]]:
        """List the peers that look for this group. The records are unsigned; those with a malformed id are skipped."""
        averagers = await super().get_averagers(group_key, only_active)
        return [(peer, expires) for peer, expires in averagers if len(peer.to_bytes()) in ID_BYTES]

    async def update_key_on_group_assembled(self, group_info: GroupInfo) -> None:
        """Disabled: hivemind reshuffles buckets here, which fails when groups differ in auxiliary peers."""


class EpochMatchmaking(Matchmaking):
    """Looks for a group of one step, and starts as soon as every known trainer is in it."""

    def __init__(
        self,
        *args: Any,
        access: AccessPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        self.access = access or AllowAll()
        self._trainers, self._redirects, self._blacklisted = MIN_TRAINERS, 0, dict[str, float]()
        super().__init__(*args, **kwargs)
        keys: GroupKeyManager = self.group_key_manager
        self.group_key_manager: EpochKeys = EpochKeys(keys.dht, keys.prefix, keys.group_bits, keys.target_group_size)
        self._progress_key = keys.prefix.removesuffix("_grad_averager").removesuffix("_state_averager") + "_progress"

    # hivemind's code reads both sizes at many places; as properties they follow the number of known peers.

    @property
    def target_group_size(self) -> int:
        return self._trainers + self._auxiliaries()

    @target_group_size.setter
    def target_group_size(self, limit: int | None) -> None:
        self.max_trainers = limit

    @property
    def min_group_size(self) -> int:
        return MIN_TRAINERS + self._auxiliaries()

    @min_group_size.setter
    def min_group_size(self, _size: int) -> None:
        """Ignored: hivemind's constructor sets it."""

    def _auxiliaries(self) -> int:
        """Count the auxiliary peers in our group at this moment, this peer included."""
        own = self.step_control.data_for_gather if self.step_control is not None else b""
        members = [own, *(request.gather for request in self.current_followers.values())]
        return sum(member.mode == AveragingMode.AUX for member in map(parse_gathered, members) if member is not None)

    @contextlib.asynccontextmanager
    async def looking_for_group(self, step_control: StepControl) -> AsyncIterator[None]:
        async with super().looking_for_group(step_control):
            self.group_key_manager.epoch = gathered_epoch(step_control.data_for_gather)
            self._trainers = self.max_trainers or UNLIMITED  # until they are counted, no group is complete
            counting = asyncio.create_task(self._watch_trainers(step_control))
            try:
                yield
            finally:
                counting.cancel()

    async def _watch_trainers(self, step: StepControl) -> None:
        """Count the trainers of the run while we look for a group, and end a search that has become pointless."""
        own = parse_gathered(step.data_for_gather)
        auxiliary = own is not None and own.mode == AveragingMode.AUX
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                answer = await asyncio.wait_for(
                    self.group_key_manager.dht.get(self._progress_key, latest=True, return_future=True), COUNT_TIMEOUT
                )
                claims = parse_claims(answer.value) if answer is not None and isinstance(answer.value, dict) else []
                known = max(len(claims), MIN_TRAINERS)
                self._trainers = min(known, self.max_trainers or known)
                searching = step.triggered and not step.done() and not self.assembled_group.done()
                if auxiliary and searching and credible_epoch(counted_epochs(claims)) > self.group_key_manager.epoch:
                    step.set_exception(MatchmakingException("the others have moved on to a later step"))
            # hivemind misses a step that is cancelled if the news arrives just before the step is marked as cancelled:
            # it would search until the deadline, and the next step would have to wait for that.
            if step.done():
                if not self.assembled_group.done():
                    self.assembled_group.set_exception(MatchmakingException("this step is over"))
                return
            await asyncio.sleep(COUNT_SECONDS)

    def _check_reasons_to_reject(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> averaging_pb2.MessageFromLeader | None:
        rejection = super()._check_reasons_to_reject(request, context)
        if rejection is None and (reason := check_join_request(request, self.group_key_manager.epoch)):
            logger.debug(f"{context.remote_id} was not accepted as a follower: {reason}")
            return averaging_pb2.MessageFromLeader(code=averaging_pb2.PROTOCOL_VIOLATION)
        return rejection

    async def _request_join_group(self, leader: PeerID) -> GroupInfo | None:
        """Ask a leader, unless it is blacklisted. hivemind calls this again for each redirection.

        A leader that announced an invalid group is not asked for a while: if it always came first, it could hold us up
        in every round.
        """
        with self._redirected() as redirects:
            if redirects > MAX_REDIRECTS or not self._may_lead(str(leader)):
                return None
            try:
                return await super()._request_join_group(leader)
            except ValueError as error:  # an answer that hivemind cannot parse
                self._blacklist(leader, repr(error))
            except Exception as error:
                # A broken connection, or our own state has changed meanwhile. hivemind would end the whole search.
                logger.debug(f"{leader} could not be asked: {error!r}")
            return None

    async def follower_assemble_group(self, leader: PeerID, msg: averaging_pb2.MessageFromLeader) -> GroupInfo | None:
        own, own_data = self.peer_id, self.step_control.data_for_gather
        reason = check_group(msg, leader=leader, own=own, own_data=own_data)
        if reason := reason or check_members(msg, own=own, access=self.access):
            self._blacklist(leader, reason)
            return None
        return await super().follower_assemble_group(leader, msg)

    def _may_lead(self, peer: str) -> bool:
        blacklisted = self._blacklisted.get(peer, -math.inf) > time.monotonic()
        return not blacklisted and bool(self.access.allows(peer, Action.JOIN_GROUP))

    def _blacklist(self, leader: PeerID, reason: str) -> None:
        if len(self._blacklisted) >= MAX_BLACKLISTED:  # peer ids are free to make: bound the memory for them
            self._blacklisted.clear()
        self._blacklisted[str(leader)] = time.monotonic() + BLACKLIST_SECONDS
        logger.warning(f"{leader} announced a group that we cannot join: {reason}. Ignored for {BLACKLIST_SECONDS} s")

    @contextlib.contextmanager
    def _redirected(self) -> Iterator[int]:
        """Count how deep the calls of `_request_join_group` are nested."""
        self._redirects += 1
        try:
            yield self._redirects - 1
        finally:
            self._redirects -= 1
