"""The rows of a run's history as dataclasses. Independent of SQL and of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

UnixTime = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Unix time up to the year 9999, the last that can be shown as a date."""
EventKind = Literal["started", "joined", "left", "rollback", "problem"]


@dataclass(frozen=True)
class Point:
    """The swarm at one time, a point of the curves."""

    time: UnixTime
    """Unix time."""
    step: int
    samples: int
    """Samples trained on: steps times the global batch, plus those accumulated for the next step."""
    loss: float | None
    """Median of the peers' mean losses; None if no peer reports one."""
    loss_low: float | None
    """Lower quartile over peers, as `loss_high` is the upper one; minimum and maximum in merged points."""
    loss_high: float | None
    peers: float
    """Peers that train."""
    samples_per_second: float | None
    learning_rate: float | None


@dataclass(frozen=True)
class Snapshot:
    """The newest state of the swarm, for the progress bar."""

    time: UnixTime
    step: int
    samples_accumulated: int
    """Towards the next step."""
    target_batch_size: int
    peers: int
    auxiliary_peers: Annotated[int, Field(validation_alias=AliasChoices("auxiliary_peers", "helpers"))]
    """Auxiliary peers, which average and do not compute."""
    samples_per_second: float | None
    loss: float | None
    learning_rate: float | None
    refused_records: int = 0
    """Records of the last reading that were refused."""


@dataclass(frozen=True)
class Contributor:
    """A peer's credited contribution, and what it claims itself."""

    peer_id: str
    name: str
    """Written by the peer: escape it before it is shown (`process.sanitize.safe_name`)."""
    device: str
    first_seen: UnixTime
    last_seen: UnixTime
    step: int
    samples: float
    seconds: float
    """Computing time, credited."""
    claimed_samples: float
    claimed_seconds: float
    samples_per_second: float
    client_mode: bool
    auxiliary: bool
    cursor: str = ""
    """State of crediting this peer (`coordinator.credit`), so that it continues after a restart."""


@dataclass(frozen=True)
class Event:
    """Something that happened to the run."""

    time: UnixTime
    kind: EventKind
    peer_id: str = ""
    text: str = ""


@dataclass(frozen=True)
class CheckpointEntry:
    """A saved checkpoint."""

    time: UnixTime
    step: int
    samples: int
    loss: float | None
    path: str
    """Relative to the history's folder."""
    checksum: str
    """SHA-256 of its manifest or weights."""
    url: str = ""
    """Of its copy on the Hub; empty until it is uploaded."""


@dataclass(frozen=True)
class SampleImage:
    """The image that the model generates for one of the run's fixed prompts at a checkpoint."""

    time: UnixTime
    step: int
    prompt: str
    path: str
    """Relative to the history's folder."""
