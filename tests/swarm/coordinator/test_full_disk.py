"""A disk that is full: what is being written fails as one of our errors, and what was there stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

if sys.platform == "win32":
    pytest.skip("limits of file sizes are Unix's", allow_module_level=True)

from tests.support.full_disk import full_disk
from tests.support.tiny import tiny_dalle, write_tiny_bundle
from ttt.bundle import Bundle
from ttt.errors import CheckpointError
from ttt.swarm.averaging.training_state import TrainingState
from ttt.swarm.config.run_config import CheckpointSection
from ttt.swarm.coordinator.checkpoints import CheckpointStore, damaged
from ttt.swarm.peer.recovery import load_backup, save_backup

LARGE = 8 << 20
"""Bytes; more than any file of the tiny bundle has."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def state_of(step: int, size: int = 1000) -> TrainingState:
    parameters = {f"parameters/{name}": p.detach() for name, p in tiny_dalle().named_parameters()}
    return TrainingState(step, {**parameters, "optimizer/x": torch.zeros(size)}, {})


@pytest.mark.parametrize("after", [0, 100, LARGE])
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_last_one_stays(
    tmp_path: Path, bundle: Bundle, after: int
) -> None:
    store = CheckpointStore(tmp_path, "tiny", CheckpointSection())
    last = store.save(state_of(1), tiny_dalle(), bundle, generation=0)
    with full_disk(after), pytest.raises(CheckpointError, match=r"step-00000002 could not be written.*free some space"):
        store.save(state_of(2, LARGE), tiny_dalle(), bundle, generation=0)
    assert store.newest() == last
    assert sorted(path.name for path in store.root.iterdir()) == ["latest", "step-00000001"]
    assert store.save(state_of(2), tiny_dalle(), bundle, generation=0).step == 2


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="could not be written"):
        CheckpointStore(tmp_path, "tiny", CheckpointSection()).save(state_of(1), tiny_dalle(), bundle, generation=0)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints" / "latest").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="could not be written"):
        CheckpointStore(tmp_path, "tiny", CheckpointSection()).save(state_of(1), tiny_dalle(), bundle, generation=0)


def test_a_damaged_checkpoint_of_the_same_step_is_written_anew(tmp_path: Path, bundle: Bundle) -> None:
    store = CheckpointStore(tmp_path, "tiny", CheckpointSection())
    saved = store.save(state_of(1), tiny_dalle(), bundle, generation=0)
    again = store.save(state_of(1), tiny_dalle(), bundle, generation=0)
    assert again.manifest == saved.manifest, "it was whole"
    (saved.bundle / "dalle.safetensors").write_bytes(b"damaged")
    (store.root / "latest").write_text("step-00000000")
    assert store.newest() is None
    store.save(state_of(1), tiny_dalle(), bundle, generation=0)
    newest = store.newest()
    assert newest is not None and newest.step == 1 and not damaged(newest)
    assert (store.root / "latest").read_text() == "step-00000001"


def test_a_backup_that_cannot_be_written_is_told_and_the_last_one_stays(tmp_path: Path) -> None:
    save_backup(tmp_path, state_of(1), generation=0)
    with full_disk(100), pytest.raises(CheckpointError, match="could not be written"):
        save_backup(tmp_path, state_of(2), generation=0)
    kept = load_backup(tmp_path, generation=0)
    assert kept is not None and kept.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["backup.safetensors"]
    with pytest.raises(CheckpointError, match="could not be written"):
        save_backup(tmp_path / "backup.safetensors", state_of(2), generation=0)
