"""How far the swarm is, from records that may lie: which epoch to believe, and a tracker that does. Knows no tensors.

hivemind believes the highest epoch that anybody claims: one signed record with epoch=10**6 sends every peer looking for
a state that nobody has, for as long as the record lives. Here a claim counts when others are near it:

- the reference is the highest epoch that a quarter of the reporting peers, and at least two, have reached;
- one epoch ahead of it is believed: somebody is always the first to step;
- further ahead is not. A peer that really is ahead alone waits for the others (`CautiousTracker.runs_ahead`);
- of two peers no majority can tell which one lies; there the one ahead is believed as far as it can have come since the
  two were last together: no peer steps more often than every MIN_EPOCH_SECONDS.

Liars who are a quarter of the peers can still lead the swarm astray: keys are free in an open run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hivemind.optim.progress_tracker import GlobalTrainingProgress, ProgressTracker
from hivemind.utils import get_dht_time
from hivemind.utils.timed_storage import ValueWithExpiration
from pydantic import ValidationError

from ttt.swarm.dht.records import CLOCK_SLACK, LATE, owner_of, result_in_time
from ttt.swarm.dht.validation import ProgressRecord

if TYPE_CHECKING:
    from hivemind.dht import DHT

QUORUM = 0.25
MIN_EPOCH_SECONDS = 1.0
"""No peer takes its optimizer steps faster than this. Alone with a small batch it could, and two that begin at the same
time would be too far apart to believe each other before they had heard of each other."""
OLDEST_SECONDS = 120.0


@dataclass(frozen=True)
class Claim:
    """What one peer says of its progress."""

    peer_id: str
    epoch: int
    samples: int
    samples_per_second: float
    time: float
    client_mode: bool


@dataclass(frozen=True)
class SwarmProgress:
    """What is believed of all claims together."""

    epoch: int
    samples_accumulated: int
    """Towards the next epoch, at most the global batch."""
    peers: int
    clients: int
    refused: tuple[str, ...] = ()
    """libp2p ids of peers whose epoch is not believed."""
    answered: bool = True
    """False where the DHT did not answer in time."""


def believed_epoch(epochs: Sequence[int], *, patience: int = 0) -> int:
    """The epoch of the swarm, from one claim a peer; 0 for none. `patience`: epochs that the higher of two claims may
    lie ahead of the other."""
    if not epochs:
        return 0
    ranked = sorted(epochs, reverse=True)
    needed = max(2, math.ceil(QUORUM * len(ranked)))
    reference = ranked[min(needed, len(ranked)) - 1]
    ahead = reference + 1 + (patience if len(ranked) == 2 else 0)
    return max(epoch for epoch in ranked if epoch <= ahead)


def parse_claims(entries: Mapping[Any, Any]) -> list[Claim]:
    """The well-formed claims of a DHT answer, subkey -> object with `.value`."""
    claims = []
    for subkey, entry in entries.items():
        try:
            owner, record = owner_of(subkey), ProgressRecord.model_validate(getattr(entry, "value", None))
        except (ValidationError, ValueError):
            continue  # also a peer that said goodbye: its value is None
        rate, client = record.samples_per_second, record.client_mode
        claims.append(Claim(owner, record.epoch, record.samples_accumulated, rate, record.time, client))
    return claims


def sane(claims: Iterable[Claim], target_batch_size: int, now: float) -> list[Claim]:
    """Numbers cut down to what one peer can have done: a batch, a batch a second, a time near now."""
    return [
        replace(
            claim,
            samples=min(claim.samples, target_batch_size),
            samples_per_second=min(claim.samples_per_second, target_batch_size / MIN_EPOCH_SECONDS),
            time=min(max(claim.time, now - OLDEST_SECONDS), now + CLOCK_SLACK),
        )
        for claim in claims
    ]


def judge(
    claims: Sequence[Claim], *, target_batch_size: int, now: float, patience: int = 0
) -> tuple[SwarmProgress, list[Claim]]:
    """(what is believed, the claims that are)."""
    epoch = believed_epoch(voices(claims), patience=patience)
    kept = sane((claim for claim in claims if claim.epoch <= epoch), target_batch_size, now)
    samples = sum(claim.samples for claim in kept if claim.epoch == epoch)
    refused = tuple(claim.peer_id for claim in claims if claim.epoch > epoch)
    clients = sum(claim.client_mode for claim in kept)
    return SwarmProgress(epoch, min(samples, target_batch_size), len(kept), clients, refused), kept


def voices(claims: Sequence[Claim]) -> list[int]:
    """The epochs that count: of peers that others can reach, or of all where there is no such peer."""
    return [claim.epoch for claim in claims if not claim.client_mode] or [claim.epoch for claim in claims]


def read_claims(dht: DHT, run: str, *, timeout: float = 10.0) -> list[Claim] | None:
    """What peers say of a run's progress; None where the DHT did not answer in `timeout` seconds."""
    answer = result_in_time(dht.get(f"{run}_progress", latest=True, return_future=True), timeout)
    entries = getattr(answer, "value", None)
    if answer is LATE:
        return None
    return parse_claims(entries) if isinstance(entries, Mapping) else []


