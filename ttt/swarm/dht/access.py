"""The access policy: one object decides whether a peer may act in the swarm. Independent of protocols and tensors.

The policy is asked before a DHT record is stored (`dht.validation`), before a peer joins a group (`averaging.averagers`
for followers, `averaging.matchmaking` for leaders and fellow members), before its part of a tensor is averaged
(`averaging.averagers`), and before a state is sent to it or requested from it (`averaging.averagers`).

Peers are identified by their libp2p id, the digest of the key that signs their records (`identity.py`), so a decision
about an id holds for every action of that peer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """Everything a peer needs permission for. The values complete the sentence "PEER may not ..." in logs."""

    DHT_RECORD = "publish a record"
    JOIN_GROUP = "join an averaging group"
    GRADIENT_PART = "send a part to average"
    STATE_DOWNLOAD = "download the state, or be its donor"


@dataclass(frozen=True)
class Decision:
    allowed: bool
    reason: str = ""
    """Why the action is refused, for the log and for the owner of the peer."""

    def __bool__(self) -> bool:
        return self.allowed


ALLOWED = Decision(True)


class AccessPolicy(ABC):
    """Decides which actions a peer may take.

    The DHT and each averager run in forked processes with a copy of the policy of their own. A policy whose answers
    change while the peer runs must therefore get its data from outside the process, for example from a file.
    """

    @abstractmethod
    def allows(self, peer_id: str, action: Action) -> Decision:
        """Decide whether the peer (base58 id) may take the action. Must neither block nor raise."""


class AllowAll(AccessPolicy):
    """Allows everything: the default."""

    def allows(self, peer_id: str, action: Action) -> Decision:
        return ALLOWED
