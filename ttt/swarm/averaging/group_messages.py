"""Validation of the messages that form an averaging group. Independent of the network.

Every member gathers a few bytes, `Gathered`, which its leader passes on to all others:

    follower -> leader    JoinRequest(gather=..., client_mode=...)                   check_join_request
    leader -> follower    MessageFromLeader(BEGIN_ALLREDUCE, ordered_peer_ids=...,   check_group, check_members
                                            gathered=...)

Both come from strangers, so they are checked here before anything else reads them. The checks return the reason why a
message is refused, or "" if it is valid.
"""

from __future__ import annotations

from dataclasses import dataclass

from hivemind.averaging.allreduce import AveragingMode
from hivemind.p2p import PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MSGPackSerializer

from ttt.swarm.dht.access import AccessPolicy, Action
from ttt.swarm.dht.records import MAX_STEP

MAX_GATHERED_BYTES = 256  # an honest peer sends about ten
MAX_MEMBERS = 4096
ID_BYTES = range(16, 65)
GROUP_ID_BYTES = range(8, 65)


def group_key(prefix: str, epoch: int) -> str:
    """Return the DHT key under which the peers of one averager find each other for one step.

    hivemind's key has group bits instead of the step; the ending ".0b" is what its `is_valid_group` demands.
    """
    return f"{prefix}-{epoch}.0b"


@dataclass(frozen=True)
class Gathered:
    """What one member states to all others before a round."""

    mode: AveragingMode
    epoch: int


def parse_gathered(data: bytes) -> Gathered | None:
    """Parse hivemind's `[bandwidth, mode, epoch]`; return None for anything else.

    The bandwidth must be None: hivemind gives a peer with more of it a larger share to reduce, so a peer that claimed
    an extreme one would average everything.
    """
    if len(data) > MAX_GATHERED_BYTES:
        return None
    try:
        bandwidth, mode, packed = MSGPackSerializer.loads(data)
        epoch = MSGPackSerializer.loads(packed)
        # Types are compared exactly: True is an instance of int, too.
        if bandwidth is not None or type(mode) is not int or type(epoch) is not int or not 0 <= epoch <= MAX_STEP:
            return None
        return Gathered(AveragingMode(mode), epoch)
    except Exception:  # msgpack raises a dozen different errors for malformed bytes
        return None


def gathered_epoch(data: bytes) -> int:
    """Return the step, or 0 if the data is invalid."""
    gathered = parse_gathered(data)
    return gathered.epoch if gathered else 0


def check_join_request(request: averaging_pb2.JoinRequest, epoch: int) -> str:
    """Return why a follower cannot join a group of this step, or ""."""
    gathered = parse_gathered(request.gather)
    if gathered is None:
        return "its gathered data is invalid"
    if gathered.epoch != epoch:
        return f"it averages step {gathered.epoch}, not {epoch}"
    if (gathered.mode == AveragingMode.CLIENT) != request.client_mode:
        return "it contradicts itself on whether it is a client"
    return ""


def check_group(
    message: averaging_pb2.MessageFromLeader,
    *,
    leader: PeerID,
    own: PeerID,
    own_data: bytes,
) -> str:
    """Return why the group that a leader announces is invalid, or "". own_data: what this peer gathered."""
    members, gathered = list(message.ordered_peer_ids), list(message.gathered)
    if not 2 <= len(members) == len(gathered) <= MAX_MEMBERS or len(message.group_id) not in GROUP_ID_BYTES:
        return "its numbers of members and of gathered data do not fit, or its id is malformed"
    if len(set(members)) != len(members) or any(len(member) not in ID_BYTES for member in members):
        return "its members' ids are malformed or not unique"
    ids = [PeerID(member) for member in members]
    if own not in ids or leader not in ids:  # a leader must not send us into a group that it stays out of
        return "it lacks its leader or this peer"
    if gathered[ids.index(own)] != own_data:  # the others would expect another mode of us
        return "the data gathered by this peer was changed"
    epoch, modes = gathered_epoch(own_data), []
    for peer, data in zip(ids, gathered, strict=True):
        parsed = parse_gathered(data)
        if parsed is None or parsed.epoch != epoch:
            return f"the gathered data of {peer} is invalid, or of another step"
        modes.append(parsed.mode)
    return "" if any(mode != AveragingMode.CLIENT for mode in modes) else "all members are clients: none can reduce"


def check_members(message: averaging_pb2.MessageFromLeader, *, own: PeerID, access: AccessPolicy) -> str:
    """Return which member of an announced group our access policy refuses, or "".

    The leader may apply another policy. Only for groups that pass `check_group`.
    """
    for peer in map(PeerID, message.ordered_peer_ids):
        if peer != own and not (decision := access.allows(str(peer), Action.JOIN_GROUP)):
            return f"{peer} may not {Action.JOIN_GROUP.value}: {decision.reason}"
    return ""
