"""The announcement of a run: the record that its coordinator signs and every peer reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Announcement(BaseModel):
    """What the coordinator tells everybody, signed with the key of its address."""

    model_config = ConfigDict(extra="ignore", strict=True)

    generation: int = Field(ge=0, le=10**6)
    """Counts roll-backs: peers of different generations never meet."""
    founded: float = Field(allow_inf_nan=False)
    """Unix time."""
