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
class Cursor:
    """What is known of one peer since its last record."""

    started: float = -1.0
    time: float = 0.0
    """By our clock."""
    samples_total: int = 0
    seconds_total: float = 0.0
    pending_samples: float = 0.0
    """Claimed and not yet credited."""
    pending_seconds: float = 0.0
    witnessed: float = 0.0
    """Samples that others have seen and that are not yet credited."""
    evidence: float = 0.0
    """The median of the witnesses' sums."""
    offsets: dict[str, float] = field(default_factory=dict)
    """As a witness: what to add to its sum of a peer to compare it with other witnesses; lost at a restart."""


class CreditCalculator:
    """Turns records into credit: call `settle` after each reading of the DHT."""

    def __init__(self, peers: Mapping[str, Contributor], target_batch_size: int) -> None:
        """peers: as stored in the history, so that a restarted coordinator continues."""
        self.target = max(1, target_batch_size)
        self.peers = dict(peers)
        self._cursors = {peer_id: _stored(peer.cursor) for peer_id, peer in peers.items()}
        self._step: int | None = None
        self._budget = 0.0

    def settle(self, records: Mapping[str, PeerRecord], step: int, now: float) -> list[Contributor]:
        """Credit the claims in these records (by peer id) and return the updated rows. step: the step of the swarm."""
        if self._step is not None:
            self._budget += max(0, step - self._step) * self.target
        self._step = step
        self._add_testimonies(records)
        for peer_id, record in records.items():
            self._add_claim(peer_id, record, now)
        witnessed = _has_witnesses(records)
        wanted = {peer_id: self._creditable(peer_id, witnessed) for peer_id in records}
        granted = share(wanted, self._budget)
        self._budget = min(self._budget - sum(granted.values()), BANKED_STEPS * self.target)
        for peer_id, samples in granted.items():
            self._credit(peer_id, samples)
        return [self.peers[peer_id] for peer_id in records]

    def _add_testimonies(self, records: Mapping[str, PeerRecord]) -> None:
        """Add to `witnessed` of each peer what the median witness has seen of it since the last reading."""
        witnesses = {peer_id: record for peer_id, record in records.items() if not record.client_mode}
        for peer_id, record in witnesses.items():
            cursor = self._cursors.setdefault(peer_id, Cursor())
            if cursor.started != record.started:
                cursor.offsets = {}  # its sums have restarted
        for peer_id in records:
            cursor = self._cursors.setdefault(peer_id, Cursor())
            sums = [
                total
                for other, record in witnesses.items()
                if other != peer_id and (total := self._testimony(other, record, peer_id)) is not None and record.seen
            ]
            if sums and (gained := median(sums) - cursor.evidence) > 0:
                cursor.evidence += gained
                witnessed = cursor.witnessed + TOLERANCE * gained * _shared_rounds(records)
                cursor.witnessed = min(witnessed, BANKED_STEPS * self.target)

    def _testimony(self, witness: str, record: PeerRecord, of: str) -> float | None:
        """Return the sum of a witness, relative to the others at its first record; None if its record is full."""
        total = record.seen.get(tag_of(of))
        if total is None:
            if len(record.seen) == MAX_SEEN:
                return None
            total = 0.0
        return total + self._cursors[witness].offsets.setdefault(of, self._cursors[of].evidence - total)

    def _add_claim(self, peer_id: str, record: PeerRecord, now: float) -> None:
        cursor = self._cursors.setdefault(peer_id, Cursor())
        peer = self.peers.get(peer_id) or _newcomer(peer_id, now)
        if cursor.started != record.started:
            passed = min(record.interval, FIRST_SECONDS) if cursor.started < 0 else now - cursor.time
            samples, seconds = record.samples_total, record.compute_seconds_total
        else:
            passed = now - cursor.time
            samples = max(0, record.samples_total - cursor.samples_total)
            seconds = max(0.0, record.compute_seconds_total - cursor.seconds_total)
        cursor.started, cursor.time = record.started, now
        cursor.samples_total, cursor.seconds_total = record.samples_total, record.compute_seconds_total
        cursor.pending_samples += samples
        cursor.pending_seconds += min(seconds, max(0.0, passed))
        if cursor.pending_samples > self.target * BANKED_STEPS:
            cursor.pending_seconds *= self.target * BANKED_STEPS / cursor.pending_samples
            cursor.pending_samples = self.target * BANKED_STEPS
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

    def _creditable(self, peer_id: str, witnessed: bool) -> float:
        cursor = self._cursors[peer_id]
        return min(cursor.pending_samples, cursor.witnessed) if witnessed else cursor.pending_samples

    def _credit(self, peer_id: str, samples: float) -> None:
        cursor, peer = self._cursors[peer_id], self.peers[peer_id]
        part = samples / cursor.pending_samples if cursor.pending_samples > 0 else 0.0
        seconds = cursor.pending_seconds * part
        cursor.pending_samples -= samples
        cursor.pending_seconds -= seconds
        cursor.witnessed = max(0.0, cursor.witnessed - samples)
        kept = {name: value for name, value in asdict(cursor).items() if name != "offsets"}
        self.peers[peer_id] = replace(
            peer, samples=peer.samples + samples, seconds=peer.seconds + seconds, cursor=json.dumps(kept)
        )


def share(wanted: Mapping[str, float], budget: float) -> dict[str, float]:
    """Divide the budget with max-min fairness: smallest requests first.

    No peer gets more than it requests, and all that get less get the same. The sum never exceeds the budget.
    """
    granted, left, waiting = {}, max(0.0, budget), len(wanted)
    for peer_id, request in sorted(wanted.items(), key=lambda item: item[1]):
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


def _stored(cursor: str) -> Cursor:
    try:
        return Cursor(**json.loads(cursor)) if cursor else Cursor()
    except (ValueError, TypeError):
        return Cursor()
