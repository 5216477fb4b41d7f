"""Micro-batch and memory technique of a peer, by the memory that there is."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny import TINY_DALLE
from ttt.config import PAPER
from ttt.errors import InvalidInput
from ttt.swarm.training.memory_plan import in_words, least, memory_in_use, plan
from ttt.train.micro_batch import peak_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLENTY = 1 << 50


def bytes_of(size: int, *, reversible: bool, device: torch.device = CUDA) -> int:
    return peak_bytes(PAPER, device, size, torch.bfloat16, reversible)


@pytest.mark.parametrize(
    ("device", "global_batch", "micro_batch"), [(CUDA, 4096, 64), (CPU, 4096, 8), (CUDA, 64, 8), (CPU, 4, 1)]
)
def test_where_memory_is_ample_it_is_what_is_worth_it(
    device: torch.device, global_batch: int, micro_batch: int
) -> None:
    found = plan(TINY_DALLE, device, torch.float32, global_batch, free=PLENTY)
    assert (found.micro_batch, found.reversible) == (micro_batch, False)


def test_where_memory_is_short_activations_are_computed_again() -> None:
    free = bytes_of(4, reversible=False)
    assert bytes_of(8, reversible=True) <= free < bytes_of(8, reversible=False)
    found = plan(PAPER, CUDA, torch.bfloat16, 4096, free=free)
    assert found.reversible and found.micro_batch >= 8 and found.bytes <= free


def test_a_size_of_ones_own_is_kept_and_the_technique_follows_the_memory() -> None:
    remembered, again = bytes_of(5, reversible=False), bytes_of(5, reversible=True)
    assert plan(PAPER, CUDA, torch.bfloat16, 4096, asked=5, free=remembered) == plan(
        PAPER, CUDA, torch.bfloat16, 8, asked=5, free=PLENTY
    )
    short = plan(PAPER, CUDA, torch.bfloat16, 4096, asked=5, free=remembered - 1)
    assert (short.micro_batch, short.reversible, short.bytes) == (5, True, again)
    assert plan(PAPER, CUDA, torch.bfloat16, 4096, asked=5, free=1).micro_batch == 5


def test_what_fits_in_no_way_is_told() -> None:
    need = least(PAPER, CUDA, torch.bfloat16)
    assert plan(PAPER, CUDA, torch.bfloat16, 4096, free=need).micro_batch == 1
    with pytest.raises(InvalidInput, match="micro-batch of 1"):
        plan(PAPER, CUDA, torch.bfloat16, 4096, free=need - 1)


def test_more_at_once_than_a_step_has_is_refused() -> None:
    assert plan(TINY_DALLE, CPU, torch.float32, 4, asked=4, free=PLENTY).micro_batch == 4
    with pytest.raises(InvalidInput, match="--micro-batch 5 is more than the global batch of this run, 4"):
        plan(TINY_DALLE, CPU, torch.float32, 4, asked=5, free=PLENTY)


def test_in_words() -> None:
    found = plan(TINY_DALLE, CPU, torch.float32, 64, free=PLENTY)
    assert in_words(found, CPU) == "training on cpu in micro-batches of 8, activations remembered,"
    assert memory_in_use(CPU) == (0, 0)
