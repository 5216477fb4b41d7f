"""Optimizer state against the real tensors of bitsandbytes and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from calculator import Architecture, TrainingSetup, estimate
from calculator.families.common import Tensor
from calculator.optimizers import state_bytes
from calculator.simulate import tensors

MODEL = Architecture(
    family="gpt2", hidden=72, layers=2, heads=3, feed_forward=288, vocabulary=1001, positions=60, activation="gelu_new"
)
REAL: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam8bit": bnb.optim.Adam8bit,
    "adamw8bit": bnb.optim.AdamW8bit,
    "lamb8bit": bnb.optim.LAMB8bit,
    "lion8bit": bnb.optim.Lion8bit,
    "sgd8bit": lambda p: bnb.optim.SGD8bit(p, lr=1e-3, momentum=0.9),
    "adam": bnb.optim.Adam,
    "lamb": bnb.optim.LAMB,
    "lion": bnb.optim.Lion,
    "adamw": lambda p: torch.optim.AdamW(p, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("name", REAL)
def test_state_is_exact(name: str) -> None:
    parameters = [nn.Parameter(torch.ones(t.shape)) for t in tensors(MODEL) for _ in range(t.repeat)]
    optimizer = REAL[name](parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.dim()]
    real = sum({t.data_ptr(): t.numel() * t.element_size() for t in state}.values())
    assert estimate(MODEL, TrainingSetup(optimizer=name)).optimizer == real


@pytest.mark.parametrize("momentum", [False, True])
def test_adafactor_is_exact(momentum: bool) -> None:
    from transformers.optimization import Adafactor

    parameters = [nn.Parameter(torch.ones(t.shape)) for t in tensors(MODEL) for _ in range(t.repeat)]
    beta1 = 0.9 if momentum else None
    optimizer = Adafactor(parameters, lr=1e-3, relative_step=False, scale_parameter=False, beta1=beta1)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.dim()]
    name = "adafactor-momentum" if momentum else "adafactor"
    assert estimate(MODEL, TrainingSetup(optimizer=name)).optimizer == sum(t.numel() * t.element_size() for t in state)


def test_the_runs_own_lamb_quantizes_tensors_of_65536_elements_in_blocks_of_4096() -> None:
    setup = TrainingSetup(optimizer="lamb8bit-cpu", offload_optimizer=True)
    large, small = Tensor("a", (65_537,)), Tensor("b", (65_535,))
    assert state_bytes([(large, 1)], setup) == (2 * 65_537 + 8 * 17, 0)
    assert state_bytes([(small, 1)], setup) == (8 * 65_535, 0)


def test_embeddings_may_keep_32_bits() -> None:
    m = estimate("gpt2", TrainingSetup(optimizer="adam8bit", embeddings_32bit=True))
    assert m.optimizer / m.parameter_count == pytest.approx(3.93, abs=0.01)


def test_16_bit_states_are_half_of_32_bit_ones() -> None:
    full = estimate("gpt2", TrainingSetup(optimizer="lion")).optimizer
    assert estimate("gpt2", TrainingSetup(optimizer="lion16bit")).optimizer * 2 == full
