"""The history of a run: one writer, many readers, merging, export; broken files are reported and left unchanged."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ttt.errors import InvalidInput, SwarmError
from ttt.swarm.history.export import Example, export, restore
from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.schema import HISTORY_FILE
from ttt.swarm.history.types import CheckpointEntry, Contributor, Event, Point, SampleImage, Snapshot
from ttt.swarm.history.writer import DAY, HOUR, THINNING, HistoryWriter

START = 1_760_000_000.0


def point(at: float, step: int, loss: float | None = 3.0) -> Point:
    low, high = (None, None) if loss is None else (loss - 0.5, loss + 0.5)
    return Point(at, step, step * 64, loss, low, high, 3, 10.0, 1e-3)


def peer(peer_id: str, samples: float, seconds: float, **more: object) -> Contributor:
    values: dict[str, object] = {
        "peer_id": peer_id, "name": "ada", "device": "CPU", "first_seen": START, "last_seen": START, "step": 1,
        "samples": samples, "seconds": seconds, "claimed_samples": samples, "claimed_seconds": seconds,
        "samples_per_second": 1.0, "client_mode": False, "auxiliary": False,
    }  # fmt: skip
    return Contributor(**{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / HISTORY_FILE


def test_what_is_written_is_read(path: Path) -> None:
    checkpoint = CheckpointEntry(START, 5, 320, 2.5, "checkpoints/5", "ab" * 32)
    image = SampleImage(START, 5, "a red circle", "sample_images/5-0.jpg")
    event = Event(START, "joined", "peer-a", "")
    now = Snapshot(START, 5, 10, 64, 3, 1, 12.5, 2.5, 1e-3, refused_records=2)
    with HistoryWriter(path, "my-run", title="Mine", target_batch_size=64) as history:
        history.add_points([point(START, 1), point(START + 20, 2, None)])
        history.credit([peer("peer-a", 10, 5)], time=START)
        history.add_checkpoint(checkpoint)
        history.add_sample_image(image)
        history.add_event(event)
        history.set_snapshot(now)
        with HistoryReader(path) as reader:  # while the writer is there
            about = reader.about()
            assert (about.run, about.title, about.target_batch_size) == ("my-run", "Mine", 64)
            assert (about.started, about.points) == (START, 2)
            assert reader.snapshot() == now
            assert reader.points()["step"].tolist() == [1, 2]
            assert np.isnan(reader.points()["loss"]).tolist() == [False, True]
            assert reader.peers() == [peer("peer-a", 10, 5)]
            assert reader.checkpoints() == [checkpoint]
            assert reader.sample_images() == [image]
            assert reader.sample_images("another prompt") == []
            assert reader.events() == [event]
            history.add_points([point(START + 40, 3)])
            assert reader.points()["step"].tolist() == [1, 2, 3]


def test_a_history_continues_after_a_restart_and_belongs_to_one_run(path: Path) -> None:
    with HistoryWriter(path, "my-run") as history:
        history.add_points([point(START, 1)])
        history.credit([peer("peer-a", 10, 5)], time=START)
    with HistoryWriter(path, "my-run") as history:
        history.add_points([point(START + 20, 2)])
        assert history.peers() == {"peer-a": peer("peer-a", 10, 5)}
    with pytest.raises(InvalidInput, match=r"the run 'my-run', not of 'another'"):
        HistoryWriter(path, "another")
    with HistoryReader(path) as reader:
        assert reader.points()["step"].tolist() == [1, 2]


def test_a_second_writer_is_refused(path: Path) -> None:
    with HistoryWriter(path, "my-run"), pytest.raises(InvalidInput, match="written by another coordinator"):
        HistoryWriter(path, "my-run")
    HistoryWriter(path, "my-run").close()


def test_contributions_are_summed_over_the_last_hours(path: Path) -> None:
    with HistoryWriter(path, "my-run") as history:
        history.credit([peer("a", 10, 5), peer("b", 1, 1)], time=START)
        history.credit([peer("a", 30, 9), peer("b", 1, 1)], time=START + 2 * HOUR)
        with HistoryReader(path) as reader:
            assert reader.contributed_since(START) == {"a": (30, 9), "b": (1, 1)}
            assert reader.contributed_since(START + 2 * HOUR) == {"a": (20, 4)}
            assert [one.peer_id for one in reader.peers()] == ["a", "b"]
            assert reader.contributors() == 2
        history.thin(START + 40 * DAY)
        with HistoryReader(path) as reader:
            assert reader.contributed_since(0) == {"a": (30, 9), "b": (1, 1)}
            starts = sqlite3.connect(path).execute("SELECT DISTINCT start % 86400 FROM contributions").fetchall()
            assert starts == [(0,)]


def test_merged_points_keep_the_extremes_of_the_loss(path: Path) -> None:
    days, every = 40, 600
    times = np.arange(START, START + days * DAY, every)
    losses = 5 - 3 * (times - START) / (days * DAY)
    losses[1000], losses[2000] = 9.0, 0.5  # a spike and a dip, both more than a week old
    with HistoryWriter(path, "my-run") as history:
        history.add_points([point(at, i, loss) for i, (at, loss) in enumerate(zip(times, losses, strict=True))])
        with HistoryReader(path) as reader:
            columns = reader.points()
    now = times[-1]
    month = now - THINNING[2][0]
    assert np.diff(columns["time"][columns["time"] < month - HOUR]).min() > HOUR - every
    assert (np.diff(columns["time"][columns["time"] > month]) == every).all()
    assert len(columns["time"]) == pytest.approx(10 * 24 + 30 * 144, rel=0.02)
    assert columns["loss_high"].max() == 9.5 and columns["loss_low"].min() == 0.0
    assert columns["step"][-1] == len(times) - 1 and (np.diff(columns["step"]) > 0).all()
    whole_hours = columns["loss"][: len(columns["loss"][columns["time"] < month - HOUR])]
    assert abs(np.mean(whole_hours) - np.mean(losses[: 6 * len(whole_hours)])) < 0.02


def test_thinning_twice_changes_nothing(path: Path) -> None:
    with HistoryWriter(path, "my-run") as history:
        history.add_points([point(START + 20 * i, i) for i in range(2000)])
        history.thin(START + 3 * DAY)
        with HistoryReader(path) as reader:
            once = reader.points()
            history.thin(START + 3 * DAY)
            twice = reader.points()
    assert len(once["time"]) == pytest.approx(2000 * 20 / 60, abs=2)
    for name, column in once.items():
        assert np.array_equal(column, twice[name], equal_nan=True)


def _write_forever(path: Path, started: object) -> None:
    with HistoryWriter(path, "my-run") as history:
        for i in range(100_000):
            history.add_points([point(START + i, i)])
            history.credit([peer("a", float(i), float(i))], time=START + i)
            if i == 20:
                started.set()  # type: ignore[attr-defined]


def test_readers_continue_when_the_writer_is_killed(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    writer = context.Process(target=_write_forever, args=(path, started), daemon=True)
    writer.start()
    assert started.wait(60)
    with HistoryReader(path) as reader:
        counts = []
        for _ in range(20):
            counts.append(len(reader.points()["time"]))
            time.sleep(0.02)
        writer.kill()
        writer.join()
        assert counts == sorted(counts) and counts[-1] > counts[0] >= 20
        assert len(reader.points()["time"]) >= counts[-1]
    with HistoryWriter(path, "my-run") as history, HistoryReader(path) as reader:
        steps = reader.points()["step"]
        assert steps.tolist() == list(range(len(steps)))  # nothing lost, nothing torn
        assert history.peers()["a"].samples in (len(steps) - 1, len(steps) - 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, this is a text file and no data base", "no SQLite file"),
        (b"SQLite format 3\0" + bytes(range(256)) * 64, "cannot be used"),
    ],
)
def test_a_damaged_file_is_reported_and_left_unchanged(path: Path, content: bytes, message: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for opened in (lambda: HistoryWriter(path, "my-run"), lambda: HistoryReader(path)):
        with pytest.raises(SwarmError, match=message):
            opened()
        assert path.read_bytes() == content


def test_a_damaged_page_is_reported(path: Path) -> None:
    with HistoryWriter(path, "my-run") as history:
        history.add_points([point(START + i, i) for i in range(5000)])
    data = bytearray(path.read_bytes())
    data[8192:40_960] = b"\xff" * (40_960 - 8192)
    path.write_bytes(data)
    with pytest.raises(SwarmError, match=r"cannot be used.*Nothing was deleted"):
        HistoryWriter(path, "my-run")
    assert path.read_bytes() == bytes(data)


def test_a_foreign_or_newer_file_is_left_unchanged(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE diary (day TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SwarmError, match="of another program"):
        HistoryWriter(path, "my-run")
    assert path.read_bytes() == before
    path.unlink()
    HistoryWriter(path, "my-run").close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SwarmError, match="update the program"):
        HistoryReader(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with pytest.raises(SwarmError, match="to start a new history"):
        HistoryReader(path)


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("insert or replace into about values ('now', '{\"step\": 1}')", HistoryReader.snapshot),
        ("insert or replace into about values ('now', '[')", HistoryReader.snapshot),
        ("update points set time = 1e18", HistoryReader.points),
        ("update points set samples = 'many'", HistoryReader.points),
        ("update peers set last_seen = 1e18", HistoryReader.peers),
        ("update peers set seconds = 'long'", HistoryReader.peers),
        ("update checkpoints set step = 'x'", HistoryReader.checkpoints),
    ],
)
def test_invalid_rows_are_reported(path: Path, change: str, read: Callable[[HistoryReader], object]) -> None:
    with HistoryWriter(path, "my-run") as history:
        history.add_points([point(START, 1)])
        history.credit([peer("a", 1, 1)], time=START)
        history.add_checkpoint(CheckpointEntry(START, 1, 64, 2.0, "checkpoints/1", "ab"))
    with sqlite3.connect(path) as connection:
        assert connection.execute(change).rowcount
    connection.close()
    with HistoryReader(path) as reader, pytest.raises(SwarmError, match="cannot be used"):
        read(reader)


def test_a_history_of_version_2_is_read_and_continued(path: Path, tmp_path: Path) -> None:
    """Up to version 2 sample images were in a table `pictures`, and auxiliary peers were called helpers."""
    images = [
        SampleImage(START, 5, "a red circle", "pictures/5.jpg"),
        SampleImage(START, 6, "a star", "pictures/6.jpg"),
    ]
    now = Snapshot(START, 5, 10, 64, 3, 1, 12.5, 2.5, 1e-3)
    with HistoryWriter(path, "my-run") as history:
        history.add_sample_image(images[0])
        history.set_snapshot(now)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX sample_images_by_prompt")
        connection.execute("ALTER TABLE sample_images RENAME TO pictures")
        connection.execute("CREATE INDEX pictures_by_prompt ON pictures (prompt, step)")
        connection.execute("UPDATE about SET value = replace(value, 'auxiliary_peers', 'helpers') WHERE key = 'now'")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with HistoryReader(path) as reader:
        assert (reader.sample_images(), reader.snapshot()) == (images[:1], now)
    with HistoryWriter(path, "my-run") as history:
        assert history.sample_images() == images[:1]
        history.add_sample_image(images[1])
        with HistoryReader(path) as reader:
            assert reader.sample_images() == images


def test_an_export_of_version_2_is_read(path: Path, tmp_path: Path) -> None:
    with HistoryWriter(path, "my-run") as history, HistoryReader(path) as reader:
        history.add_sample_image(SampleImage(START, 5, "a red circle", "pictures/5.jpg"))
        history.set_snapshot(Snapshot(START, 5, 10, 64, 3, 1, 12.5, 2.5, 1e-3))
        export(reader, tmp_path / "history.json")
        text = (tmp_path / "history.json").read_text()
        for new, old in (
            ('"sample_images"', '"pictures"'),
            ("auxiliary_peers", "auxiliary_peers"),
            ('"version":3', '"version":2'),
        ):
            assert new in text
            text = text.replace(new, old)
        (tmp_path / "history.json").write_text(text)
        example = Example(tmp_path / "history.json")
        assert (example.sample_images(), example.snapshot()) == (reader.sample_images(), reader.snapshot())
        example.close()


def test_a_missing_history_is_reported(path: Path) -> None:
    with pytest.raises(SwarmError, match="does not exist yet"):
        HistoryReader(path)
    assert not path.exists()


def test_checkpoints_get_their_url_and_can_be_removed(path: Path) -> None:
    with HistoryWriter(path, "my-run") as history:
        for step in range(3):
            history.add_checkpoint(CheckpointEntry(START + step, step, 1, None, f"checkpoints/{step}", "00"))
        history.set_checkpoint_url("checkpoints/1", "https://example.org/1")
        history.remove_checkpoints(["checkpoints/0"])
    with HistoryReader(path) as reader:
        assert [(c.step, c.url) for c in reader.checkpoints()] == [(2, ""), (1, "https://example.org/1")]


def test_an_export_can_be_imported(path: Path, tmp_path: Path) -> None:
    with HistoryWriter(path, "my-run", title="Mine", target_batch_size=64) as history:
        history.add_points([point(START + 20 * i, i, 5 - i / 5000 + (4 if i == 777 else 0)) for i in range(5000)])
        history.credit([peer("a", 10, 5, cursor="{}")], time=START)
        history.add_event(Event(START, "rollback", "", "to 5"))
        history.add_sample_image(SampleImage(START, 5, "a red circle", "5.jpg"))
        history.add_checkpoint(CheckpointEntry(START, 5, 320, 2.5, "5", "00"))
        history.set_snapshot(Snapshot(START, 5, 10, 64, 3, 1, None, None, None))
    shipped = tmp_path / "history.json"
    with HistoryReader(path) as reader:
        size = export(reader, shipped, points=300)
        assert size == shipped.stat().st_size < 40_000
        with Example(shipped) as example:
            assert len(example.points()["time"]) <= 300
            assert example.points()["loss"].max() == pytest.approx(reader.points()["loss"].max(), rel=1e-4)
            assert example.points()["time"][[0, -1]].tolist() == reader.points()["time"][[0, -1]].tolist()
            assert example.peers() == [peer("a", 10, 5)]
            assert example.events() == reader.events()
            assert example.sample_images() == reader.sample_images()
            assert example.checkpoints() == reader.checkpoints()
            assert example.snapshot() == reader.snapshot()
            assert example.about().run == "my-run"
            folder = example.path.parent
        assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("run"), "run: Field required"),
        (lambda c: c.update(version=1), "version"),
        (lambda c: c["points"]["loss"].append(1.0), "of one length"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c["points"].update(time=[None]), "in points"),
    ],
)
def test_an_invalid_export_is_reported(path: Path, tmp_path: Path, change: object, message: str) -> None:
    with HistoryWriter(path, "my-run") as history:
        history.add_points([point(START, 1)])
    shipped = tmp_path / "history.json"
    with HistoryReader(path) as reader:
        export(reader, shipped)
    content = json.loads(shipped.read_text())
    change(content)  # type: ignore[operator]
    shipped.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match=message):
        restore(shipped, tmp_path / "new.sqlite")
