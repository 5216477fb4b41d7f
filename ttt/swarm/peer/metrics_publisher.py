"""Publishes the metrics of a peer to the DHT as a signed record, at a fixed interval. Independent of the model."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ttt.swarm.dht.records import MAX_SAMPLES, MAX_SEEN, PeerRecord, publish, record_text, tag_of
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.status import RoundRecord

RECORD_INTERVALS = 3.0
"""Lifetime of a record in publishing intervals: two records in a row may be lost before the peer seems to be gone."""


class MetricsPublisher:
    """Sums up what this peer computed between two records. All methods may be called from any thread."""

    def __init__(self, reporter: Reporter, dht: Any, run_prefix: str, signer: Any, every: float, **about: Any) -> None:
        """every: seconds between records. about: fields of `PeerRecord` that never change (device, micro_batch,
        client_mode, auxiliary, software)."""
        self.reporter, self.dht, self.run, self.signer, self.every, self.about = (
            reporter, dht, run_prefix, signer, every, about,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._losses = self._samples = 0.0
        self._seconds = self._seconds_total = 0.0
        self._samples_total = 0
        self._seen: defaultdict[str, float] = defaultdict(float)
        self._last: RoundRecord | None = None
        self._started = reporter.status.started
        self._published = time.monotonic()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish from a thread until the end of the block."""
        done = threading.Event()
        thread = threading.Thread(target=self._publish_regularly, args=(done,), daemon=True, name="metrics")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=15)

    def add_micro_batch(self, samples: int, loss: float, seconds: float) -> None:
        """Count a micro-batch. loss: the mean of its samples; seconds: the time that the device computed."""
        with self._lock:
            self._losses += loss * samples
            self._samples += samples
            self._samples_total += samples
            self._seconds += seconds
            self._seconds_total += seconds

    def add_rounds(self, records: list[RoundRecord]) -> None:
        """Count the samples that groupmates contributed: the monitor checks the claims of every peer by what the others
        have seen of it."""
        with self._lock:
            for record in records:
                if record.kind == "gradients":
                    self._last = record
                    for peer, weight in record.weights.items():
                        if peer != self.reporter.status.peer_id and 0 <= weight <= MAX_SAMPLES:
                            self._seen[tag_of(peer)] = min(self._seen[tag_of(peer)] + weight, MAX_SAMPLES)

    def _publish_regularly(self, done: threading.Event) -> None:
        while not done.wait(self.every):
            try:
                self.publish()
            except Exception as error:  # the next one may succeed, and this peer's credit depends on them
                self.reporter.report_problem(f"this peer's metrics were not published: {error or type(error).__name__}")

    def publish(self) -> bool:
        """Publish one record now; return False if the network did not accept it."""
        record = self._record()
        return publish(self.dht, self.run, record, self.signer, lifetime=RECORD_INTERVALS * self.every + 10)

    def _record(self) -> PeerRecord:
        status, now, moment = self.reporter.status, time.time(), time.monotonic()
        with self._lock:
            samples, losses, seconds = int(self._samples), self._losses, self._seconds
            self._samples = self._losses = self._seconds = 0.0
            interval, self._published = moment - self._published, moment
            if now < self._started:
                # The clock was set back. Restart the totals as a new process would: a record that started in the future
                # is refused by every reader.
                self._started, self._samples_total, self._seconds_total = now, samples, seconds
                self._seen.clear()
            loss = _within("loss", losses / samples) if samples else None
            seen = dict(sorted(self._seen.items(), key=lambda item: -item[1])[:MAX_SEEN])
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
    """Clip a number to the range of a record's field; NaN and None become the field's default."""
    field = PeerRecord.model_fields[name]
    if value is None or math.isnan(value):
        return field.get_default()
    for bound in field.metadata:
        value = max(value, getattr(bound, "ge", value))
        value = min(value, getattr(bound, "le", value))
    return value
