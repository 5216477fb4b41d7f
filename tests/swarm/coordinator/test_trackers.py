"""Curves sent to a fake tracker: the choice of tracker, what it receives, and that its failures do not stop the run."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support.waiting import wait_for
from tests.swarm.peers import record
from ttt.swarm.coordinator import trackers
from ttt.swarm.coordinator.monitor import Monitor, clean_share
from ttt.swarm.coordinator.trackers import DEFAULT_PROJECT, MAX_QUEUED, Tracker, open_tracker
from ttt.swarm.dht.records import PeerRecord, Reading
from ttt.swarm.history.writer import HistoryWriter

START, TARGET = 1_760_000_000.0, 100


class Fake(ModuleType):
    """What Trackio and W&B have in common; `hurdle` is passed in `init`, `broken` steps raise."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.broken: set[int] = set()
        self.hurdle, self.finished = threading.Event(), False
        self.hurdle.set()

    def init(self, **options: Any) -> Fake:
        self.hurdle.wait(20)
        self.begun.append(options)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        if step in self.broken:
            raise ConnectionError("the server said no")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(params=["trackio", "wandb"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(trackers.atexit, "register", lambda _: None)
    made = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings."""
    found: list[str] = []
    monkeypatch.setattr(trackers.logger, "warning", lambda text, *values: found.append(text % values))
    return found


def tracker_of(fake: Fake) -> Tracker:
    found = open_tracker(lambda: "my-run", {"TTT_TRACK": fake.__name__, "TTT_TRACK_PROJECT": "ours"})
    assert found is not None
    return found


def reading(*records: PeerRecord) -> Reading:
    return Reading({one.peer_id: one for one in records}, Counter())


def seen(step: int, samples: int, peers: int) -> Any:
    """As `progress.SwarmProgress`, which needs hivemind to import."""
    return SimpleNamespace(step=step, samples_accumulated=samples, peers=peers, refused=(), answered=True)


def test_a_monitor_tells_the_tracker_each_step_once(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTT_TRACK", fake.__name__)
    monkeypatch.delenv("TTT_TRACK_PROJECT", raising=False)
    with HistoryWriter(tmp_path / "history.sqlite", "my-run", target_batch_size=TARGET) as history:
        monitor = Monitor(history, TARGET)
        auxiliary = record("dan", auxiliary=True, share_received=0.0)
        monitor.observe(reading(record("ada"), auxiliary), seen(0, 0, 1), START)  # no loss yet
        for number, step in enumerate((0, 0, 1, 1, 4, 3, 4, 5), start=1):
            ada = record("ada", step=step, loss=3.0 - step / 10, loss_count=50, share_received=1.0)
            bob = record("bob", step=step, loss=3.0 - step / 10, loss_count=50, share_received=0.75)
            monitor.observe(reading(ada, bob, auxiliary), seen(step, 20, 2), START + 10 * number)
        monitor._tracker.finish()  # type: ignore[union-attr]
    assert fake.begun == [{"project": DEFAULT_PROJECT, "name": "my-run", "resume": "allow"}] and fake.finished
    assert [step for step, _ in fake.logged] == [0, 1, 4, 5]
    last = fake.logged[-1][1]
    assert last.pop("samples_per_second") > 0
    assert last == {"loss": 2.5, "samples": 520, "peers": 2, "clean_share": 0.5}


def test_the_clean_share_is_of_those_who_averaged() -> None:
    records = [record(name, share_received=share) for name, share in (("ada", 1.0), ("bob", 0.5), ("eve", None))]
    assert clean_share(records) == 0.5
    assert clean_share(records[2:]) is None


def test_without_the_variable_nothing_is_imported(reports: list[str], tmp_path: Path) -> None:
    assert open_tracker(lambda: "my-run", {}) is None and not reports
    assert open_tracker(lambda: "my-run", {"TTT_TRACK": "mlflow"}) is None
    assert len(reports) == 1 and "trackio or wandb" in reports[0]


@pytest.mark.parametrize("kind", trackers.TRACKERS)
def test_a_missing_package_is_reported_once(kind: str, reports: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    tracker = Tracker(kind, "my-run", "ours")
    for step in range(3 * MAX_QUEUED):
        tracker.offer(step, {"loss": 1.0})
    assert wait_for(lambda: bool(reports), 10)
    tracker.offer(10**6, {"loss": 1.0})
    tracker.finish()
    missing = [one for one in reports if "too slow" not in one]
    assert len(missing) == 1 and f"pip install {kind}" in missing[0]


def test_a_failing_tracker_is_reported_once(fake: Fake, reports: list[str]) -> None:
    tracker, fake.broken = tracker_of(fake), {1, 2}
    for step in range(3):
        tracker.offer(step, {"loss": 1.0, "peers": None})
    tracker.finish()
    assert fake.begun[0]["project"] == "ours" and fake.logged == [(0, {"loss": 1.0})]
    assert reports == [f"{fake.__name__} failed, the run continues without it: the server said no"]


def test_a_tracker_that_hangs_does_not_delay_the_run(fake: Fake, reports: list[str]) -> None:
    tracker = tracker_of(fake)
    fake.hurdle.clear()
    began = time.monotonic()
    for step in range(2 * MAX_QUEUED):
        tracker.offer(step, {"loss": 1.0})
    tracker.finish(0.1)
    assert time.monotonic() - began < 5
    assert len(reports) == 1 and "too slow" in reports[0]
    fake.hurdle.set()
    assert wait_for(lambda: len(fake.logged) == MAX_QUEUED, 10)
    assert [step for step, _ in fake.logged] == list(range(MAX_QUEUED))
    tracker.finish()
