"""Who contributed how much: what peers claim, cut down to what others can confirm. Knows neither the DHT nor SQL.

A claim is credited as far as three things allow:

- time: nobody computes for longer than passed on our clock since we last heard of them;
- witnesses: every peer that averages sees with what weight (samples) each groupmate took part, and reports the sums;
  the median of the witnesses' sums, with `TOLERANCE`, bounds what the peer is credited. A peer is no witness of itself;
- progress: each step is worth the global batch, no more. The smallest claims are met first, so that who claims too
  much gets what the others left, which is what it really computed when the others are honest.

Computing time is credited in the same proportion as the samples that it is said to have brought.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from ttt.swarm.dht.records import MAX_SEEN, PeerRecord, tag_of
from ttt.swarm.history.types import Contributor

TOLERANCE = 1.1
"""Late parts and micro-batches that overshoot the global batch."""
FIRST_SECONDS = 300.0
"""Of computing before we first heard of a peer that count."""
BANKED_STEPS = 2
"""Steps whose samples wait for somebody to claim them."""


@dataclass
class Cursor:
    """Where the calculator stands with one peer."""

    started: float = -1.0
    time: float = 0.0
    """By our clock."""
    samples_total: int = 0
    seconds_total: float = 0.0
    pending_samples: float = 0.0
    """Claimed and not yet credited."""
    pending_seconds: float = 0.0
    witnessed: float = 0.0
    """Samples that others saw and that are not yet credited."""
    evidence: float = 0.0
    """The median of the witnesses' sums."""
    offsets: dict[str, float] = field(default_factory=dict)
    """As a witness: what to add to its sum of a peer to compare it with others'; not kept over a restart."""


class CreditCalculator:
    """Turns records into credit; one `settle` after each reading of the DHT."""

    def __init__(self, peers: Mapping[str, Contributor], target_batch_size: int) -> None:
        """peers: as stored in the history, so that a restarted monitor goes on."""
        self.target = max(1, target_batch_size)
        self.peers = dict(peers)
        self._cursors = {peer_id: _stored(peer.cursor) for peer_id, peer in peers.items()}
        self._step: int | None = None
        self._budget = 0.0

    def settle(self, records: Mapping[str, PeerRecord], step: int, now: float) -> list[Contributor]:
        """records: by peer id; step: the swarm's, as believed. Returns the rows of these peers as they are now."""
        if self._step is not None:
            self._budget += max(0, step - self._step) * self.target
        self._step = step
        self._hear_witnesses(records)
        for peer_id, record in records.items():
            self._take_claim(peer_id, record, now)
        witnessed = _has_witnesses(records)
        wanted = {peer_id: self._creditable(peer_id, witnessed) for peer_id in records}
        granted = share(wanted, self._budget)
        self._budget = min(self._budget - sum(granted.values()), BANKED_STEPS * self.target)
        for peer_id, samples in granted.items():
            self._credit(peer_id, samples)
        return [self.peers[peer_id] for peer_id in records]

    def _hear_witnesses(self, records: Mapping[str, PeerRecord]) -> None:
        """Add to each peer's `witnessed` what the median witness saw of it since the last reading."""
        witnesses = {peer_id: record for peer_id, record in records.items() if not record.client_mode}
        for peer_id, record in witnesses.items():
            cursor = self._cursors.setdefault(peer_id, Cursor())
            if cursor.started != record.started:
                cursor.offsets = {}  # its sums begin anew
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
        """The witness's sum, counted from where the others' stood when it was first heard; None: it cannot tell."""
        total = record.seen.get(tag_of(of))
        if total is None:
            if len(record.seen) == MAX_SEEN:
                return None
            total = 0.0
        return total + self._cursors[witness].offsets.setdefault(of, self._cursors[of].evidence - total)

    def _take_claim(self, peer_id: str, record: PeerRecord, now: float) -> None:
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
    """Meet the smallest wishes first: nobody gets more than asked, and no two that got less than asked differ.

    (Max-min fairness.) The sum never exceeds the budget.
    """
    granted, left, waiting = {}, max(0.0, budget), len(wanted)
    for peer_id, wish in sorted(wanted.items(), key=lambda item: item[1]):
        granted[peer_id] = min(max(0.0, wish), left / waiting)
        left -= granted[peer_id]
        waiting -= 1
    return granted


def _has_witnesses(records: Mapping[str, PeerRecord]) -> bool:
    """Whether at least two and half of those who could be witnesses are: one alone shall not deny all credit."""
    able = [record for record in records.values() if not record.client_mode]
    return sum(bool(record.seen) for record in able) >= max(2, len(able) / 2)


def _shared_rounds(records: Mapping[str, PeerRecord]) -> float:
    """Rounds of a peer per round that a witness shares with it, where groups are smaller than the swarm."""
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
