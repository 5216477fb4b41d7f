"""A peer's published metrics: within the range of a record whatever clock and loss do, and published after failures."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from hivemind.utils.crypto import RSAPrivateKey

from tests.swarm.peers import ID
from ttt.swarm.dht.records import owner_of, parse
from ttt.swarm.dht.validation import StrictSignatures
from ttt.swarm.peer import metrics_publisher as module
from ttt.swarm.peer.metrics_publisher import MetricsPublisher
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.status import RoundRecord


class Clocks:
    """The wall clock, which a user may set, and the monotonic one."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_000_000.0, 50.0

    def pass_(self, seconds: float) -> None:
        self.wall, self.steady = self.wall + seconds, self.steady + seconds

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=clocks.time, monotonic=clocks.monotonic))
    return clocks


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[Reporter]:
    reporter = Reporter(tmp_path, name="Ada", peer_id=ID["ada"])
    yield reporter
    reporter.close("stopped")


def unconnected(reporter: Reporter) -> MetricsPublisher:
    """A publisher without a network, whose thread is not started."""
    publisher = MetricsPublisher(reporter, None, "cats-g0", None, 3600.0, micro_batch=4)
    publisher._started = module.time.time()
    return publisher


def averaged(**values: Any) -> RoundRecord:
    base = {"kind": "gradients", "step": 1, "time": 1.0, "seconds": 2.0, "group_size": 2, "results_received": 1.0,
            "inputs_received": 1.0, "sent_bytes": 1, "received_bytes": 1}  # fmt: skip
    return RoundRecord.model_validate({**base, **values})


def test_a_clock_that_is_set_back_restarts_the_totals(clocks: Clocks, reporter: Reporter) -> None:
    publisher = unconnected(reporter)
    publisher.add_micro_batch(8, 2.0, 1.5)
    clocks.pass_(20)
    first = publisher._record()
    assert (first.interval, first.samples, first.samples_total, first.samples_per_second) == (20, 8, 8, 0.4)
    clocks.pass_(20)
    clocks.wall -= 3600
    publisher.add_micro_batch(4, 3.0, 1.0)
    second = publisher._record()
    assert (second.interval, second.samples, second.loss) == (20, 4, 3.0)
    assert second.started <= second.time < first.started, "other peers would refuse it as from the future"
    assert (second.samples_total, second.compute_seconds_total) == (4, 1.0), "as of a new process"
    clocks.pass_(20)
    publisher.add_micro_batch(4, 3.0, 1.0)
    third = publisher._record()
    assert (third.started, third.samples_total) == (second.started, 8)


@pytest.mark.parametrize(("loss", "published"), [(3e7, 1e6), (-1e300, -1e6), (1e308, 1e6), (float("nan"), None)])
def test_a_loss_is_clipped_to_the_range_of_a_record(
    clocks: Clocks, reporter: Reporter, loss: float, published: float | None
) -> None:
    publisher = unconnected(reporter)
    publisher.add_micro_batch(8, loss, 1.0)
    publisher.add_micro_batch(8, loss, 1.0)
    record = publisher._record()
    assert (record.loss, record.loss_count, record.samples) == (published, 16 if published is not None else 0, 16)


def test_rounds_beyond_the_range_are_cut(clocks: Clocks, reporter: Reporter) -> None:
    publisher = unconnected(reporter)
    reporter.update(learning_rate=float("nan"), step=3)
    publisher.add_rounds(
        [averaged(seconds=-3600.0, group_size=10**6, results_received=1.0000001, weights={ID["bob"]: 1e300})]
    )
    publisher.add_rounds(
        [averaged(seconds=-3600.0, group_size=10**6, results_received=1.0000001, weights={ID["bob"]: 7.0})]
    )
    record = publisher._record()
    assert (record.averaging_seconds, record.group_size, record.share_received) == (0, 4096, 1)
    assert record.learning_rate is None and record.step == 3
    assert list(record.seen.values()) == [7.0]


def test_a_failed_publication_is_reported_and_the_next_one_is_tried(tmp_path: Path) -> None:
    signer = StrictSignatures(RSAPrivateKey())
    reporter = Reporter(tmp_path, peer_id=owner_of(signer.local_public_key))
    stored: list[Any] = []

    class Network:
        """Breaks the first time."""

        def store(self, key: str, value: Any, **_: Any) -> Any:
            stored.append(value)
            if len(stored) == 1:
                raise BrokenPipeError("the network is gone")
            return SimpleNamespace(result=lambda timeout: True, cancel=lambda: None)

    with MetricsPublisher(reporter, Network(), "cats-g0", signer, 0.05).publishing():
        deadline = time.monotonic() + 20
        while len(stored) < 2:
            assert time.monotonic() < deadline, "the thread has ended"
            time.sleep(0.02)
    assert any("metrics were not published: the network is gone" in text for text in reporter.status.problems)
    assert parse(signer.local_public_key, stored[-1], time.time()).peer_id == reporter.status.peer_id
    reporter.close("stopped")
