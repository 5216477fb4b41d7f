"""Training steps on a real GPU, for `benchmarks.calculator --gpu`."""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.calculator.cases import CASES, Case
from benchmarks.calculator.steps import made, make_optimizer, train_step
from calculator import TrainingSetup


def gpu_cases() -> list[Case]:
    """Return the GPU cases: three families, including GPT-2 Large with 8-bit Adam, and the paper's model."""
    small = [
        c for c in CASES if c.family in ("gpt2", "bert", "llama") and c.setup.optimizer_implementation == "foreach"
    ]
    large: dict[str, Any] = {"batch_size": 1, "sequence_length": 1024, "optimizer": "adam8bit"}
    extra = [
        Case("gpt2-large", TrainingSetup(**large)),
        Case("gpt2-large", TrainingSetup(**large, gradient_checkpointing=True)),
        Case("gpt2-large", TrainingSetup(**large, precision="mixed-fp16", gradient_checkpointing=True)),
        Case("ttt", TrainingSetup(batch_size=1)),
        Case("ttt", TrainingSetup(batch_size=4, precision="mixed-bf16")),
    ]
    return [*extra, *small[:: max(1, len(small) // 24)]]


def measure_gpu(case: Case) -> int:
    """Return `max_memory_allocated` of a real step on the GPU after two warm-up steps, minus earlier allocations."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with torch.device("cuda"):
        model, loss, _ = made(case)
    optimizer = make_optimizer(case.setup, list(model.parameters()))
    for i in range(3):
        if i == 2:
            torch.cuda.reset_peak_memory_stats()
        train_step(case.setup, model, loss, optimizer, "cuda")
    return torch.cuda.max_memory_allocated() - before
