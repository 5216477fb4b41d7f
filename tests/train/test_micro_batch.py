"""Which micro-batch a device is given: by the calculator's estimate, and never more than fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from calculator import PRESETS, parameter_count
from tests.support.tiny import TINY_DALLE
from ttt.config import DEMO, PAPER, DalleConfig
from ttt.errors import InvalidInput
from ttt.model.dalle import Dalle
from ttt.train.micro_batch import as_architecture, peak_bytes, plan_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


@pytest.mark.parametrize("config", [PAPER, DEMO, TINY_DALLE, replace(DEMO, share_layers=False, depth=6)])
def test_the_calculator_knows_the_same_model(config: DalleConfig) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Dalle(config).parameters())
    assert parameter_count(as_architecture(config)) == parameters


def test_the_papers_model_is_the_calculators_preset() -> None:
    assert as_architecture(PAPER) == PRESETS["ttt-dalle"]


def test_what_fits_is_taken_whole_and_activations_are_remembered() -> None:
    found = plan_memory(DEMO, CPU, 24, torch.float32, free=8 * GIB)
    assert (found.micro_batch, found.reversible) == (24, False)


def test_the_papers_model_on_a_16_gb_card_is_reversible() -> None:
    found = plan_memory(PAPER, GPU, 64, torch.float16, free=15 * GIB)
    assert found.reversible and found.micro_batch >= 8
    assert found.bytes <= 15 * GIB < peak_bytes(PAPER, GPU, 2 * found.micro_batch, torch.float16, True)


@pytest.mark.parametrize("free", [2, 3, 5, 9, 20, 40, 70, 140])
def test_more_memory_never_means_a_smaller_micro_batch_of_the_same_kind(free: int) -> None:
    less, more = (plan_memory(PAPER, GPU, 64, torch.bfloat16, free=f * GIB) for f in (free, 2 * free))
    assert less.bytes <= free * GIB and more.bytes <= 2 * free * GIB
    assert more.micro_batch >= less.micro_batch or less.reversible > more.reversible


def test_a_model_that_fits_nowhere_is_told_with_both_numbers() -> None:
    with pytest.raises(InvalidInput, match=r"needs 1\.\d GiB .* 0\.5 GiB can be used"):
        plan_memory(PAPER, GPU, 8, torch.bfloat16, free=GIB // 2)
