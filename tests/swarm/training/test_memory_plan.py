"""The micro-batch and the memory technique of a peer follow the free memory."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import TINY_DALLE
from ttt.config import PAPER
from ttt.errors import InvalidInput
from ttt.swarm.training.memory_plan import describe_plan, memory_in_use, min_bytes, plan_micro_batch
from ttt.train.micro_batch import peak_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLENTY = 1 << 50


def bytes_of(size: int, *, reversible: bool, device: torch.device = CUDA) -> int:
    return peak_bytes(PAPER, device, size, torch.bfloat16, reversible)


@pytest.mark.parametrize(
    ("device", "global_batch", "micro_batch"), [(CUDA, 4096, 64), (CPU, 4096, 8), (CUDA, 64, 8), (CPU, 4, 1)]
)
def test_with_ample_memory_the_micro_batch_is_the_largest_useful_one(
    device: torch.device, global_batch: int, micro_batch: int
) -> None:
    found = plan_micro_batch(TINY_DALLE, device, torch.float32, global_batch, free=PLENTY)
    assert (found.micro_batch, found.reversible) == (micro_batch, False)


def test_with_little_memory_activations_are_recomputed() -> None:
    free = bytes_of(4, reversible=False)
    assert bytes_of(8, reversible=True) <= free < bytes_of(8, reversible=False)
    found = plan_micro_batch(PAPER, CUDA, torch.bfloat16, 4096, free=free)
    assert found.reversible and found.micro_batch >= 8 and found.bytes <= free


def test_a_micro_batch_of_the_users_choice_is_taken_if_it_fits() -> None:
    remembered, again = bytes_of(5, reversible=False), bytes_of(5, reversible=True)
    assert plan_micro_batch(PAPER, CUDA, torch.bfloat16, 4096, limit=5, free=remembered) == plan_micro_batch(
        PAPER, CUDA, torch.bfloat16, 8, limit=5, free=PLENTY
    )
    short = plan_micro_batch(PAPER, CUDA, torch.bfloat16, 4096, limit=5, free=remembered - 1)
    assert (short.micro_batch, short.reversible, short.bytes) == (5, True, again)


def test_a_micro_batch_of_the_users_choice_that_does_not_fit_is_halved() -> None:
    free = bytes_of(5, reversible=True)
    assert bytes_of(10, reversible=True) > free
    for limit in (10, 11, 20):
        plan = plan_micro_batch(PAPER, CUDA, torch.bfloat16, 4096, limit=limit, free=free)
        assert (plan.micro_batch, plan.reversible) == (5, True)


def test_a_model_that_does_not_fit_with_one_sample_is_refused() -> None:
    need = min_bytes(PAPER, CUDA, torch.bfloat16)
    assert plan_micro_batch(PAPER, CUDA, torch.bfloat16, 4096, free=need).micro_batch == 1
    with pytest.raises(InvalidInput, match="micro-batch of 1"):
        plan_micro_batch(PAPER, CUDA, torch.bfloat16, 4096, free=need - 1)


def test_a_micro_batch_larger_than_the_global_batch_is_refused() -> None:
    assert plan_micro_batch(TINY_DALLE, CPU, torch.float32, 4, limit=4, free=PLENTY).micro_batch == 4
    with pytest.raises(InvalidInput, match="--micro-batch 5 is more than the global batch of this run, 4"):
        plan_micro_batch(TINY_DALLE, CPU, torch.float32, 4, limit=5, free=PLENTY)


def test_the_plan_as_text() -> None:
    found = plan_micro_batch(TINY_DALLE, CPU, torch.float32, 64, free=PLENTY)
    assert describe_plan(found, CPU) == "training on cpu in micro-batches of 8, activations kept"
    assert memory_in_use(CPU) == (0, 0)
