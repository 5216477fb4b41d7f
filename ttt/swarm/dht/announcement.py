"""The announcement of a run: a record in the DHT that the coordinator signs and every peer reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Announcement(BaseModel):
    """What the coordinator states about the run, signed with the key of its address."""

    model_config = ConfigDict(extra="ignore", strict=True)

    generation: int = Field(ge=0, le=10**6)
    """Counts roll-backs: peers of different generations never meet."""
