"""Credits peers with samples and computing time: their claims, limited to what other peers confirm.

Independent of the DHT and of the database. Three things limit what is credited of a claim:

- time: no peer can have computed for longer than the time since its last record, by our clock;
- witnesses: every peer that averages sees with what weight (samples) each groupmate took part, and reports the sums;
  the median of the witnesses' sums, with `TOLERANCE`, limits the credit of the peer. A peer cannot be its own witness;
- progress: a step is worth one global batch. The smallest claims are met first, so that a peer that claims too much
  gets what the others leave, which is what it really computed if the others are honest.

Computing time is credited in the same proportion as samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from ttt.swarm.dht.records import MAX_SEEN, PeerRecord, tag_of
from ttt.swarm.history.types import Contributor

TOLERANCE = 1.1
"""Allows for late parts, and for micro-batches that overshoot the global batch."""
FIRST_SECONDS = 300.0
"""Maximum computing time before the first record of a peer that is credited."""
BANKED_STEPS = 2
"""Steps whose samples can still be claimed later."""


@dataclass
class PeerAccount:
    """What is known of one peer since its last record."""

    started: float = -1.0
    time: float = 0.0
    """By our clock."""
    samples_total: int = 0
    seconds_total: float = 0.0
    pending_samples: float = 0.0
    """Claimed and not yet credited."""
    pending_seconds: float = 0.0
    observed_samples: float = 0.0
    """Samples that others have seen and that are not yet credited."""
    median_total: float = 0.0
    """The median of the witnesses' sums."""
    offsets: dict[str, float] = field(default_factory=dict)
    """As a witness: what to add to its sum of a peer to compare it with other witnesses; lost at a restart."""


_STORED_NAMES = {"observed_samples": "witnessed", "median_total": "evidence"}
"""Fields that have other names in the history, so that histories written before they were renamed still continue."""


class CreditCalculator:
    """Turns records into credit: call `update` after each reading of the DHT."""

    def __init__(self, peers: Mapping[str, Contributor], target_batch_size: int) -> None:
        """peers: as stored in the history, so that a restarted coordinator continues."""
        self.target = max(1, target_batch_size)
        self.peers = dict(peers)
        self._accounts = {peer_id: _from_json(peer.cursor) for peer_id, peer in peers.items()}
        self._step: int | None = None
        self._budget = 0.0

    def update(self, records: Mapping[str, PeerRecord], step: int, now: float) -> list[Contributor]:
        """Credit the claims in these records (by peer id) and return the updated rows. step: the step of the swarm."""
        if self._step is not None:
            self._budget += max(0, step - self._step) * self.target
        self._step = step
        self._add_observations(records)
        for peer_id, record in records.items():
            self._add_claim(peer_id, record, now)
        limited = _has_witnesses(records)
        requests = {peer_id: self._creditable(peer_id, limited=limited) for peer_id in records}
        granted = share(requests, self._budget)
        self._budget = min(self._budget - sum(granted.values()), BANKED_STEPS * self.target)
        for peer_id, samples in granted.items():
            self._credit(peer_id, samples)
        return [self.peers[peer_id] for peer_id in records]

    def _add_observations(self, records: Mapping[str, PeerRecord]) -> None:
        """Add to `observed_samples` of each peer what the median witness has seen of it since the last reading."""
        witnesses = {peer_id: record for peer_id, record in records.items() if not record.client_mode}
        for peer_id, record in witnesses.items():
            account = self._accounts.setdefault(peer_id, PeerAccount())
            if account.started != record.started:
                account.offsets = {}  # its sums have restarted
        for peer_id in records:
            account = self._accounts.setdefault(peer_id, PeerAccount())
            sums = [
                total
                for other, record in witnesses.items()
                if other != peer_id and (total := self._observation(other, record, peer_id)) is not None and record.seen
            ]
            if sums and (gained := median(sums) - account.median_total) > 0:
                account.median_total += gained
                observed_samples = account.observed_samples + TOLERANCE * gained * _shared_rounds(records)
                account.observed_samples = min(observed_samples, BANKED_STEPS * self.target)

    def _observation(self, witness: str, record: PeerRecord, of: str) -> float | None:
        """Return the sum of a witness, relative to the others at its first record; None if its record is full."""
        total = record.seen.get(tag_of(of))
        if total is None:
            if len(record.seen) == MAX_SEEN:
                return None
            total = 0.0
        return total + self._accounts[witness].offsets.setdefault(of, self._accounts[of].median_total - total)

    def _add_claim(self, peer_id: str, record: PeerRecord, now: float) -> None:
        account = self._accounts.setdefault(peer_id, PeerAccount())
        peer = self.peers.get(peer_id) or _newcomer(peer_id, now)
        if account.started != record.started:
            passed = min(record.interval, FIRST_SECONDS) if account.started < 0 else now - account.time
            samples, seconds = record.samples_total, record.compute_seconds_total
        else:
            passed = now - account.time
            samples = max(0, record.samples_total - account.samples_total)
            seconds = max(0.0, record.compute_seconds_total - account.seconds_total)
        account.started, account.time = record.started, now
        account.samples_total, account.seconds_total = record.samples_total, record.compute_seconds_total
        account.pending_samples += samples
        account.pending_seconds += min(seconds, max(0.0, passed))
        if account.pending_samples > self.target * BANKED_STEPS:
            account.pending_seconds *= self.target * BANKED_STEPS / account.pending_samples
            account.pending_samples = self.target * BANKED_STEPS
        self.peers[peer_id] = replace(
            peer,
            name=record.name or peer.name,
            device=record.device or peer.device,
            last_seen=now,
            step=record.step,
            claimed_samples=peer.claimed_samples + samples,
            claimed_seconds=peer.claimed_seconds + seconds,
            samples_per_second=record.samples_per_second,
            client_mode=record.client_mode,
            auxiliary=record.auxiliary,
        )

    def _creditable(self, peer_id: str, *, limited: bool) -> float:
        account = self._accounts[peer_id]
        return min(account.pending_samples, account.observed_samples) if limited else account.pending_samples

    def _credit(self, peer_id: str, samples: float) -> None:
        account, peer = self._accounts[peer_id], self.peers[peer_id]
        part = samples / account.pending_samples if account.pending_samples > 0 else 0.0
        seconds = account.pending_seconds * part
        account.pending_samples -= samples
        account.pending_seconds -= seconds
        account.observed_samples = max(0.0, account.observed_samples - samples)
        self.peers[peer_id] = replace(
            peer, samples=peer.samples + samples, seconds=peer.seconds + seconds, cursor=_to_json(account)
        )


