"""Decisions of a coordinator without a network: refusing to start, its generation, retrying checkpoints."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.support.swarm import tiny_run
from tests.support.tiny import tiny_dalle
from ttt.bundle import Bundle
from ttt.errors import CheckpointError, DataError, InvalidInput
from ttt.swarm.averaging.training_state import TrainingState
from ttt.swarm.config.options import CoordinatorOptions
from ttt.swarm.config.run_config import CheckpointSection
from ttt.swarm.coordinator import coordinator as module
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.coordinator.coordinator import Coordinator, check_source, is_plain_name, open_coordinator
from ttt.swarm.coordinator.generations import FILE, newest_generation, write_generation
from ttt.swarm.dht.access import AllowAll
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.process.status import PeerStatus


class FakeReporter:
    """Keeps the reported problems."""

    def __init__(self) -> None:
        self.status, self.problems = PeerStatus(), list[str]()

    def report_problem(self, text: str) -> bool:
        self.problems.append(text)
        return False

    def set_state(self, state: str, message: str = "") -> None: ...


def coordinator_in(folder: Path, **sections: dict[str, Any]) -> Coordinator:
    """A coordinator without a network, a model and a history."""
    folder.joinpath("coordinator").mkdir(exist_ok=True)
    history: Any = SimpleNamespace(peers=dict, run="tiny", add_event=lambda event: None)
    network: Any = None
    reporter: Any = FakeReporter()
    settings = tiny_run(folder, **sections)
    store = CheckpointStore(folder / "coordinator", "tiny", settings.checkpoints)
    return Coordinator(
        folder / "coordinator", settings, reporter, threading.Event(), Announcement(generation=0), network, network,
        history, store, network,
    )  # fmt: skip


def problems(coordinator: Coordinator) -> list[str]:
    return coordinator.reporter.problems  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("content", [None, b"", b'{"generation": 0, "founded": 1.0}'])
def test_a_run_that_was_rolled_back_keeps_its_generation_without_the_file(
    tmp_path: Path, bundle: Bundle, content: bytes | None
) -> None:
    folder = tmp_path / "coordinator"
    parameters = {f"parameters/{name}": p.detach() for name, p in tiny_dalle().named_parameters()}
    store = CheckpointStore(folder, "tiny", CheckpointSection())
    store.save(TrainingState(7, parameters, {}), tiny_dalle(), bundle, generation=2)
    if content is not None:
        (folder / FILE).write_bytes(content)
    problems: list[str] = []
    generations = [checkpoint.manifest.generation for checkpoint in store.all()]
    assert newest_generation(folder, generations, warn=problems.append) == Announcement(generation=2)
    assert len(problems) == (content == b"")
    write_generation(folder, Announcement(generation=3))
    assert newest_generation(folder, generations) == Announcement(generation=3)


def test_a_failed_checkpoint_is_retried_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, tried = 1000.0, []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    monkeypatch.setattr(module, "announce_run", lambda *_: None)
    monkeypatch.setattr(module, "refresh_known_peers", lambda *_: None)

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return now >= 3000

    def checkpoint(*_: object) -> None:
        tried.append(now - 1000)
        if len(tried) < 3:
            raise CheckpointError("the disk is full")

    coordinator = coordinator_in(tmp_path, checkpoints={"every_seconds": 600.0})
    coordinator.stop = SimpleNamespace(wait=wait)  # type: ignore[assignment]
    coordinator.state_server = SimpleNamespace(local_epoch=0)  # type: ignore[assignment]
    monkeypatch.setattr(coordinator, "_observe", lambda: None)
    monkeypatch.setattr(coordinator, "_update_and_save", checkpoint)
    coordinator._watch()
    assert tried == [600, 630, 660, 1260, 1860]


def test_a_state_that_no_peer_provides_is_a_failed_checkpoint(tmp_path: Path) -> None:
    coordinator = coordinator_in(tmp_path, checkpoints={"every_seconds": 10.0})
    coordinator.reporter.status = PeerStatus(step=5)
    coordinator.state_server = SimpleNamespace(local_epoch=3, load_state_from_peers=lambda timeout: False)  # type: ignore
    began = module.time.monotonic()
    coordinator._save_and_schedule(coordinator._update_and_save)
    assert "no peer provided its state" in problems(coordinator)[0]
    assert coordinator._checkpoint_due - began < 20, "never later than the interval"


@pytest.mark.parametrize("source", ["scene", "Scenes", "shards"])
def test_a_misspelt_source_is_refused_before_a_run_is_founded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "find_bundle", too_far)
    options = CoordinatorOptions(run="run.toml", folder=tmp_path / "coordinator")
    settings, reporter = tiny_run(tmp_path, data={"source": source}), cast(Any, FakeReporter())
    with (
        pytest.raises(InvalidInput, match=r'\[data\] source of the run file is neither "scenes" nor'),
        open_coordinator(options, settings, reporter, threading.Event(), AllowAll()),
    ):
        pass
    assert not options.folder.exists()


def too_far(*_: object) -> None:
    raise AssertionError("the model was loaded")


def test_existing_data_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    with pytest.raises(InvalidInput, match=r"has no \.parquet files"):
        check_source(str(folder))
    (folder / "0.parquet").touch()
    for source in ("scenes", str(folder), str(folder / "*.parquet"), str(folder / "0.parquet")):
        check_source(source)


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such/folder", "shards-*.parquet", "a/b/c"])
def test_data_that_only_peers_may_have_give_a_warning(tmp_path: Path, source: str) -> None:
    assert not is_plain_name(source)
    coordinator = coordinator_in(tmp_path, data={"source": source})
    coordinator._check_data()
    (problem,) = problems(coordinator)
    assert problem.startswith("[data] source") and problem.endswith("(peers must find it; the coordinator need not)")


@pytest.mark.parametrize("error", [DataError("check the connection"), OSError("no route\nto the host"), None])
def test_an_unreachable_data_set_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    searched: list[str] = []
    monkeypatch.setattr(module, "find_shards", raising(error, searched))
    coordinator = coordinator_in(tmp_path, data={"source": "owner/name"})
    coordinator._check_data()
    assert searched == ["owner/name"]
    text = "\n".join(problems(coordinator))
    assert (str(error).splitlines()[0] in text and "to the host" not in text) if error else not text


def raising(error: Exception | None, searched: list[str]) -> Callable[..., None]:
    def find(source: str, web: object) -> None:
        searched.append(source)
        if error is not None:
            raise error

    return find
