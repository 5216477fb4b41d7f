"""What the coordinator announces of its run, and remembers of it. Knows no network."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ttt.swarm.status import write_atomically

FILE = "generation.json"


class Announcement(BaseModel):
    """What the coordinator tells everybody, signed with the key of its address."""

    model_config = ConfigDict(extra="ignore", strict=True)

    generation: int = Field(ge=0, le=10**6)
    """Counts roll-backs: peers of different generations never meet."""
    founded: float = Field(allow_inf_nan=False)
    """Unix time."""


def read_generation(folder: Path) -> Announcement | None:
    """None where there is none yet."""
    try:
        return Announcement.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None


def write_generation(folder: Path, announcement: Announcement) -> None:
    write_atomically(folder / FILE, announcement.model_dump_json().encode())
