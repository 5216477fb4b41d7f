"""What a peer does with numbers that are none, with a real optimizer that is alone in its swarm."""

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

from ttt.errors import Cancelled
from ttt.swarm.backup import load_backup, save_backup
from ttt.swarm.dht import start_dht
from ttt.swarm.identity import load_identity
from ttt.swarm.optimizer import Hooks, SwarmOptimizer
from ttt.swarm.recovery import BAD_LOSSES, Recovery
from ttt.swarm.reporter import Reporter
from ttt.swarm.settings import AveragingSection
from ttt.swarm.state import is_finite
from ttt.swarm.trainee import Trainee, names_of
from ttt.train.optimizer import Lamb, linear_schedule

SETTINGS = AveragingSection(matchmaking_time=2, request_timeout=1, chunk_timeout=1, averaging_timeout=4)


def trainee() -> Trainee:
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 6)
    groups = [{"params": list(model.parameters())}]
    return Trainee(
        groups, names_of(groups, model), lambda params: Lamb(params, lr=0.1),
        lambda made: linear_schedule(made, total_steps=100, warmup_steps=1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwarmOptimizer]:
    path, key = load_identity(tmp_path_factory.mktemp("identity"))
    dht = start_dht([], identity=path, key=key, listen=["/ip4/127.0.0.1/tcp/0"], required=False)
    made = SwarmOptimizer(
        dht=dht, run_prefix="alone-g0", trainee=trainee(), settings=SETTINGS, global_batch=64, key=key,
        hooks=Hooks(stopped=lambda: True), micro_batch=1,
    )  # fmt: skip
    yield made
    made.shutdown()
    dht.shutdown()


@pytest.fixture
def recovery(optimizer: SwarmOptimizer, tmp_path: Path) -> Iterator[Recovery]:
    with torch.no_grad():
        for parameter in optimizer.parameters():
            parameter.fill_(0.5)
    reporter = Reporter(tmp_path)
    yield Recovery(optimizer, reporter, tmp_path, generation=1, every_seconds=60, forget=lambda: None)
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


def test_a_backup_that_cannot_be_written_is_told(recovery: Recovery) -> None:
    (recovery.folder / "backup.safetensors").mkdir()
    recovery.back_up()
    assert "backup.safetensors could not be written" in recovery.reporter.status.problems[-1]


def test_losses_that_are_not_finite_bring_the_backup_back(recovery: Recovery) -> None:
    recovery.back_up()
    spoil(recovery)
    assert recovery.loss_is_good(1.0)
    assert not any(recovery.loss_is_good(math.nan) for _ in range(BAD_LOSSES))
    assert all(bool((parameter == 0.5).all()) for parameter in recovery.optimizer.parameters())
    assert "restored from its own backup" in recovery.reporter.status.problems[-1]


def test_a_backup_that_does_not_fit_is_none(recovery: Recovery) -> None:
    state = recovery.optimizer.state_averager.state(copy=True)
    broken = {name: tensor.double() for name, tensor in state.tensors.items()}
    save_backup(recovery.folder, replace(state, tensors=broken), generation=1)
    spoil(recovery)
    with pytest.raises(Cancelled):  # it waits for a donor, until it is asked to stop
        recovery.check_parameters()
    told = "\n".join(recovery.reporter.status.problems)
    assert "cannot be used" in told and "neither a donor nor a backup is there" in told