def share(requests: Mapping[str, float], budget: float) -> dict[str, float]:
    """Divide the budget with max-min fairness: smallest requests first.

    No peer gets more than it requests, and all that get less get the same. The sum never exceeds the budget.
    """
    granted, left, waiting = {}, max(0.0, budget), len(requests)
    for peer_id, request in sorted(requests.items(), key=lambda item: item[1]):
        granted[peer_id] = min(max(0.0, request), left / waiting)
        left -= granted[peer_id]
        waiting -= 1
    return granted


def _has_witnesses(records: Mapping[str, PeerRecord]) -> bool:
    """Return True if at least two, and half, of the possible witnesses report: one must not deny all credit."""
    able = [record for record in records.values() if not record.client_mode]
    return sum(bool(record.seen) for record in able) >= max(2, len(able) / 2)


def _shared_rounds(records: Mapping[str, PeerRecord]) -> float:
    """Return the rounds of a peer per round that it shares with a given witness: more than 1 if groups are small."""
    sizes = [record.group_size for record in records.values() if record.group_size > 1]
    present = sum(not record.auxiliary for record in records.values())
    return max(1.0, (present - 1) / (median(sizes) - 1)) if sizes else 1.0


def _newcomer(peer_id: str, now: float) -> Contributor:
    return Contributor(peer_id, "", "", now, now, 0, 0.0, 0.0, 0.0, 0.0, 0.0, False, False)


def _to_json(account: PeerAccount) -> str:
    fields = asdict(account)
    del fields["offsets"]
    return json.dumps({_STORED_NAMES.get(name, name): value for name, value in fields.items()})


def _from_json(stored: str) -> PeerAccount:
    names = {stored_name: name for name, stored_name in _STORED_NAMES.items()}
    try:
        fields = json.loads(stored) if stored else {}
        return PeerAccount(**{names.get(name, name): value for name, value in fields.items()})
    except (ValueError, TypeError, AttributeError):
        return PeerAccount()
