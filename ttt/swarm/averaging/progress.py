"""Tracks the progress of the swarm from records that may lie. Independent of tensors.

An *epoch* is hivemind's word for one optimizer step of the whole swarm. Each trainer publishes a signed claim: its
epoch, and the samples that it has accumulated toward the next one.

hivemind believes the highest epoch that any peer claims: one signed record with epoch=10**6 makes every peer look for
a state that does not exist, for as long as the record lives. Here a claim is credible if others are near it:

- the reference is the highest epoch that a quarter of the reporting peers, and at least two, have reached;
- one epoch ahead of the reference is credible: some peer is always the first to step;
- further ahead is not. A peer that really is further ahead waits for the others (`RobustProgressTracker.is_ahead`);
- with two peers no majority exists. The leading one is credible as far as it can have come since the two last agreed,
  because no peer steps more often than once in MIN_EPOCH_SECONDS.

Liars that make up a quarter of the peers can still mislead the swarm: anyone can join an open run with many keys.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""No peer makes its optimizer steps faster than this. With a small global batch it could, and two peers that start at
the same time would be too far apart to find each other credible before they had heard of each other."""
MAX_AGE_SECONDS = 120.0
"""A claim made longer ago counts as made then: hivemind extrapolates its samples to now."""


@dataclass(frozen=True)
class Claim:
    """What one peer states about its progress."""

    peer_id: str
    epoch: int
    samples: int
    samples_per_second: float
    time: float
    client_mode: bool


@dataclass(frozen=True)
class SwarmProgress:
    """The progress of the swarm, from the credible claims."""

    step: int
    """The highest credible epoch."""
    samples_accumulated: int
    """Toward the next step, at most the global batch."""
    peers: int
    clients: int
    refused: tuple[str, ...] = ()
    """libp2p ids of peers whose epoch is not credible."""
    answered: bool = True
    """False if the DHT did not answer in time."""


def credible_epoch(epochs: Sequence[int], *, max_lead: int = 0) -> int:
    """Return the highest credible epoch, from one claim for each peer; 0 if there is none.

    max_lead: with two claims, the number of epochs that the higher one may be ahead beyond the usual one.
    """
    if not epochs:
        return 0
    ranked = sorted(epochs, reverse=True)
    quorum = max(2, math.ceil(QUORUM * len(ranked)))  # one peer alone must not move the reference
    reference = ranked[min(quorum, len(ranked)) - 1]
    limit = reference + 1 + (max_lead if len(ranked) == 2 else 0)
    return max(epoch for epoch in ranked if epoch <= limit)


def parse_claims(entries: Mapping[Any, Any]) -> list[Claim]:
    """Return the well-formed claims of a DHT answer, subkey -> object with `.value`."""
    claims = []
    for subkey, entry in entries.items():
        try:
            owner, record = owner_of(subkey), ProgressRecord.model_validate(getattr(entry, "value", None))
        except (ValidationError, ValueError):
            continue  # also a peer that has left: it overwrites its record with None
        rate, client = record.samples_per_second, record.client_mode
        claims.append(Claim(owner, record.epoch, record.samples_accumulated, rate, record.time, client))
    return claims


def clamp_claims(claims: Iterable[Claim], target_batch_size: int, now: float) -> list[Claim]:
    """Limit the numbers to what one peer can have done: one global batch, one batch a second, and a time near now."""
    # hivemind adds up the samples, and extrapolates them by speed and age: it would end the step at once.
    return [
        replace(
            claim,
            samples=min(claim.samples, target_batch_size),
            samples_per_second=min(claim.samples_per_second, target_batch_size / MIN_EPOCH_SECONDS),
            time=min(max(claim.time, now - MAX_AGE_SECONDS), now + CLOCK_SLACK),
        )
        for claim in claims
    ]


def assess_claims(
    claims: Sequence[Claim], *, target_batch_size: int, now: float, max_lead: int = 0
) -> tuple[SwarmProgress, list[Claim]]:
    """Return the progress of the swarm, and the credible claims that it is made of."""
    epoch = credible_epoch(counted_epochs(claims), max_lead=max_lead)
    credible = clamp_claims((claim for claim in claims if claim.epoch <= epoch), target_batch_size, now)
    samples = sum(claim.samples for claim in credible if claim.epoch == epoch)
    refused = tuple(claim.peer_id for claim in claims if claim.epoch > epoch)
    clients = sum(claim.client_mode for claim in credible)
    return SwarmProgress(epoch, min(samples, target_batch_size), len(credible), clients, refused), credible


