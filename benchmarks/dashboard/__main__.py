"""What a refresh of the dashboard costs: bytes and milliseconds, for a run of 100 peers and 30,000 steps.

    python -m benchmarks.dashboard [--peers 100] [--steps 30000] [--every 20] [--runs 20]

Writes a history of that size as the monitor would, point by point, then refreshes it as a page does: all curves,
progress, leaderboard, checkpoints and sample images. The reference is the page that reads and sends every row. Then the
tab itself is served, and asked over HTTP as a browser asks it (`page_*`). Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import select

from benchmarks.dashboard import page as dashboard_page
from ttt.swarm.history import schema as history_tables
from ttt.swarm.history import summary
from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.types import CheckpointEntry, Contributor, Event, Point, SampleImage, Snapshot
from ttt.swarm.history.writer import HistoryWriter

START, BATCH = 1_760_000_000.0, 4096
PROMPTS = ("a red circle", "a blue square above a green triangle", "a yellow star", "two white circles")
SERIES: tuple[summary.Series, ...] = ("loss", "peers", "samples_per_second", "learning_rate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two points, one a step")
    parser.add_argument("--runs", type=int, default=20)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.sqlite"
        with HistoryWriter(path, "benchmark", target_batch_size=BATCH) as history:
            figures = _fill(history, wanted)
            figures |= _measure(history, path, wanted)
            figures |= dashboard_page.measure(history, path.parent, wanted.runs, _next_point(wanted))
    for name, value in figures.items():
        print(f"{name:32} {value:>14,.2f}")
    setting = {
        "peers": wanted.peers,
        "steps": wanted.steps,
        "every_s": wanted.every,
        "python": platform.python_version(),
    }
    print(
        json.dumps({"benchmark": "dashboard", **setting, **{name: round(value, 3) for name, value in figures.items()}})
    )
    return 0


def _fill(history: HistoryWriter, wanted: argparse.Namespace) -> dict[str, float]:
    rng, took = random.Random(0), []
    for step in range(wanted.steps):
        at = START + wanted.every * step
        loss = 9 / (1 + step / 3000) + rng.gauss(0, 0.05)
        point = Point(at, step, step * BATCH, loss, loss - 0.1, loss + 0.1, wanted.peers, BATCH / wanted.every, 1e-3)
        began = time.perf_counter()
        history.add_points([point])
        if step % 100 == 0:
            history.credit([_peer(i, step, at) for i in range(wanted.peers)], time=at)
        if step % 300 == 0:
            _checkpoint(history, step, at)
        took.append(time.perf_counter() - began)
    history.set_snapshot(Snapshot(at, wanted.steps, 2000, BATCH, wanted.peers, 2, BATCH / wanted.every, 1.0, 1e-3))
    return {"write_median_ms": 1000 * statistics.median(took), "write_slowest_ms": 1000 * max(took)}


def _peer(index: int, step: int, at: float) -> Contributor:
    samples, seconds = 40.0 * step * (index + 1) / 50, 15.0 * step
    name, device = f"volunteer {index}", "NVIDIA A100 40 GB"
    cursor = json.dumps({"started": 1.0, "time": at, "samples_total": int(samples), "seconds_total": seconds})
    return Contributor(
        f"Qm{index:044d}", name, device, START, at, step, samples, seconds, samples, seconds, 2.0, False, False, cursor
    )


def _checkpoint(history: HistoryWriter, step: int, at: float) -> None:
    history.add_checkpoint(CheckpointEntry(at, step, step * BATCH, 3.0, f"checkpoints/{step}", "ab" * 32))
    history.add_event(Event(at, "problem", "", f"step {step}"))
    for number, prompt in enumerate(PROMPTS):
        history.add_sample_image(SampleImage(at, step, prompt, f"sample_images/{step}-{number}.jpg"))


def _measure(history: HistoryWriter, path: Path, wanted: argparse.Namespace) -> dict[str, float]:
    at = START + wanted.every * wanted.steps
    figures = {"file_bytes": float(path.stat().st_size)}
    with HistoryReader(path) as reader:
        figures["points_kept"] = float(reader.about().points)
        began = time.perf_counter()
        shown = _refresh(reader, at)
        figures["first_refresh_ms"] = 1000 * (time.perf_counter() - began)
        figures["refresh_bytes"] = float(len(shown))

        def after_a_new_point() -> None:
            history.add_points([Point(at, wanted.steps, wanted.steps * BATCH, 1.0, 0.9, 1.1, 100, 200.0, 1e-3)])

        figures["refresh_ms"] = _median_ms(lambda: _refresh(reader, at), wanted.runs, after_a_new_point)
        status = json.dumps(summary.swarm_status(reader, at=at))
        figures["status_bytes"] = float(len(status))
        figures["status_ms"] = _median_ms(lambda: summary.swarm_status(reader, at=at), wanted.runs)
        figures["leaderboard_ms"] = _median_ms(lambda: summary.leaderboard(reader, at=at), wanted.runs)
        figures["every_row_bytes"] = float(len(_every_row(reader)))
        figures["every_row_ms"] = _median_ms(lambda: _every_row(reader), 3)
    figures["times_faster"] = figures["every_row_ms"] / figures["refresh_ms"]
    figures["times_smaller"] = figures["every_row_bytes"] / figures["refresh_bytes"]
    return figures


def _refresh(reader: HistoryReader, at: float) -> str:
    """Everything that the page shows, as JSON."""
    return json.dumps(
        {
            "curves": [asdict(summary.curve(reader, series, points=300)) for series in SERIES],
            "over_samples": asdict(summary.curve(reader, "loss", over="samples", points=300)),
            "progress": asdict(state) if (state := summary.progress(reader, at=at)) else None,
            "leaderboard": [asdict(place) for place in summary.leaderboard(reader, at=at)],
            "checkpoints": [asdict(one) for one in summary.checkpoints(reader, limit=20)],
            "sample_images": {
                p: [asdict(one) for one in several] for p, several in summary.sample_images(reader).items()
            },
        }
    )


def _every_row(reader: HistoryReader) -> str:
    """What a page without a summary would read and send."""
    with history_tables.open_file(reader.path, write=False).connect() as connection:
        rows = [
            [list(row) for row in connection.execute(select(table))]
            for table in (
                history_tables.points,
                history_tables.peers,
                history_tables.checkpoints,
                history_tables.sample_images,
            )
        ]
    return json.dumps(rows)


def _next_point(wanted: argparse.Namespace) -> Callable[[HistoryWriter], None]:
    """What a monitor writes each time it looked."""
    counted = itertools.count(1)

    def write(history: HistoryWriter) -> None:
        later = next(counted)
        at, step = START + wanted.every * (wanted.steps + later), wanted.steps + later
        history.add_points([Point(at, step, step * BATCH, 1.0, 0.9, 1.1, wanted.peers, BATCH / wanted.every, 1e-3)])
        history.credit([_peer(i, step, at) for i in range(wanted.peers)], time=at)
        history.set_snapshot(Snapshot(at, step, 2000, BATCH, wanted.peers, 2, BATCH / wanted.every, 1.0, 1e-3))

    return write


def _median_ms(work: Callable[[], object], runs: int, before: Callable[[], None] = lambda: None) -> float:
    took = []
    for _ in range(runs):
        before()
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


if __name__ == "__main__":
    raise SystemExit(main())
