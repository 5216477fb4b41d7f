"""From readings to what a dashboard shows: robust, small, and the extremes kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.swarm.peers import ID, record
from ttt.swarm.coordinator.monitor import GONE_SECONDS, Monitor, robust_loss, weighted_quantiles
from ttt.swarm.dht.records import PeerRecord, Reading
from ttt.swarm.history import summary
from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.types import CheckpointEntry, Point, SampleImage
from ttt.swarm.history.writer import HistoryWriter

START, TARGET = 1_760_000_000.0, 100


@dataclass
class Seen:
    """As `progress.SwarmProgress`, which needs hivemind to import."""

    step: int
    samples_accumulated: int = 0
    peers: int = 0
    clients: int = 0
    refused: tuple[str, ...] = ()
    answered: bool = True


@pytest.fixture
def history(tmp_path: Path) -> Iterator[HistoryWriter]:
    with HistoryWriter(tmp_path / "history.sqlite", "my-run", title="Mine", target_batch_size=TARGET) as opened:
        yield opened


def reading(*records: PeerRecord, dropped: int = 0) -> Reading:
    return Reading({one.peer_id: one for one in records}, Counter({"bad": dropped} if dropped else {}))


def losses(*values: float, counts: tuple[int, ...] | None = None) -> list[PeerRecord]:
    counts = counts or (10,) * len(values)
    return [
        record(f"p{i}", loss=value, loss_count=count, samples=0)
        for i, (value, count) in enumerate(zip(values, counts, strict=True))
    ]


def test_one_false_report_does_not_move_the_loss() -> None:
    honest = losses(3.0, 3.1, 2.9, 3.05)
    middle, low, high = robust_loss(honest)  # type: ignore[misc]
    assert (middle, low, high) == pytest.approx((3.025, 2.95, 3.075))
    for lie in (-1e6, 0.0, 1e6):
        liar = record("eve", loss=lie, loss_count=10**15)
        loss = robust_loss([*honest, liar])
        assert loss is not None and 2.9 <= loss[0] <= 3.1
    assert robust_loss([]) is None and robust_loss([record("ada")]) is None


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.1, 10)), min_size=1, max_size=20), st.floats(0, 1))
def test_weighted_quantiles_follow_the_weights(pairs: list[tuple[float, float]], share: float) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]
    (found,) = weighted_quantiles(values, weights, [share])
    below = sum(w for v, w in pairs if v < found)
    above = sum(w for v, w in pairs if v > found)
    total = sum(weights)
    assert below <= share * total * (1 + 1e-6) + 1e-6
    assert above <= (1 - share) * total * (1 + 1e-6) + 1e-6


def test_equal_weights_give_the_ordinary_median() -> None:
    assert weighted_quantiles([3, 1, 2], [1, 1, 1], [0.5]) == [2]
    assert weighted_quantiles([4, 1, 2, 3], [2, 2, 2, 2], [0.5]) == [2.5]
    assert weighted_quantiles([1, 2], [0, 5], [0.0, 1.0]) == [2, 2]


def test_a_monitor_records_what_it_reads(history: HistoryWriter) -> None:
    monitor = Monitor(history, TARGET)
    for step in range(10):
        ada = record("ada", step=step, samples_total=50 * step, compute_seconds_total=8.0 * step, loss=3.0 - step / 10,
                     loss_count=50, learning_rate=1e-3)  # fmt: skip
        auxiliary_record = record("dan", auxiliary=True, step=step)
        point = monitor.observe(reading(ada, auxiliary_record, dropped=2), Seen(step, 50, 1), START + 10 * step)  # type: ignore[arg-type]
        assert point is not None
    assert (point.samples, point.peers, point.loss, point.learning_rate) == (950, 1, pytest.approx(2.1), 1e-3)
    assert point.samples_per_second == pytest.approx(10.0)
    with HistoryReader(history.path) as reader:
        state = summary.progress(reader, at=START + 91)
        assert state is not None and state.active and (state.peers, state.auxiliary_peers) == (1, 1)
        assert state.fraction == 0.5 and state.eta_seconds == pytest.approx(4.0)
        assert reader.snapshot().refused_records == 2  # type: ignore[union-attr]
        assert {(e.kind, e.peer_id) for e in reader.events()} == {("joined", ID["dan"]), ("joined", ID["ada"])}
        places = summary.leaderboard(reader, at=START + 91)
        assert [(p.name, p.samples, p.auxiliary, p.rank) for p in places] == [
            ("ada", 450, False, 1),
            ("dan", 0, True, 2),
        ]
        assert places[0].active and places[0].share == 1.0 and places[0].samples_today == 450
        later = summary.progress(reader, at=START + 1000)
        assert later is not None and not later.active and later.peers == 0 and later.eta_seconds is None
        monitor.observe(reading(auxiliary_record), Seen(9, 50, 0), START + 100)  # type: ignore[arg-type]
        assert [p.active for p in summary.leaderboard(reader, at=START + 101)] == [False, True], "she said goodbye"


def test_a_join_and_a_departure_are_recorded_once(history: HistoryWriter) -> None:
    monitor = Monitor(history, TARGET)
    ada = record("ada")
    for at in (0, 10, 20):
        monitor.observe(reading(ada), Seen(0), START + at)  # type: ignore[arg-type]
    for at in (30, 30 + GONE_SECONDS, 40 + GONE_SECONDS):
        monitor.observe(reading(), Seen(0), START + at)  # type: ignore[arg-type]
    monitor.observe(reading(ada), Seen(0), START + 400)  # type: ignore[arg-type]
    Monitor(history, TARGET).observe(reading(ada), Seen(0), START + 410)  # type: ignore[arg-type]  # restarted
    with HistoryReader(history.path) as reader:
        assert [event.kind for event in reversed(reader.events())] == ["joined", "left", "joined"]


def test_a_silent_dht_adds_no_point(history: HistoryWriter) -> None:
    monitor = Monitor(history, TARGET)
    assert monitor.observe(Reading(answered=False), Seen(3), START) is None  # type: ignore[arg-type]
    assert monitor.observe(reading(), Seen(0, answered=False), START) is None  # type: ignore[arg-type]
    with HistoryReader(history.path) as reader:
        assert len(reader.points()["time"]) == 0
        assert summary.progress(reader) is None
        assert summary.leaderboard(reader) == []
        assert summary.curve(reader, "loss") == summary.Curve([], [], [], [])
        status = summary.swarm_status(reader)
    assert status["run"] == "my-run" and not status["active"]


def test_the_speed_is_measured_and_not_taken_from_claims(history: HistoryWriter) -> None:
    monitor = Monitor(history, TARGET)
    boaster = record("eve", samples_per_second=1e9)
    for step in range(60):
        point = monitor.observe(reading(boaster), Seen(step), START + 20 * step)  # type: ignore[arg-type]
    assert point is not None and point.samples_per_second == pytest.approx(TARGET / 20)
    point = monitor.observe(reading(boaster), Seen(10), START + 1200)  # type: ignore[arg-type]  # rolled back
    assert point is not None and not (point.samples_per_second or 0) < 0


def test_curves_are_short_and_keep_the_extremes(history: HistoryWriter) -> None:
    rng = np.random.default_rng(0)
    loss = 5 - np.arange(4000) / 1000 + rng.normal(0, 0.01, 4000)
    loss[1234], loss[2345] = 9.0, 0.25
    points = [
        Point(START + 15 * i, i, 64 * i, loss[i], loss[i] - 1, loss[i] + 1, i % 7, None, None) for i in range(4000)
    ]
    history.add_points(points, thin=False)
    with HistoryReader(history.path) as reader:
        for over in ("time", "samples"):
            curve = summary.curve(reader, "loss", over=over, points=200)  # type: ignore[arg-type]
            assert len(curve.x) == len(curve.y) == len(curve.low or []) == len(curve.high or []) <= 200
            assert max(curve.y) == 9.0 and min(curve.y) == 0.25
            assert curve.x == sorted(curve.x)
            assert (curve.low or [])[curve.y.index(9.0)] == 8.0
            assert len(json.dumps(asdict(curve))) < 9000
        assert curve.x[0] == 0 and curve.x[-1] == 64 * 3999
        assert summary.curve(reader, "samples_per_second").x == []  # nothing known, nothing drawn
        peers = summary.curve(reader, "peers", points=50)
        assert len(peers.x) <= 50 and (min(peers.y), max(peers.y)) == (0, 6) and peers.low is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 100))
def test_downsampling_keeps_ends_and_extremes(values: list[float], points: int) -> None:
    y, x = np.array(values), np.cumsum(np.abs(np.array(values)) + 1)
    kept = summary.downsample_min_max(x, y, points)
    assert len(kept) <= max(points, 4) and (np.diff(kept) > 0).all() if len(kept) > 1 else True
    assert kept[0] == 0 and kept[-1] == len(y) - 1
    assert y[kept].max() == y.max() and y[kept].min() == y.min()


def test_names_of_strangers_cannot_harm_a_page(history: HistoryWriter) -> None:
    monitor = Monitor(history, TARGET)
    evil = record("eve", name="<img src=x onerror=alert(1)>")
    for step in range(3):
        one = evil.model_copy(update={"samples_total": 50 * step})
        monitor.observe(reading(one), Seen(step), START + step)  # type: ignore[arg-type]
    with HistoryReader(history.path) as reader:
        (place,) = summary.leaderboard(reader)
    assert "<" not in place.html_name and place.name == "<img src=x onerror=alert(1)>"


def test_sample_images_are_thinned_evenly(history: HistoryWriter) -> None:
    for step in range(100):
        history.add_sample_image(SampleImage(START + step, step, "a red circle", f"{step}.jpg"))
    history.add_sample_image(SampleImage(START, 1, "a blue square", "b.jpg"))
    history.add_checkpoint(CheckpointEntry(START, 99, 9900, 2.0, "c/99", "00", "https://example.org"))
    with HistoryReader(history.path) as reader:
        shown = summary.sample_images(reader, per_prompt=5)
        assert [p.step for p in shown["a red circle"]] == [0, 25, 50, 74, 99]
        assert len(shown["a blue square"]) == 1
        assert summary.checkpoints(reader)[0].step == 99
        assert summary.swarm_status(reader)["last_checkpoint"]["step"] == 99


def test_unverified_claims_are_marked(history: HistoryWriter) -> None:
    monitor = Monitor(history, TARGET)
    for step in range(10):
        eve = record("eve", samples_total=10_000 * step)
        ada = record("ada", samples_total=50 * step)
        monitor.observe(reading(eve, ada), Seen(step), START + 10 * step)  # type: ignore[arg-type]
    with HistoryReader(history.path) as reader:
        places = {place.name: place for place in summary.leaderboard(reader)}
    assert places["eve"].unverified and not places["ada"].unverified
    assert places["ada"].samples == 450 and places["eve"].samples <= 450