def counted_epochs(claims: Sequence[Claim]) -> list[int]:
    """Return the epochs of peers that others can reach, or of all peers if there is none.

    Clients offer no state. If they counted, many of them could make the others look for a state that no peer has.
    """
    return [claim.epoch for claim in claims if not claim.client_mode] or [claim.epoch for claim in claims]


def read_claims(dht: DHT, run: str, *, timeout: float = 10.0) -> list[Claim] | None:
    """Return the claims of a run's peers, or None if the DHT does not answer within `timeout` seconds."""
    answer = result_in_time(dht.get(f"{run}_progress", latest=True, return_future=True), timeout)
    entries = getattr(answer, "value", None)
    if answer is LATE:
        return None
    return parse_claims(entries) if isinstance(entries, Mapping) else []


def read_progress(dht: DHT, run: str, target_batch_size: int, *, timeout: float = 10.0) -> SwarmProgress:
    """Return the progress of a run as an observer sees it. Never waits longer than `timeout` seconds."""
    claims = read_claims(dht, run, timeout=timeout)
    if not claims:
        return SwarmProgress(0, 0, 0, 0, answered=claims is not None)
    return assess_claims(claims, target_batch_size=target_batch_size, now=get_dht_time())[0]


def read_credible_epoch(dht: DHT, run: str) -> int | None:
    """Return the epoch of a run as an observer sees it, or None if no peer reports progress."""
    epochs = counted_epochs(read_claims(dht, run) or [])
    return credible_epoch(epochs) if epochs else None


class RobustProgressTracker(ProgressTracker):
    """hivemind's tracker, given only credible claims."""

    clock: Callable[[], float] = staticmethod(time.monotonic)
    _agreed_at: float | None = None
    """When all peers were last at most one epoch apart."""
    _credible: float = math.inf
    """The credible epoch at the last look; infinite if there are too few peers to judge."""

    @property
    def is_ahead(self) -> bool:
        """True if this peer is so far ahead that its epoch is not credible to the others."""
        fetched = self.fetched_global_progress_this_epoch.is_set()
        return fetched and self.local_progress.epoch > self._credible + 1

    def _parse_swarm_progress_data(self, metadata: Any) -> GlobalTrainingProgress:
        if not isinstance(metadata, Mapping):
            return super()._parse_swarm_progress_data(None)
        claims, now = parse_claims(metadata), get_dht_time()
        max_lead = self._max_lead([claim.epoch for claim in claims if not claim.client_mode])
        progress, credible = assess_claims(claims, target_batch_size=self.target_batch_size, now=now, max_lead=max_lead)
        # With two peers neither can know that it is the one too far ahead.
        self._credible = progress.step if len(claims) > 2 else math.inf
        entries = {
            claim.peer_id: ValueWithExpiration(_as_record(claim), now + self.metadata_expiration) for claim in credible
        }
        return super()._parse_swarm_progress_data(entries or None)

    def read_credible_epoch(self) -> int | None:
        """Return the epoch of the swarm, read from the DHT now, or None if no peer reports progress."""
        epochs = counted_epochs(read_claims(self.dht, self.prefix) or [])
        return credible_epoch(epochs, max_lead=self._max_lead(epochs)) if epochs else None

    def _max_lead(self, epochs: Sequence[int]) -> int:
        """Return how far the leading one of two peers may be ahead, given the time since they agreed.

        Doubled, so that a stalled peer still accepts one that trains at full speed.
        """
        now = self.clock()
        if self._agreed_at is None or len(epochs) != 2 or max(epochs) - min(epochs) <= 1:
            self._agreed_at = now
        return int(2 * (now - self._agreed_at) / MIN_EPOCH_SECONDS)


def _as_record(claim: Claim) -> dict[str, Any]:
    """Return the claim in the form that hivemind's tracker parses."""
    return {
        "peer_id": claim.peer_id.encode(),
        "epoch": claim.epoch,
        "samples_accumulated": claim.samples,
        "samples_per_second": float(claim.samples_per_second),
        "time": float(claim.time),
        "client_mode": claim.client_mode,
    }
