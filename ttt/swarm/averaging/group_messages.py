"""What the members of an averaging group say of themselves, and what a leader says of a group. Knows no network.

Both come from strangers: whatever cannot be read is refused here, before anything is done with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hivemind.averaging.allreduce import AveragingMode
from hivemind.p2p import PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MSGPackSerializer

from ttt.swarm.dht.access import AccessPolicy, Action
from ttt.swarm.dht.records import MAX_STEP

MAX_GATHERED_BYTES = 256
MAX_MEMBERS = 4096
ID_BYTES = range(16, 65)
GROUP_ID_BYTES = range(8, 65)


def group_key(prefix: str, epoch: int) -> str:
    """Where in the DHT the peers of one averager look for a group of one epoch."""
    return f"{prefix}-{epoch}.0b"


@dataclass(frozen=True)
class Gathered:
    """What one member tells all others before a round."""

    mode: AveragingMode
    epoch: int


def parse_gathered(data: bytes) -> Gathered | None:
    """hivemind's `[bandwidth, mode, epoch]`; None for anything else.

    Peers of a run name no bandwidth: whoever did could make itself the one that averages everything.
    """
    if len(data) > MAX_GATHERED_BYTES:
        return None
    try:
        bandwidth, mode, packed = MSGPackSerializer.loads(data)
        epoch = MSGPackSerializer.loads(packed)
        if bandwidth is not None or type(mode) is not int or type(epoch) is not int or not 0 <= epoch <= MAX_STEP:
            return None
        return Gathered(AveragingMode(mode), epoch)
    except Exception:  # msgpack has a dozen errors for broken bytes
        return None


def gathered_epoch(data: bytes) -> int:
    """The epoch, or 0 for nonsense."""
    gathered = parse_gathered(data)
    return gathered.epoch if gathered else 0


def why_not_follow(request: averaging_pb2.JoinRequest, epoch: int) -> str:
    """Why a follower cannot be taken into a group of this epoch; "" where it can."""
    gathered = parse_gathered(request.gather)
    if gathered is None:
        return "what it says of itself cannot be read"
    if gathered.epoch != epoch:
        return f"it averages step {gathered.epoch}, not {epoch}"
    if (gathered.mode == AveragingMode.CLIENT) != request.client_mode:
        return "it contradicts itself on whether others can reach it"
    return ""


def why_not_join(
    message: averaging_pb2.MessageFromLeader,
    *,
    leader: PeerID,
    own: PeerID,
    own_data: bytes,
) -> str:
    """Why the group that a leader announces cannot be one of ours; "" where it can."""
    members, gathered = list(message.ordered_peer_ids), list(message.gathered)
    if not 2 <= len(members) == len(gathered) <= MAX_MEMBERS or len(message.group_id) not in GROUP_ID_BYTES:
        return "it is not as large as it says"
    if len(set(members)) != len(members) or any(len(member) not in ID_BYTES for member in members):
        return "its members cannot be told apart"
    ids = [PeerID(member) for member in members]
    if own not in ids or leader not in ids:
        return "we, or its leader, are not in it"
    if gathered[ids.index(own)] != own_data:
        return "what we said of ourselves was changed"
    return _why_not_members(ids, gathered, gathered_epoch(own_data))


def why_not_together(message: averaging_pb2.MessageFromLeader, *, own: PeerID, access: AccessPolicy) -> str:
    """Which member of an announced group may not be in one of ours, and why; "" where all may.

    Its leader need not have asked the same gate. Only for groups that `why_not_join` has nothing against.
    """
    for peer in map(PeerID, message.ordered_peer_ids):
        if peer != own and not (decision := access.allows(str(peer), Action.JOIN_GROUP)):
            return f"{peer} may not {Action.JOIN_GROUP.value}: {decision.reason}"
    return ""


def _why_not_members(ids: Sequence[PeerID], gathered: Sequence[bytes], epoch: int) -> str:
    modes = []
    for peer, data in zip(ids, gathered, strict=True):
        parsed = parse_gathered(data)
        if parsed is None or parsed.epoch != epoch:
            return f"what {peer} says of itself cannot be read, or is of another step"
        modes.append(parsed.mode)
    return "" if any(mode != AveragingMode.CLIENT for mode in modes) else "nobody in it could average"
