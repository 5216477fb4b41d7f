"""Finding runs, reading them again when they change, and serving their sample images."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from ttt.errors import InvalidInput, SwarmError
from ttt.swarm.history.export import export
from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.summary import ACTIVE_SECONDS
from ttt.swarm.history.writer import HistoryWriter
from ttt.ui.dashboard import runs
from ttt.ui.dashboard.fake import BOASTER, Simulation
from ttt.ui.dashboard.runs import RunFolders
from ttt.ui.dashboard.thumbnails import Thumbnails

END = 1_795_000_000.0


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the disk at every call."""
    monkeypatch.setattr(runs, "SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(runs, "CHECK_SECONDS", 0.0)


def small(end: float = END) -> Simulation:
    return Simulation(end=end, steps=60, peers=6)


def at(moment: float, *roots: Path) -> RunFolders:
    return RunFolders(*roots, clock=lambda: moment)


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    simulation = small()
    simulation.write(tmp_path / "mine" / "coordinator")
    run = at(END + 10, tmp_path).read("mine")
    assert run.progress is not None
    assert (run.progress.step, run.progress.active, run.title) == (60, True, "A simulated run")
    assert run.curves["loss", "samples"].x[-1] == 60 * simulation.batch
    assert run.curves["peers", "time"].y[0] == 1
    assert {place.peer: place.unverified for place in run.places}[simulation.members[BOASTER].peer_id[-12:]]
    assert sum(place.unverified for place in run.places) == 1
    assert [one.step for one in run.checkpoints] == sorted((one.step for one in run.checkpoints), reverse=True)
    assert {len(several) for several in run.sample_images.values()} == {12}
    assert run.status["contributors"] == len(run.places) >= 3


def test_runs_of_all_layouts_are_found_running_ones_first(tmp_path: Path, always: None) -> None:
    small(END - 5000).write(tmp_path / "runs" / "old", images=False)
    small(END).write(tmp_path / "runs" / "now" / "coordinator", images=False)
    small(END - 9000).write(tmp_path / "example", images=False)
    with HistoryReader(tmp_path / "example" / runs.HISTORY_FILE) as reader:
        export(reader, tmp_path / "example" / runs.EXPORT_FILE)
    (tmp_path / "example" / runs.HISTORY_FILE).unlink()
    folders = at(END + 10, tmp_path / "runs", tmp_path / "example", tmp_path / "missing")
    assert [name.key for name in folders.names()] == ["now", "old", "example"]
    assert [name.label.endswith("(running)") for name in folders.names()] == [True, False, False]
    assert folders.read("example").progress.step == 60  # type: ignore[union-attr]
    assert folders.read("example").folder == tmp_path / "example"
    small(END).write(tmp_path / "runs" / "new", images=False)
    assert {name.key for name in folders.names()} == {"now", "new", "old", "example"}
    folders.close()


def test_the_example_comes_last(tmp_path: Path) -> None:
    """After a run that ended long ago and one that has not reported yet."""
    small().write(tmp_path / "example", images=False)
    folders = RunFolders(tmp_path / "runs", example=tmp_path / "example", clock=lambda: END + 1000)
    assert [name.key for name in folders.names()] == ["example"]
    small(END - 10**6).write(tmp_path / "runs" / "old", images=False)
    (tmp_path / "runs" / "new").mkdir()
    HistoryWriter(tmp_path / "runs" / "new" / runs.HISTORY_FILE, "new").close()
    folders = RunFolders(tmp_path / "runs", example=tmp_path / "example", clock=lambda: END + 1000)
    assert [name.key for name in folders.names()] == ["old", "new", "example"]


def test_two_runs_of_one_name_stay_apart(tmp_path: Path) -> None:
    small().write(tmp_path / "a" / "run" / "first", images=False)
    small().write(tmp_path / "a" / "run" / "second", images=False)
    small().write(tmp_path / "b" / "run", images=False)
    keys = {name.key for name in at(END, tmp_path / "a", tmp_path / "b").names()}
    assert keys == {"run", "run/second", "run-2"}


def test_the_same_data_is_read_once_and_new_data_again(tmp_path: Path, always: None) -> None:
    small().write(tmp_path / "run", images=False)
    folders = at(END + 1, tmp_path)
    first = folders.read("run")
    assert folders.read("run") is first
    with HistoryWriter(tmp_path / "run" / runs.HISTORY_FILE, "simulated", target_batch_size=4096) as history:
        second = folders.read("run")
        point = small().points[-1]
        history.add_points([type(point)(**{**vars(point), "time": END + 1, "step": 61, "loss": 1.0})])
        third = folders.read("run")
        assert folders.read("run") is third
    assert first.curves["loss", "time"].y[-1] == second.curves["loss", "time"].y[-1] != 1.0
    assert third.version != second.version
    assert third.curves["loss", "time"].y[-1] == 1.0


def test_many_visitors_cost_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().write(tmp_path / "run", images=False)
    folders = at(END + 1, tmp_path)
    first = folders.read("run")
    monkeypatch.setattr(runs, "_stamp", lambda path: pytest.fail("looked at the disk again"))
    for _ in range(100):
        assert folders.read("run") is first


def test_a_coordinator_that_falls_silent_is_noticed(tmp_path: Path, always: None) -> None:
    small().write(tmp_path / "run", images=False)
    moment = [END + 10]
    folders = RunFolders(tmp_path, clock=lambda: moment[0])
    going = folders.read("run")
    moment[0] = END + ACTIVE_SECONDS + 1
    silent = folders.read("run")
    assert going.progress.active and not silent.progress.active  # type: ignore[union-attr]
    assert going.version != silent.version
    assert not any(place.active for place in silent.places)
    assert folders.read("run") is silent


def test_errors_are_reported(tmp_path: Path, always: None) -> None:
    folders = at(END, tmp_path)
    assert folders.names() == []
    with pytest.raises(InvalidInput, match="make swarm"):
        folders.read("run")
    small().write(tmp_path / "run", images=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / runs.HISTORY_FILE).write_bytes(b"hello")
    assert [name.label for name in folders.names()][-1] == "broken (cannot be read)"
    with pytest.raises(SwarmError, match="no SQLite file"):
        folders.read("broken")
    with pytest.raises(InvalidInput, match="this server has: broken, run"):
        folders.read("../run")
    with pytest.raises(InvalidInput, match="there is no run of that name"):
        folders.read("x" * 10_000)


def test_a_run_may_be_replaced_by_another_of_its_name(tmp_path: Path, always: None) -> None:
    small().write(tmp_path / "run", images=False)
    folders = at(END + 1, tmp_path)
    assert folders.read("run").progress.step == 60  # type: ignore[union-attr]
    for file in (tmp_path / "run").glob("history*"):
        file.rename(tmp_path / f"moved-{file.name}")
    Simulation(end=END, steps=30, peers=3).write(tmp_path / "run", images=False)
    assert folders.read("run").progress.step == 30  # type: ignore[union-attr]


@pytest.mark.parametrize("change", ["deleted", "moved"])
def test_a_history_that_disappears_is_closed(tmp_path: Path, always: None, change: str) -> None:
    """Its reader holds a database engine, or the temporary folder of an export."""
    small().write(tmp_path / "run", images=False)
    with HistoryReader(tmp_path / "run" / runs.HISTORY_FILE) as reader:
        export(reader, tmp_path / "run" / runs.EXPORT_FILE)
    for file in (tmp_path / "run").glob(f"{runs.HISTORY_FILE}*"):
        file.unlink()
    folders = at(END + 1, tmp_path)
    folders.read("run")
    (known,) = folders._known()
    assert known.reader is not None
    closed: list[str] = []
    close = known.reader.close
    known.reader.close = lambda: (closed.append("reader"), close())  # type: ignore[method-assign, func-returns-value]
    if change == "deleted":
        (tmp_path / "run" / runs.EXPORT_FILE).unlink()
    else:
        (tmp_path / "run").rename(tmp_path / "renamed")
    assert "run" not in [name.key for name in folders.names()]
    assert closed == ["reader"]
    with pytest.raises(InvalidInput, match="no longer on this server"):
        folders._data(known)  # a visitor's thread may have found the run just before


def test_sample_images_are_served_as_copies_and_only_from_the_run(tmp_path: Path) -> None:
    run, served = tmp_path / "run", Thumbnails(tmp_path / "served")
    (run / "sample_images").mkdir(parents=True)
    Image.new("RGB", (600, 300), "red").save(run / "sample_images" / "a.png")
    copy = served.of(run, "sample_images/a.png")
    assert copy is not None
    assert copy.parent == tmp_path / "served"
    with Image.open(copy) as image:
        assert (image.format, image.size) == ("JPEG", (256, 128))
    assert served.of(run, "sample_images/a.png") == copy

    (tmp_path / "secret.png").write_bytes((run / "sample_images" / "a.png").read_bytes())
    (run / "identity.pem").write_text("secret")
    (run / "sample_images" / "link.png").symlink_to(tmp_path / "secret.png")
    os.truncate(_copy(run, "cut.png"), 60)
    outside = ("../secret.png", str(tmp_path / "secret.png"), "sample_images/link.png")
    for path in (*outside, "identity.pem", "cut.png", "no.png", "sample_images", "\0", "x" * 5000):
        assert served.of(run, path) is None, path
    assert [file.name for file in served.root.iterdir()] == [copy.name]


def _copy(run: Path, name: str) -> Path:
    (run / name).write_bytes((run / "sample_images" / "a.png").read_bytes())
    return run / name


def test_an_image_that_changed_is_shown_again(tmp_path: Path) -> None:
    served = Thumbnails(tmp_path / "served")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    first = served.of(tmp_path, "a.png")
    time.sleep(0.01)
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.png")
    assert served.of(tmp_path, "a.png") not in (None, first)
