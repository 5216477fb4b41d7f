"""Techniques against the real objects of their libraries, and the benchmark cases for a real GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.calculator.cases import Case, architecture
from benchmarks.calculator.gpu import gpu_cases
from benchmarks.calculator.hivemind_buffers import TINY
from benchmarks.calculator.steps import predict
from benchmarks.calculator.techniques import measure_fullest_rank, measure_lora, measure_nf4, measure_sharded
from calculator import TrainingSetup, estimate
from calculator.simulate import tensors
from calculator.static_memory import fullest, nf4_bytes
from calculator.techniques import adapters

SMALL = {"n_layer": 3, "vocab_size": 2000}


@pytest.mark.parametrize("shape", [(64, 64), (100, 77), (768, 3072)])
def test_four_bit_weights_are_exact(shape: tuple[int, int]) -> None:
    assert nf4_bytes(shape[0] * shape[1]) == measure_nf4(shape)


def test_zero_1_assigns_tensors_as_pytorch_does() -> None:
    case = Case("gpt2", TrainingSetup(zero_stage=1, gpus=3), TINY)
    sizes = [(t, t.repeat) for t in tensors(architecture(case))]
    assert fullest(sizes, case.setup) == measure_fullest_rank(case)
    assert estimate(architecture(case), case.setup).optimizer == measure_fullest_rank(case)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_2_and_3_match_fully_shard(stage: int) -> None:
    torch.set_num_threads(1)
    case = Case("gpt2", TrainingSetup(batch_size=2, sequence_length=64, zero_stage=stage, gpus=4), SMALL)
    assert predict(case) == pytest.approx(measure_sharded(case), rel=0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["float32", "pure-bf16"])
def test_adapters_match_real_modules(precision: str) -> None:
    torch.set_num_threads(1)
    setup = TrainingSetup(adapter="lora", batch_size=2, sequence_length=64, precision=precision)  # type: ignore[arg-type]
    case = Case("gpt2", setup, SMALL)
    assert predict(case) == pytest.approx(measure_lora(case), rel=0.02)


def test_every_matrix_of_the_layers_has_two_adapter_matrices() -> None:
    a = architecture(Case("gpt2", TrainingSetup(), {"n_layer": 2, "n_embd": 64, "n_head": 2}))
    sizes = adapters([(t, t.repeat) for t in tensors(a)], 4)
    assert len(sizes) == 2 * 4  # c_attn, c_proj, c_fc, c_proj
    assert sum(x.n * n for x, n in sizes) == 2 * 4 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64)


def test_there_are_cases_for_a_gpu_and_each_has_a_prediction() -> None:
    cases = gpu_cases()
    assert len({case.name for case in cases}) == len(cases) >= 24
    assert len({case.family for case in cases}) >= 3
    assert any(c.family == "gpt2-large" and c.setup.optimizer == "adam8bit" for c in cases)
    assert any(c.family == "ttt" for c in cases)
    for case in cases:
        assert 0 < predict(case) < 80 * 2**30, case.name
