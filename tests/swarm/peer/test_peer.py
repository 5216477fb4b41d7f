"""The loop of a peer with an optimizer that is not connected: out of memory, limits of speed, and the last step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import torch

from tests.support.tiny import write_tiny_bundle
from ttt.swarm.averaging.optimizer import OptimizerEvents
from ttt.swarm.config.options import PeerOptions
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.peer import peer as module
from ttt.swarm.peer.discovery import LeaveRequest
from ttt.swarm.peer.peer import Peer, SpeedWindow
from ttt.swarm.peer.recovery import BACKUP_FILE
from ttt.swarm.process.reporter import Reporter
from ttt.swarm.process.status import read_steps
from ttt.swarm.training.run_model import load_run_model
from ttt.train.micro_batch import MemoryPlan
from ttt.train.step import TrainingStep

MICRO_BATCH, GLOBAL_BATCH = 4, 8


class LonelyOptimizer:
    """Counts micro-batches and makes a step when the global batch is complete; changes no parameters."""

    averaging_timeout = 1.0

    def __init__(self, events: OptimizerEvents, parameters: list[torch.Tensor]) -> None:
        self.events, self._parameters, self.local_epoch, self.samples = events, parameters, 0, 0
        self.tracker = SimpleNamespace(
            global_progress=SimpleNamespace(samples_accumulated=0, target_batch_size=GLOBAL_BATCH, epoch=0, num_peers=1)
        )
        state = SimpleNamespace(step=0, tensors={"x": torch.zeros(1)}, scalars={})
        self.state_averager = SimpleNamespace(step=lambda **_: None, state=lambda **_: state)

    def step(self) -> None:
        self.samples += MICRO_BATCH
        if self.samples % GLOBAL_BATCH == 0:
            self.events.averaging_started()
            self.local_epoch += 1
            self.events.step_done(self.local_epoch)

    def take_reports(self) -> list[Any]:
        return []

    def traffic(self) -> tuple[int, int]:
        return 0, 0

    def learning_rate(self) -> float:
        return 0.1

    def parameters(self) -> list[torch.Tensor]:
        return self._parameters


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[Reporter]:
    reporter = Reporter(tmp_path)
    yield reporter
    reporter.close("stopped")


def make_peer(folder: Path, reporter: Reporter, leave: LeaveRequest, **options: Any) -> Peer:
    settings = RunSettings.model_validate(
        {"model": {"bundle": "tiny"}, "batch": {"global_batch": GLOBAL_BATCH}, "run": {"name": "tiny"}}
    )
    model = load_run_model(settings, write_tiny_bundle(folder / "tiny"))
    discovery: Any = SimpleNamespace(
        generation=0, run_prefix="tiny-g0", dht=SimpleNamespace(signer=None),
        wait_for_final_checkpoint=lambda step, state_bytes_sent: None,
    )  # fmt: skip
    parameters = [p.detach() for p in model.dalle.parameters()]

    def make_optimizer(events: OptimizerEvents) -> Any:
        return LonelyOptimizer(events, parameters)

    return Peer(
        PeerOptions(run="run.toml", initial_peers=("x",), folder=folder, seed=0, **options),
        settings, reporter, leave, discovery, model, MemoryPlan(MICRO_BATCH, False, 0), make_optimizer,
    )  # fmt: skip


def test_a_step_counts_the_samples_of_this_peer(tmp_path: Path, reporter: Reporter) -> None:
    leave = LeaveRequest()
    make_peer(tmp_path, reporter, leave, until=3).run()
    steps = read_steps(tmp_path)
    assert [(record.step, record.samples) for record in steps] == [(1, 8), (2, 8), (3, 8)]
    assert all(record.loss is not None and record.norm > 0 for record in steps)
    assert (reporter.status.samples, reporter.status.steps_done) == (24, 3)
    assert leave.reason == "step 3 is done, as requested" and not leave.restart
    assert (tmp_path / BACKUP_FILE).exists()


def test_a_peer_that_runs_out_of_memory_restarts_with_half_the_micro_batch(
    tmp_path: Path, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    leave = LeaveRequest()
    peer = make_peer(tmp_path, reporter, leave)
    monkeypatch.setattr(TrainingStep, "backward", out_of_memory)
    peer.run()
    assert leave.restart and leave.restart_options == ["--micro-batch", "2"]
    assert leave.reason == "out of memory with a micro-batch of 4; restarting with 2"
    assert reporter.status.samples == 0
    peer.micro_batch, peer.leave = 1, LeaveRequest()
    with pytest.raises(torch.OutOfMemoryError):  # there is no smaller one
        peer.run()


def test_a_micro_batch_with_a_broken_loss_does_not_count(
    tmp_path: Path, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, float("nan"), 1.0, 1.0])
    dropped: list[int] = []
    monkeypatch.setattr(TrainingStep, "backward", lambda self, batch: next(losses))
    monkeypatch.setattr(LonelyOptimizer, "discard_gradients", lambda self: dropped.append(1), raising=False)
    make_peer(tmp_path, reporter, LeaveRequest(), until=1).run()
    assert dropped == [1]
    assert [(record.step, record.samples) for record in read_steps(tmp_path)] == [(1, 4)]


def test_a_limit_of_speed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    window = SpeedWindow(limit=4.0)
    now[0] += 1
    assert window.add(8) == 8.0
    assert window.seconds_to_wait() == 1.0
    now[0] += 40
    assert window.seconds_to_wait() == 0.0, "the window starts again, so that a pause does not allow a burst"
    window.add(8)
    assert window.seconds_to_wait() == 2.0
    assert SpeedWindow(limit=0.0).seconds_to_wait() == 0.0
