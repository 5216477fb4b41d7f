"""The micro-batch of a device follows the calculator's estimate and never exceeds the memory."""

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
def test_the_calculator_describes_the_same_model(config: DalleConfig) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Dalle(config).parameters())
    assert parameter_count(as_architecture(config)) == parameters


def test_the_papers_model_is_the_calculators_preset() -> None:
    assert as_architecture(PAPER) == PRESETS["ttt-dalle"]


def test_a_batch_that_fits_is_computed_at_once_with_stored_activations() -> None:
    plan = plan_memory(DEMO, CPU, 24, torch.float32, free=8 * GIB)
    assert (plan.micro_batch, plan.reversible) == (24, False)


def test_the_papers_model_on_a_16_gb_card_is_reversible() -> None:
    plan = plan_memory(PAPER, GPU, 64, torch.float16, free=15 * GIB)
    assert plan.reversible and plan.micro_batch >= 8
    assert plan.bytes <= 15 * GIB < peak_bytes(PAPER, GPU, 2 * plan.micro_batch, torch.float16, True)


@pytest.mark.parametrize("free", [2, 3, 5, 9, 20, 40, 70, 140])
def test_more_memory_never_means_a_smaller_micro_batch_of_the_same_kind(free: int) -> None:
    less, more = (plan_memory(PAPER, GPU, 64, torch.bfloat16, free=f * GIB) for f in (free, 2 * free))
    assert less.bytes <= free * GIB and more.bytes <= 2 * free * GIB
    assert more.micro_batch >= less.micro_batch or less.reversible > more.reversible


def test_a_model_that_does_not_fit_is_an_error_with_both_sizes() -> None:
    with pytest.raises(InvalidInput, match=r"needs 1\.\d GiB .* 512 MiB can be used"):
        plan_memory(PAPER, GPU, 8, torch.bfloat16, free=GIB // 2)
