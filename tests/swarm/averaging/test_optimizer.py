"""The gradients of a step when a round fails: real rounds, in which no other peer takes part."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import torch

from tests.support.alone import alone
from ttt.swarm.averaging.optimizer import SwarmOptimizer


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwarmOptimizer]:
    with alone(tmp_path_factory.mktemp("identity")) as made:
        made.averaging_timeout = 2.5  # every failed round takes so long
        yield made


def accumulate(optimizer: SwarmOptimizer, value: float) -> None:
    """A micro-batch, all of whose gradients are `value`."""
    for accumulator in optimizer.grad_averager._grad_accumulators():
        accumulator.fill_(value)
    optimizer.grad_averager.accumulate_grads_(8)


@pytest.mark.parametrize("delayed", [False, True])
def test_after_a_failed_round_a_peer_steps_on_its_own_gradients(optimizer: SwarmOptimizer, delayed: bool) -> None:
    averager = optimizer.grad_averager
    averager.reset_accumulated_grads_()
    accumulate(optimizer, 7.0)
    control = averager.schedule_step(timeout=optimizer.averaging_timeout)
    averager.step(control=control, reset_accumulators=True, wait=False)
    if delayed:
        accumulate(optimizer, 3.0)  # of the next step
    started = time.monotonic()
    optimizer._average_gradients_and_load_into_optimizer(control)
    assert time.monotonic() - started < 1.8 * optimizer.averaging_timeout, "it waited twice"
    for parameter in optimizer.parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, torch.full_like(parameter, 7.0))
    assert averager.local_samples_accumulated == (8 if delayed else 0)
    assert "own gradients were used" in optimizer.failed_rounds[-1].failed


def test_a_peer_without_others_steps_on_its_own_gradients(optimizer: SwarmOptimizer) -> None:
    optimizer.grad_averager.reset_accumulated_grads_()
    accumulate(optimizer, 5.0)
    optimizer._load_local_gradients_into_optimizer()
    for parameter in optimizer.parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, torch.full_like(parameter, 5.0))


def test_an_auxiliary_peer_delays_nothing(tmp_path: Path) -> None:
    """hivemind asserts that a delayed step has an optimizer step to delay."""
    with alone(tmp_path, auxiliary=True, delayed=True, state_every=3) as auxiliary:
        assert not (auxiliary.delay_grad_averaging or auxiliary.delay_optimizer_step or auxiliary.delay_state_averaging)
        auxiliary._update_global_epoch(None)
        assert auxiliary.local_epoch == 1
