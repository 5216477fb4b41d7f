"""Devices, precisions and free memory: detected and measured, not assumed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.sampling.oracle import needs_vnni
from ttt import hardware
from ttt.config import DEMO, PAPER
from ttt.errors import InvalidInput
from ttt.hardware import choose_device, choose_dtype, choose_training_dtype, flop_per_code, free_memory
from ttt.linear import Int8Linear, PackedLinear

CPU = torch.device("cpu")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file")
V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
STAT = "anon 3000\ninactive_file 7\n{name} 500\nactive_file 900\n"


def test_auto_is_a_device_that_works():
    device = choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2
    assert choose_device("cpu") == choose_device(CPU) == CPU


def test_small_models_are_sampled_in_float32():
    assert choose_dtype("auto", CPU, DEMO) == torch.float32


@pytest.mark.parametrize(("gain", "chosen"), [(4.0, torch.bfloat16), (1.1, torch.float32), (0.2, torch.float32)])
def test_large_models_use_16_bits_only_if_measured_to_be_faster(monkeypatch, gain, chosen):
    monkeypatch.setattr(hardware, "_seconds", lambda dim: (1.0, 1.0 / gain))
    assert choose_dtype("auto", CPU, PAPER) == chosen


def test_sampling_and_training_choose_from_one_table():
    assert choose_dtype("bfloat16", CPU, DEMO) == choose_training_dtype("bfloat16", CPU) == torch.bfloat16
    for choose in (lambda name: choose_dtype(name, CPU, DEMO), lambda name: choose_training_dtype(name, CPU)):
        for unknown in ("half", "", 16, torch.float64):
            with pytest.raises(InvalidInput, match="unknown; allowed: 'auto', 'float32'"):
                choose(unknown)
    with pytest.raises(InvalidInput, match="unknown"):
        choose_training_dtype("int8", CPU)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_16_bits_on_a_gpu_are_its_native_type(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    gpu = torch.device("cuda", 0)
    assert choose_dtype("auto", gpu, PAPER) == choose_training_dtype("auto", gpu) == expected


def test_times_are_measured():
    assert all(0 < seconds < 5 for seconds in hardware._seconds(64))


def test_a_code_of_the_paper_takes_2_15_gflop_in_the_layers():
    layers = flop_per_code(PAPER) - 2 * PAPER.num_image_tokens * PAPER.dim
    assert layers == pytest.approx(2.15e9, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 4, 17, 64])
def test_packed_products_equal_plain_ones(dtype: torch.dtype, rows: int):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((rows, 48), (80, 48), (80,)))
    with torch.inference_mode():
        for b in (bias, None):
            expected = torch.nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
            for pack in (True, False):
                got = PackedLinear(weight, b, pack=pack)(x)
                assert got.dtype == dtype
                tolerance = 1e-4 if dtype == torch.float32 else 0.15
                torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="NO /proc/cpuinfo: whether there is VNNI is not known")
def test_a_processor_with_vnni_multiplies_in_8_bits():
    """Otherwise `needs_vnni` would skip the tests where int8 fails."""
    if not {"avx512_vnni", "avx_vnni"} & set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip("THIS PROCESSOR LACKS VNNI: its products in 8 bits are refused, and not checked")
    assert Int8Linear.works()


def test_a_processor_without_vnni_is_detected():
    """oneDNN's kernels for it add pairs of products in 16 bits: 64 ones come to 0.5."""
    code = "from ttt.linear import Int8Linear; print(Int8Linear.works())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 17, 64])
def test_int8_products_are_close_and_rows_are_independent(dtype: torch.dtype, rows: int):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((rows, 48), (80, 48), (80,)))
    x *= torch.logspace(-3, 3, rows)[:, None]  # a scale for all rows would lose the small ones
    x, before = x.to(dtype), x.to(dtype).clone()
    with torch.inference_mode():
        product = Int8Linear(weight, bias * 1e-3)
        got, expected = product(x), torch.nn.functional.linear(x.double(), weight.double(), bias.double() * 1e-3)
        assert got.dtype == dtype
        off = (got.double() - expected).norm(dim=1) / expected.norm(dim=1)
        assert off.max() < 0.02, "rounding to 8 bits of gaussian numbers costs 1.1 %"
        assert torch.equal(product(x[-1:]), got[-1:])
        assert torch.equal(x, before)


@needs_vnni
def test_zeros_in_int8_are_zeros():
    with torch.inference_mode():
        assert Int8Linear(torch.zeros(3, 8))(torch.ones(4, 8)).tolist() == [[0.0] * 3] * 4
        assert Int8Linear(torch.ones(3, 8))(torch.zeros(4, 8)).tolist() == [[0.0] * 3] * 4


def test_int8_chooses_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", "int8") == choose_device("auto", torch.int8) == CPU


@needs_vnni
def test_int8_is_chosen_only_on_request_and_on_cpus(monkeypatch):
    assert choose_dtype("int8", CPU, DEMO) == choose_dtype(torch.int8, CPU, DEMO) == torch.int8
    with pytest.raises(InvalidInput, match="'int8' needs a CPU with VNNI"):
        choose_dtype("int8", torch.device("cuda"), DEMO)
    monkeypatch.setattr(Int8Linear, "works", staticmethod(lambda: False))
    with pytest.raises(InvalidInput, match="oneDNN"):
        choose_dtype("int8", CPU, DEMO)


def test_without_onednn_the_plain_product_is_used(monkeypatch):
    def missing(*args: object) -> torch.Tensor:
        raise RuntimeError("operator does not exist")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing, raising=False)
    linear = PackedLinear(torch.ones(3, 2))
    assert not linear.packed
    assert linear(torch.ones(1, 2)).tolist() == [[2, 2, 2]]


def group(folder: Path, version: tuple[str, str, str, str], limit: str, used: int, stat: str | None) -> None:
    (folder / "memory").mkdir()
    limit_file, used_file, stat_file, _ = version
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    if stat is not None:
        (folder / stat_file).write_text(stat)


@pytest.fixture
def only_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(hardware, "_system_available", lambda: 1 << 40)


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.usefixtures("only_the_group")
def test_cached_files_are_not_used_memory(tmp_path: Path, version: tuple[str, str, str, str]):
    stat = f"anon 3000\n{version[3]} 500\nactive_file 900\n"
    group(tmp_path, version, "10000", 4000, stat)
    assert free_memory(CPU) == 10_000 - (4000 - 500)


@pytest.mark.parametrize("stat", [None, "", "\n", "inactive_file", "inactive_file many", "anon 5\n"])
@pytest.mark.usefixtures("only_the_group")
def test_a_missing_size_of_cached_files_counts_as_zero(tmp_path: Path, stat: str | None):
    group(tmp_path, V2, "10000", 4000, stat)
    assert free_memory(CPU) == 6000


@pytest.mark.parametrize(("used", "cached", "left"), [(12_000, 500, 0), (12_000, 5000, 3000), (100, 500, 10_000)])
@pytest.mark.usefixtures("only_the_group")
def test_free_memory_is_between_zero_and_the_limit(tmp_path: Path, used: int, cached: int, left: int):
    group(tmp_path, V2, "10000", used, f"inactive_file {cached}\n")
    assert free_memory(CPU) == left


@pytest.mark.usefixtures("only_the_group")
def test_without_a_limit_the_free_memory_is_the_machines(tmp_path: Path):
    group(tmp_path, V2, "max", 4000, "inactive_file 500\n")
    assert free_memory(CPU) == 1 << 40
