"""The rows of a run's history as plain dataclasses. Knows neither SQL nor the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

UnixTime = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Unix time, up to the year 9999: what can be shown as a date."""
EventKind = Literal["started", "joined", "left", "rollback", "problem"]


@dataclass(frozen=True)
class Point:
    """The swarm at one time."""

    time: UnixTime
    """Unix time."""
    step: int
    samples: int
    """Samples behind the parameters: steps times the global batch, plus what is gathered for the next."""
    loss: float | None
    """Median of the peers' mean losses; None while nobody reports one."""
    loss_low: float | None
    """Quarter of the peers lie below, and above `loss_high`; the least and largest of merged points."""
    loss_high: float | None
    peers: float
    """Peers that train."""
    samples_per_second: float | None
    learning_rate: float | None


@dataclass(frozen=True)
class Snapshot:
    """The swarm just now, for the progress bar."""

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
    """Records of the last reading that were dropped."""


@dataclass(frozen=True)
class Contributor:
    """One peer's contribution as credited, beside what it claims."""

    peer_id: str
    name: str
    """As the peer wrote it: escape it where it is shown (`names.safe_name`)."""
    device: str
    first_seen: UnixTime
    last_seen: UnixTime
    step: int
    samples: float
    seconds: float
    """Of computing."""
    claimed_samples: float
    claimed_seconds: float
    samples_per_second: float
    client_mode: bool
    auxiliary: bool
    cursor: str = ""
    """Where the ledger stands with this peer (`leaderboard.Cursor`), so that it goes on after a restart."""


@dataclass(frozen=True)
class Event:
    time: UnixTime
    kind: EventKind
    peer_id: str = ""
    text: str = ""


@dataclass(frozen=True)
class CheckpointEntry:
    time: UnixTime
    step: int
    samples: int
    loss: float | None
    path: str
    """Relative to the history's folder."""
    checksum: str
    """SHA-256 of its manifest or weights, as the keeper of checkpoints gives it."""
    url: str = ""
    """On the Hub; empty before it is uploaded."""


@dataclass(frozen=True)
class SampleImage:
    """The image that the model generates for one of the run's fixed prompts at a checkpoint."""

    time: UnixTime
    step: int
    prompt: str
    path: str
    """Relative to the history's folder."""
