"""Turns self-reported peer metrics into robust statistics of the swarm, and records them.

Independent of the DHT and of SQL: readings come in, points and peers go into a `HistoryWriter`, steps to a
`Tracker` if wanted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING

from ttt.swarm.coordinator.credit import CreditCalculator
from ttt.swarm.coordinator.trackers import open_tracker
from ttt.swarm.dht.records import PeerRecord, Reading
from ttt.swarm.history.types import Event, Point, Snapshot

if TYPE_CHECKING:
    from ttt.swarm.averaging.progress import SwarmProgress
    from ttt.swarm.history.writer import HistoryWriter

WINDOW_SECONDS = 120.0
"""Time over which the speed of the swarm is measured."""
GONE_SECONDS = 120.0
MAX_SHARE = 3.0
"""Maximum weight of a loss, in multiples of the median weight."""


def weighted_quantiles(values: Sequence[float], weights: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Return the values below which these shares (0 to 1) of the total weight lie; at a tie, the mean of two values.

    At least one weight must be positive.
    """
    pairs = sorted(pair for pair in zip(values, weights, strict=True) if pair[1] > 0)
    total = sum(weight for _, weight in pairs)
    quantiles = []
    for wanted in shares:
        below = 0.0
        for index, (value, weight) in enumerate(pairs):
            below += weight
            if below > wanted * total + 1e-9 * total or index == len(pairs) - 1:
                quantiles.append(value)
                break
            if below >= wanted * total - 1e-9 * total:
                quantiles.append((value + pairs[index + 1][0]) / 2)
                break
    return quantiles


def robust_loss(records: Iterable[PeerRecord]) -> tuple[float, float, float] | None:
    """Return (median, lower quartile, upper quartile) of the mean losses of the peers; None without any.

    The weight of a loss is its number of samples, but at most `MAX_SHARE` times the median weight: a peer that claims a
    million samples still counts as one peer.
    """
    losses = [(record.loss, float(record.loss_count)) for record in records if record.loss is not None]
    if not losses:
        return None
    most = MAX_SHARE * median(weight for _, weight in losses)
    middle, low, high = weighted_quantiles(
        [loss for loss, _ in losses], [min(weight, most) for _, weight in losses], [0.5, 0.25, 0.75]
    )
    return middle, low, high


def clean_share(records: Iterable[PeerRecord]) -> float | None:
    """Return the share of averaging peers whose last round was complete; None before the first round."""
    rounds = [record.share_received == 1 for record in records if record.share_received is not None]
    return sum(rounds) / len(rounds) if rounds else None


class Monitor:
    """Records one run: call `observe` after each reading of the DHT, about every ten seconds."""

    def __init__(self, history: HistoryWriter, target_batch_size: int) -> None:
        self.history, self.target = history, target_batch_size
        self.credit = CreditCalculator(history.peers(), target_batch_size)
        self._tracker = open_tracker(lambda: history.run)
        self._path: deque[tuple[float, int]] = deque()
        """(time, samples of the swarm so far) within the window."""
        newest = max((peer.last_seen for peer in self.credit.peers.values()), default=0.0)
        self._present = {
            peer_id: peer.last_seen
            for peer_id, peer in self.credit.peers.items()
            if newest - peer.last_seen < GONE_SECONDS
        }
        """Peer -> time of its last record."""

    def observe(self, reading: Reading, progress: SwarmProgress, now: float) -> Point | None:
        """Record a reading and return the new point; None if the DHT did not answer."""
        if not reading.answered or not progress.answered:
            return None
        records = reading.records
        point = self._point(records, progress, now)
        self._record_membership(records, now)
        self.history.credit(self.credit.update(records, progress.step, now), time=now)
        self.history.add_points([point])
        self.history.set_snapshot(
            Snapshot(
                time=now,
                step=progress.step,
                samples_accumulated=progress.samples_accumulated,
                target_batch_size=self.target,
                peers=int(point.peers),
                auxiliary_peers=sum(record.auxiliary for record in records.values()),
                samples_per_second=point.samples_per_second,
                loss=point.loss,
                learning_rate=point.learning_rate,
                refused_records=sum(reading.dropped.values()) + len(progress.refused),
            )
        )
        self._track(point, records)
        return point

    def _track(self, point: Point, records: dict[str, PeerRecord]) -> None:
        """Send a step to the tracker once its loss is known: peers report none before their first micro-batches."""
        if self._tracker is None or point.loss is None:
            return
        self._tracker.offer(
            point.step,
            {
                "loss": point.loss,
                "samples": point.samples,
                "peers": point.peers,
                "samples_per_second": point.samples_per_second,
                "clean_share": clean_share(record for record in records.values() if not record.auxiliary),
            },
        )

    def _point(self, records: dict[str, PeerRecord], progress: SwarmProgress, now: float) -> Point:
        training = [record for record in records.values() if not record.auxiliary]
        loss = robust_loss(training)
        rates = [record.learning_rate for record in training if record.learning_rate is not None]
        samples = progress.step * self.target + progress.samples_accumulated
        return Point(
            time=now,
            step=progress.step,
            samples=samples,
            loss=loss[0] if loss else None,
            loss_low=loss[1] if loss else None,
            loss_high=loss[2] if loss else None,
            peers=max(len(training), progress.peers),
            samples_per_second=self._speed(samples, now),
            learning_rate=median(rates) if rates else None,
        )

    def _speed(self, samples: int, now: float) -> float | None:
        """Return the samples per second, measured by the progress of the swarm and not by the claims of the peers."""
        if self._path and samples < self._path[-1][1]:
            if samples < self._path[-1][1] - self.target:
                self._path.clear()  # a roll-back
            else:
                samples = self._path[-1][1]  # a peer dropped its gradients
        self._path.append((now, samples))
        while len(self._path) > 2 and now - self._path[1][0] >= WINDOW_SECONDS:
            self._path.popleft()
        (then, before), passed = self._path[0], now - self._path[0][0]
        return (samples - before) / passed if passed > 0 and now > then else None

    def _record_membership(self, records: dict[str, PeerRecord], now: float) -> None:
        for peer_id in records:
            if peer_id not in self._present:
                self.history.add_event(Event(now, "joined", peer_id))
            self._present[peer_id] = now
        for peer_id in [peer for peer, last in self._present.items() if now - last > GONE_SECONDS]:
            del self._present[peer_id]
            self.history.add_event(Event(now, "left", peer_id))
