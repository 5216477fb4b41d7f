"""What a coordinator decides alone: whether it begins, its generation, and when it tries a checkpoint again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from ttt.swarm.coordinator import training_data
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.coordinator.coordinator import Coordinator
from ttt.swarm.coordinator.generations import FILE, write_generation
from ttt.swarm.coordinator.training_data import check_source, is_a_name
from ttt.swarm.dht.access import AllowAll
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.process.status import PeerStatus


class Told:
    """In place of a reporter."""

    def __init__(self) -> None:
        self.status, self.problems = PeerStatus(), list[str]()

    def report_problem(self, text: str) -> bool:
        self.problems.append(text)
        return False

    def set_state(self, state: str, message: str = "") -> None: ...


def coordinator_in(folder: Path, **sections: dict[str, Any]) -> Coordinator:
    options = CoordinatorOptions(run="run.toml", folder=folder / "coordinator")
    options.folder.mkdir(exist_ok=True)
    return Coordinator(options, tiny_run(folder, **sections), Told(), AllowAll())  # type: ignore[arg-type]


def problems(coordinator: Coordinator) -> list[str]:
    return coordinator.reporter.problems  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("content", [None, b"", b'{"generation": 0, "founded": 1.0}'])
def test_a_run_that_was_rolled_back_goes_on_in_its_generation_without_its_file(
    tmp_path: Path, bundle: Bundle, content: bytes | None
) -> None:
    folder = tmp_path / "coordinator"
    parameters = {f"parameters/{name}": p.detach() for name, p in tiny_dalle().named_parameters()}
    store = CheckpointStore(folder, "tiny", CheckpointSection())
    store.save(TrainingState(7, parameters, {}), tiny_dalle(), bundle, generation=2)
    if content is not None:
        (folder / FILE).write_bytes(content)
    coordinator = coordinator_in(tmp_path)
    assert coordinator.announcement.generation == 2 and coordinator.prefix == "tiny-g2"
    assert len(problems(coordinator)) == (content == b"")
    write_generation(folder, Announcement(generation=3))
    assert coordinator_in(tmp_path).announcement.generation == 3


def test_a_checkpoint_that_failed_is_tried_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, tried = 1000.0, []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    monkeypatch.setattr(module, "announce_run", lambda *_: None)
    monkeypatch.setattr(module, "keep_company", lambda *_: None)

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
    coordinator.dht = None  # type: ignore[assignment]
    coordinator.keeper = SimpleNamespace(local_epoch=0)  # type: ignore[assignment]
    monkeypatch.setattr(coordinator, "_look", lambda: None)
    monkeypatch.setattr(coordinator, "_checkpoint", checkpoint)
    coordinator._watch(None, None)  # type: ignore[arg-type]
    assert tried == [600, 630, 660, 1260, 1860]


def test_a_state_that_no_peer_gives_counts_as_a_failure(tmp_path: Path) -> None:
    coordinator = coordinator_in(tmp_path, checkpoints={"every_seconds": 10.0})
    coordinator.reporter.status = PeerStatus(step=5)
    coordinator.keeper = SimpleNamespace(local_epoch=3, load_state_from_peers=lambda timeout: False)  # type: ignore
    began = module.time.monotonic()
    coordinator._try_to_keep(lambda: coordinator._checkpoint(None, None))  # type: ignore[arg-type]
    assert "no peer gave its state" in problems(coordinator)[0]
    assert coordinator._due - began < 20, "never later than the interval"


@pytest.mark.parametrize("source", ["scene", "Scenes", "shards"])
def test_a_misspelt_name_ends_it_before_a_run_is_founded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "find_bundle", too_far)
    coordinator = coordinator_in(tmp_path, data={"source": source})
    with pytest.raises(InvalidInput, match=r'\[data\] source of the run file is neither "scenes" nor'):
        coordinator.run()
    assert not list(coordinator.folder.iterdir())


def too_far(*_: object) -> None:
    raise AssertionError("it began")


def test_data_that_are_there_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    with pytest.raises(InvalidInput, match=r"has no \.parquet files"):
        check_source(str(folder))
    (folder / "0.parquet").touch()
    for source in ("scenes", str(folder), str(folder / "*.parquet"), str(folder / "0.parquet")):
        check_source(source)


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such/folder", "shards-*.parquet", "a/b/c"])
def test_data_that_may_be_on_peers_machines_alone_are_only_missed(tmp_path: Path, source: str) -> None:
    assert not is_a_name(source)
    coordinator = coordinator_in(tmp_path, data={"source": source})
    coordinator._look_for_data()
    (told,) = problems(coordinator)
    assert told.startswith("[data] source") and told.endswith("(peers have to find it, the coordinator need not)")


@pytest.mark.parametrize("error", [DataError("check the connection"), OSError("no route\nto the host"), None])
def test_a_data_set_that_is_not_reached_is_only_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(training_data, "find_shards", raising(error, asked))
    coordinator = coordinator_in(tmp_path, data={"source": "owner/name"})
    coordinator._look_for_data()
    assert asked == ["owner/name"]
    told = "\n".join(problems(coordinator))
    assert (str(error).splitlines()[0] in told and "to the host" not in told) if error else not told


def raising(error: Exception | None, asked: list[str]) -> Callable[..., None]:
    def find(source: str, web: object) -> None:
        asked.append(source)
        if error is not None:
            raise error

    return find