def read_progress(dht: DHT, run: str, target_batch_size: int, *, timeout: float = 10.0) -> SwarmProgress:
    """The progress of a run as an onlooker sees it; never waits longer than `timeout` seconds."""
    claims = read_claims(dht, run, timeout=timeout)
    if not claims:
        return SwarmProgress(0, 0, 0, 0, answered=claims is not None)
    return judge(claims, target_batch_size=target_batch_size, now=get_dht_time())[0]


def newest_believable(dht: DHT, run: str) -> int | None:
    """The epoch of the swarm as an onlooker sees it; None where nobody reports progress."""
    epochs = voices(read_claims(dht, run) or [])
    return believed_epoch(epochs) if epochs else None


class CautiousTracker(ProgressTracker):
    """hivemind's tracker, which hears only claims that are believed."""

    _together: float | None = None
    """When there were last no two peers more than a step apart."""
    _believed: float = math.inf
    """The epoch of the swarm at the last look; infinite where there are too few to tell."""

    @property
    def runs_ahead(self) -> bool:
        """Whether the others do not believe that this peer is as far as it is."""
        known = self.fetched_global_progress_this_epoch.is_set()
        return known and self.local_progress.epoch > self._believed + 1

    def _parse_swarm_progress_data(self, metadata: Any) -> GlobalTrainingProgress:
        if not isinstance(metadata, Mapping):
            return super()._parse_swarm_progress_data(None)
        claims, now = parse_claims(metadata), get_dht_time()
        patience = self._patience([claim.epoch for claim in claims if not claim.client_mode])
        state, kept = judge(claims, target_batch_size=self.target_batch_size, now=now, patience=patience)
        self._believed = state.epoch if len(claims) > 2 else math.inf
        believed = {
            claim.peer_id: ValueWithExpiration(_as_value(claim), now + self.metadata_expiration) for claim in kept
        }
        return super()._parse_swarm_progress_data(believed or None)

    def newest_believable(self) -> int | None:
        """The epoch of the swarm, read anew; None where nobody reports progress."""
        epochs = voices(read_claims(self.dht, self.prefix) or [])
        return believed_epoch(epochs, patience=self._patience(epochs)) if epochs else None

    def _patience(self, epochs: Sequence[int]) -> int:
        """Epochs that the one ahead of two can have gone since they were together; twice as many, or who stands still
        would never believe who goes on as fast as can be.
        """
        now = time.monotonic()
        if self._together is None or len(epochs) != 2 or max(epochs) - min(epochs) <= 1:
            self._together = now
        return int(2 * (now - self._together) / MIN_EPOCH_SECONDS)


def _as_value(claim: Claim) -> dict[str, Any]:
    return {
        "peer_id": claim.peer_id.encode(),
        "epoch": claim.epoch,
        "samples_accumulated": claim.samples,
        "samples_per_second": float(claim.samples_per_second),
        "time": float(claim.time),
        "client_mode": claim.client_mode,
    }
