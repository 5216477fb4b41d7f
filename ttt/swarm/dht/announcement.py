"""The announcement of a run: a record in the DHT that the coordinator signs and every peer reads.

Peers repeat it, signed by themselves and naming the coordinator, so that a newcomer who was given the address of any
peer finds the coordinator's own announcement: the newcomer trusts that peer, and the peer trusts the coordinator.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Announcement(BaseModel):
    """What the coordinator states about the run, signed with the key of its address."""

    model_config = ConfigDict(extra="ignore", strict=True)

    generation: int = Field(ge=0, le=10**6)
    """Counts roll-backs: peers of different generations never meet."""
    coordinator: str = Field(default="", max_length=64)
    """libp2p id of the coordinator, in the announcement of a peer that repeats it; empty in the coordinator's own."""
