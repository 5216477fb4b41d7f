"""A real swarm whose files cannot be written for a while: no process ends, and all is written later."""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path

import pytest

from tests.support.swarm import LocalSwarm, tiny_run
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.history.reader import HistoryReader

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux"),
    pytest.mark.timeout(600),
]


def test_folders_that_cannot_be_written_stop_neither_coordinator_nor_peer(tmp_path: Path) -> None:
    settings = tiny_run(tmp_path, checkpoints={"every_seconds": 3.0})
    with LocalSwarm(tmp_path / "swarm", settings) as swarm:
        coordinator = swarm.coordinator()
        for name in ("steps.jsonl", "rounds.jsonl", "backup.safetensors"):
            (swarm.folder / "a" / name).mkdir(parents=True)  # in place of the file: not even root can write it
        (coordinator.folder / "peers.json").mkdir()
        (coordinator.folder / "checkpoints").rename(coordinator.folder / "elsewhere")
        (coordinator.folder / "checkpoints").write_text("not a folder")
        peer = swarm.peer("a", "--micro-batch", "4", "--seed", "1")
        peer.wait(lambda status: status.steps_done >= 2, 180)
        failed = coordinator.wait(lambda status: any("could not be written" in text for text in status.problems), 60)
        with sqlite3.connect(coordinator.folder / "history.sqlite", isolation_level=None) as history:
            history.execute("BEGIN EXCLUSIVE")
            coordinator.wait(lambda status: any("history" in text for text in status.problems), 90)
            history.execute("ROLLBACK")
        (coordinator.folder / "checkpoints").unlink()
        (coordinator.folder / "elsewhere").rename(coordinator.folder / "checkpoints")
        store = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints)
        deadline = time.monotonic() + 90
        while (newest := store.newest()) is None or newest.step <= failed.step:
            assert time.monotonic() < deadline and coordinator.process.poll() is None, coordinator.log[-3000:]
            time.sleep(0.5)
        assert peer.stop() == 0 and coordinator.stop() == 0
        assert any("backup.safetensors could not be written" in text for text in peer.status.problems)
    with HistoryReader(coordinator.folder / "history.sqlite") as reader:
        on_disk = {f"checkpoints/{checkpoint.path.name}" for checkpoint in store.all()}
        assert {entry.path for entry in reader.checkpoints()} == on_disk
        assert {"started", "joined", "problem"} <= {event.kind for event in reader.events(1000)}
