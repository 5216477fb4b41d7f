"""A few of the benchmark's cases: the estimate against real models under FakeTensorMode and MemTracker."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.calculator.cases import Case
from benchmarks.calculator.steps import measure, predict
from calculator import TrainingSetup

SMALL: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("gpt2", {"n_layer": 2, "vocab_size": 2000}, {"precision": "mixed-fp16", "attention": "eager"}),
    ("gpt2", {"n_layer": 4, "vocab_size": 500}, {"gradient_checkpointing": True, "batch_size": 8}),
    ("bert", {"num_hidden_layers": 2}, {"optimizer": "sgd"}),
    ("t5", {"num_layers": 2}, {"attention": "eager", "precision": "pure-bf16"}),
    ("llama", {"num_hidden_layers": 2, "vocab_size": 1000}, {}),
    ("ttt", {"depth": 6}, {"optimizer": "sgd"}),
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("family", "config", "techniques"), SMALL, ids=lambda x: str(x)[:60])
def test_the_peak_is_what_pytorch_allocates(family: str, config: dict[str, Any], techniques: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"batch_size": 2, "sequence_length": None if family == "ttt" else 128}
    case = Case(family, TrainingSetup(**{**sizes, **techniques}), config)
    assert predict(case) == pytest.approx(measure(case), rel=0.05 if family == "ttt" else 0.01)
