"""A peer's regular word about itself, from its status to a signed record in the DHT. Knows no model."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from typing import Any

from ttt.swarm.dht.records import MAX_SAMPLES, MAX_SEEN, PeerRecord, publish, record_text, tag_of
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.status import RoundRecord

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
        self._started = reporter.status.started
        self._published = time.monotonic()
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
                        if peer != self.reporter.status.peer_id and 0 <= weight <= MAX_SAMPLES:
                            self._seen[tag_of(peer)] = min(self._seen[tag_of(peer)] + weight, MAX_SAMPLES)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=15)

    def _publish_regularly(self) -> None:
        while not self._stop.wait(self.every):
            try:
                self.publish()
            except Exception as error:  # the next report may go through, and credit depends on them
                self.reporter.report_problem(f"this peer's report was not sent: {error or type(error).__name__}")

    def publish(self) -> bool:
        """One record now; False where the network did not take it."""
        record = self._record()
        return publish(self.dht, self.run, record, self.signer, lifetime=LIFETIMES * self.every + 10)

    def _record(self) -> PeerRecord:
        status, now, moment = self.reporter.status, time.time(), time.monotonic()
        with self._lock:
            samples, losses, seconds = int(self._samples), self._losses, self._seconds
            self._samples = self._losses = self._seconds = 0.0
            interval, self._published = moment - self._published, moment
            if now < self._started:  # the clock was set back: totals begin anew, as those of a new process do
                self._started, self._samples_total, self._seconds_total = now, samples, seconds
                self._seen.clear()
            loss = _within("loss", losses / samples) if samples else None
            seen = dict(sorted(self._seen.items(), key=lambda one: -one[1])[:MAX_SEEN])
            last = self._last
            numbers = {
                "interval": interval, "step": status.step, "samples": samples, "samples_total": self._samples_total,
                "samples_per_second": samples / interval if interval > 0 else 0.0,
                "compute_seconds": seconds, "compute_seconds_total": self._seconds_total,
                "learning_rate": status.learning_rate,
                "group_size": last.group_size if last else 0, "share_received": last.results_received if last else None,
                "averaging_seconds": last.seconds if last else 0.0,
                "bytes_sent": status.sent_bytes, "bytes_received": status.received_bytes,
            }  # fmt: skip
            return PeerRecord(
                peer_id=status.peer_id, name=record_text(status.name, 40), started=self._started, time=now,
                loss=loss, loss_count=samples if loss is not None else 0, seen=seen,
                **{name: _within(name, value) for name, value in numbers.items()}, **self.about,
            )  # fmt: skip


def _within(name: str, value: Any) -> Any:
    """A number cut to what a record may say there; the field's default where it is none."""
    field = PeerRecord.model_fields[name]
    if value is None or math.isnan(value):
        return field.get_default()
    for bound in field.metadata:
        value = max(value, getattr(bound, "ge", value))
        value = min(value, getattr(bound, "le", value))
    return value
