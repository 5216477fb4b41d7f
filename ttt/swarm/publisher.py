"""A peer's regular word about itself, from its status to a signed record in the DHT. Knows no model."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

from ttt.swarm.records import MAX_SEEN, PeerRecord, describe, publish, tag_of
from ttt.swarm.reporter import Reporter
from ttt.swarm.status import RoundRecord

LIFETIMES = 3.0
"""Of a record, in reporting intervals: two may get lost."""


class Publisher:
    """Collects what happened between two records; a thread of its own publishes them."""

    def __init__(self, reporter: Reporter, dht: Any, run_prefix: str, signer: Any, every: float, **about: Any) -> None:
        """about: `PeerRecord` fields that never change (device, micro_batch, client_mode, auxiliary, software)."""
        self.reporter, self.dht, self.run, self.signer, self.every, self.about = (
            reporter, dht, run_prefix, signer, every, about,
        )  # fmt: skip
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._losses = self._samples = 0.0
        self._seconds = self._seconds_total = 0.0
        self._samples_total = 0
        self._seen: defaultdict[str, float] = defaultdict(float)
        self._last: RoundRecord | None = None
        self._published = time.time()
        self._thread = threading.Thread(target=self._publish_regularly, daemon=True, name="metrics")
        self._thread.start()

    def computed(self, samples: int, loss: float, seconds: float) -> None:
        """A micro-batch is done."""
        with self._lock:
            self._losses += loss * samples
            self._samples += samples
            self._samples_total += samples
            self._seconds += seconds
            self._seconds_total += seconds

    def averaged(self, records: list[RoundRecord]) -> None:
        """What this peer saw of others, for the monitor: a check on what they say of themselves."""
        with self._lock:
            for record in records:
                if record.kind == "gradients":
                    self._last = record
                    for peer, weight in record.weights.items():
                        if peer != self.reporter.status.peer_id:
                            self._seen[tag_of(peer)] += weight

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=15)

    def _publish_regularly(self) -> None:
        while not self._stop.wait(self.every):
            self.publish()

    def publish(self) -> bool:
        """One record now; False where the network did not take it."""
        record = self._record()
        return publish(self.dht, self.run, record, self.signer, lifetime=LIFETIMES * self.every + 10)

    def _record(self) -> PeerRecord:
        status, now = self.reporter.status, time.time()
        with self._lock:
            samples, losses, seconds = int(self._samples), self._losses, self._seconds
            self._samples = self._losses = self._seconds = 0.0
            interval, self._published = now - self._published, now
            seen = dict(sorted(self._seen.items(), key=lambda one: -one[1])[:MAX_SEEN])
            last = self._last
            return PeerRecord(
                peer_id=status.peer_id, name=describe(status.name, 40), started=status.started, time=now,
                interval=interval, epoch=status.epoch, samples=samples, samples_total=self._samples_total,
                samples_per_second=samples / interval if interval > 0 else 0.0,
                compute_seconds=seconds, compute_seconds_total=self._seconds_total,
                loss=losses / samples if samples else None, loss_count=samples,
                learning_rate=status.learning_rate,
                group_size=last.group_size if last else 0, share_received=last.received if last else None,
                averaging_seconds=last.seconds if last else 0.0,
                bytes_sent=status.sent_bytes, bytes_received=status.received_bytes, seen=seen, **self.about,
            )  # fmt: skip
