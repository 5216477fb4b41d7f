"""What the dashboard needs of a run, and of whoever has it. Plain types; knows neither files nor gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ttt.swarm.history.summary import Axis, Curve, LeaderboardEntry, Progress, Series
from ttt.swarm.history.types import CheckpointEntry, Event, SampleImage

NOWHERE = (
    "this server has no run yet. Start one: `make swarm` for a demo on this machine, or "
    "`python -m ttt run new run.toml` and `python -m ttt coordinator --run run.toml` for your own"
)


@dataclass(frozen=True)
class RunName:
    """A run that can be chosen."""

    key: str
    """In the form, in the address and in the API."""
    label: str
    """For the list; a component of gradio shows it as text, so it is not escaped."""


@dataclass(frozen=True)
class RunData:
    """Everything that is shown of a run, thinned to what a screen can show."""

    key: str
    title: str
    version: str
    """Changes with the data, so that nobody reads or draws the same twice."""
    progress: Progress | None
    """None before the first reading of the swarm."""
    curves: Mapping[tuple[Series, Axis], Curve]
    places: Sequence[LeaderboardEntry]
    """By credited computing time."""
    checkpoints: Sequence[CheckpointEntry]
    """Newest first."""
    sample_images: Mapping[str, Sequence[SampleImage]]
    """Prompt -> oldest first."""
    events: Sequence[Event]
    """Newest first."""
    status: Mapping[str, Any] = field(default_factory=dict)
    """What the endpoint `/swarm_status` answers."""
    folder: Path = Path()
    """Base of the sample images' paths."""


class RunSource(Protocol):
    """Whoever has runs; `runs.RunFolders` is one."""

    def names(self) -> list[RunName]:
        """Those that go on now first, then the newest."""
        ...

    def read(self, key: str) -> RunData:
        """InvalidInput names the runs there are; SwarmError says what is wrong with a history. May be called by many
        at once and often: what did not change is the same object."""
        ...
