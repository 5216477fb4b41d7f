"""How a peer recovers from NaN and infinity, with a real optimizer that is alone in its swarm."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import torch

from tests.support.alone import alone
from ttt.errors import Cancelled
from ttt.swarm.averaging.optimizer import SwarmOptimizer
from ttt.swarm.averaging.training_state import TrainingState, is_finite
from ttt.swarm.peer.recovery import BAD_LOSSES, Recovery, load_backup, save_backup
from ttt.swarm.process.reporter import Reporter


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwarmOptimizer]:
    with alone(tmp_path_factory.mktemp("identity")) as made:
        yield made


@pytest.fixture
def recovery(optimizer: SwarmOptimizer, tmp_path: Path) -> Iterator[Recovery]:
    with torch.no_grad():
        for parameter in optimizer.parameters():
            parameter.fill_(0.5)
    reporter = Reporter(tmp_path)
    yield Recovery(optimizer, reporter, tmp_path, generation=1, every_seconds=60, drop_share=lambda: None)
    reporter.close("stopped")


def spoil(recovery: Recovery) -> None:
    with torch.no_grad():
        recovery.optimizer.parameters()[0][0] = math.nan


def test_a_state_with_nan_does_not_replace_the_backup(recovery: Recovery) -> None:
    recovery.back_up()
    kept = load_backup(recovery.folder, generation=1)
    assert kept is not None and is_finite(list(kept.tensors.values()))
    spoil(recovery)
    recovery.back_up()
    again = load_backup(recovery.folder, generation=1)
    assert again is not None and is_finite(list(again.tensors.values()))
    assert "the last backup is kept" in recovery.reporter.status.problems[-1]


def test_a_backup_that_cannot_be_written_is_reported(recovery: Recovery) -> None:
    (recovery.folder / "backup.safetensors").mkdir()
    recovery.back_up()
    assert "backup.safetensors could not be written" in recovery.reporter.status.problems[-1]


def test_losses_that_are_not_finite_restore_the_backup(recovery: Recovery) -> None:
    recovery.back_up()
    spoil(recovery)
    assert recovery.accept_loss(1.0)
    assert not any(recovery.accept_loss(math.nan) for _ in range(BAD_LOSSES))
    assert all(bool((parameter == 0.5).all()) for parameter in recovery.optimizer.parameters())
    assert "restored from its own backup" in recovery.reporter.status.problems[-1]


def test_a_backup_that_does_not_fit_is_not_loaded(recovery: Recovery) -> None:
    state = recovery.optimizer.state_averager.state(copy=True)
    broken = {name: tensor.double() for name, tensor in state.tensors.items()}
    save_backup(recovery.folder, replace(state, tensors=broken), generation=1)
    spoil(recovery)
    with pytest.raises(Cancelled):  # it waits for a donor until asked to stop
        recovery.check_parameters()
    problems = "\n".join(recovery.reporter.status.problems)
    assert "cannot be used" in problems and "there is neither a donor nor a backup" in problems


def test_an_older_state_is_loaded_if_no_donor_has_a_later_one(
    recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the coordinator's last checkpoint, if the numbers of all peers became NaN at once."""
    averager = recovery.optimizer.state_averager
    kept = replace(averager.state(copy=True), step=2)

    def download_state(min_epoch: int, credible: int | None, timeout: float | None) -> TrainingState | None:
        return kept if min_epoch <= kept.step else None

    monkeypatch.setattr(averager, "download_state", download_state)
    monkeypatch.setattr(averager, "local_epoch", 7)
    spoil(recovery)
    recovery.check_parameters()
    assert all(bool((parameter == 0.5).all()) for parameter in recovery.optimizer.parameters())
    assert recovery.optimizer.local_epoch == 2
    assert recovery.reporter.status.problems[-1].startswith("step 2: parameters became NaN")
