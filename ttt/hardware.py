"""The machine's hardware: which device and precision to compute with, free memory, and out-of-memory errors."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ttt.config import DTYPE_NAMES, DalleConfig
from ttt.errors import InvalidInput
from ttt.linear import Int8Linear, PackedLinear
from ttt.text import first_line, shorten

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
TRAINING_DTYPES = ("float32", "bfloat16", "float16")
SMALL_MODEL_FLOP = 200_000_000
"""Below this many operations a code, "auto" is float32 everywhere: 16 bits save little (demo: 19 million)."""
MIN_SPEEDUP = 1.5
"""Least measured speedup of bfloat16 over float32 for "auto" to choose it on a CPU."""
MEMORY_SHARE = {"cuda": 0.85, "cpu": 0.6}
"""Share of the free memory that may be planned for; the rest is for other programs and for fragmentation."""
CGROUP = Path("/sys/fs/cgroup")


def choose_device(name: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> torch.device:
    """The device of this name, checked to work; "auto" prefers a GPU unless `dtype` is int8, which only CPUs have.

    CUDA devices are returned with their number, because another one may be current in another thread.
    """
    if str(name) == "auto" and _dtype_name(dtype) == "int8":
        name = "cpu"
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.empty(0, device="cuda").device
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        numbered = torch.empty(1, device=device).device
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError
        raise InvalidInput(
            f"device {shorten(str(name))!r} cannot be used here ({first_line(error)}); allowed: 'auto', 'cpu', and "
            "with such a GPU 'cuda' or 'mps'"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise InvalidInput(f"device {shorten(str(name))!r} cannot be used; allowed: 'auto', 'cpu', 'cuda', 'mps'")
    return numbered if device.type == "cuda" else device


def choose_dtype(name: str | torch.dtype, device: torch.device, config: DalleConfig) -> torch.dtype:
    """Precision of sampling: of matrix products and caches.

    "auto" is 16 bits for large models on devices where they are clearly faster, else float32. "int8" is never chosen
    automatically: it is faster still on CPUs, but its images deviate a little more from those of the float32 model.
    """
    if _dtype_name(name) == "int8" and not (device.type == "cpu" and Int8Linear.works()):
        raise InvalidInput("dtype 'int8' needs a CPU with VNNI and a torch with oneDNN; choose 'auto' here")
    named = _named_dtype("dtype", name, DTYPE_NAMES)
    if named is not None:
        return named
    if is_small(config):
        return torch.float32
    if device.type == "cpu":  # a CPU without bfloat16 units emulates it, sometimes slowly: measure
        float32, bfloat16 = _seconds(config.dim)
        return torch.bfloat16 if float32 >= MIN_SPEEDUP * bfloat16 else torch.float32
    return _native_half(device)


def choose_training_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Precision of training (autocast); "auto" is 16 bits where the device computes in them natively, else float32."""
    named = _named_dtype("precision", name, TRAINING_DTYPES)
    if named == torch.float16 and device.type != "cuda":
        raise InvalidInput("precision float16 needs a GPU; choose bfloat16, float32 or auto here")
    return _native_half(device) if named is None else named


def is_small(config: DalleConfig) -> bool:
    return flop_per_code(config) < SMALL_MODEL_FLOP


def flop_per_code(config: DalleConfig) -> int:
    """Operations of all matrix products with weights for one code of one candidate."""
    inner = config.heads * config.dim_head
    layer = 4 * inner * config.dim + 3 * config.ff_mult * config.dim**2
    return 2 * (config.depth * layer + config.num_image_tokens * config.dim)


def flops_per_sample(config: DalleConfig) -> float:
    """Operations of one training sample: six a weight and position (two forward, four backward).

    Matrix products with weights alone; the products within attention are left out.
    """
    inner = config.heads * config.dim_head
    layer = 4 * inner * config.dim + 3 * config.ff_mult * config.dim**2
    return 6.0 * config.seq_len * (config.depth * layer + config.dim * config.total_tokens)


def memory_budget(device: torch.device) -> int:
    """Bytes that may be planned for on `device`: a share of what is free now."""
    return int(free_memory(device) * MEMORY_SHARE.get(device.type, MEMORY_SHARE["cpu"]))


def free_memory(device: torch.device) -> int:
    """Free bytes on `device`, measured now; the host's where the device does not report them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(value for value in (_system_available(), _container_available()) if value is not None)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which Python, CUDA, MPS and torch's CPU allocator report that they are out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "out of memory" in text or "can't allocate memory" in text
    )


def _dtype_name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named_dtype(option: str, name: str | torch.dtype, allowed: Sequence[str]) -> torch.dtype | None:
    """The dtype of this name, None for "auto"; InvalidInput for other names."""
    text = _dtype_name(name) if isinstance(name, (str, torch.dtype)) else ""
    if text == "auto":
        return None
    if text not in allowed:
        raise InvalidInput(f"{option} {shorten(str(name))!r} is unknown; allowed: 'auto', {str(list(allowed))[1:-1]}")
    return DTYPES[text]


def _native_half(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has units for it, else float16 on CUDA and float32 elsewhere."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # the query is about the current device
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    units = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    native = any(units.get(name) for name in ("amx_bf16", "avx512_bf16", "arm_bf16"))
    return torch.bfloat16 if native else torch.float32


@torch.inference_mode()
def _seconds(dim: int) -> tuple[float, float]:
    """Shortest time of a product [64, dim] x [dim, 8 dim] in float32 and in bfloat16.

    Measured in turns: on a busy machine, one type measured after the other could have all the bad luck.
    """
    dtypes = (torch.float32, torch.bfloat16)
    products = [
        (PackedLinear(torch.ones(8 * dim, dim, dtype=dtype)), torch.ones(64, dim, dtype=dtype)) for dtype in dtypes
    ]
    best = [float("inf")] * len(products)
    for _ in range(10):
        for i, (linear, x) in enumerate(products):
            start = time.perf_counter()
            linear(x)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 4 << 30


def _container_available() -> int | None:
    """Bytes that the control group (v2, then v1) still allows; None without a limit.

    The kernel counts cached files as used, but frees them when a process needs the memory; so they count as free here.
    """
    for folder, limit, used, files in (
        (CGROUP, "memory.max", "memory.current", "inactive_file"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            taken = int((folder / used).read_text()) - _statistic(folder / "memory.stat", files)
            return max(0, int((folder / limit).read_text()) - max(0, taken))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None


def _statistic(file: Path, name: str) -> int:
    """The number beside `name` in a control group's `memory.stat`, 0 if it is missing."""
    try:
        return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[:1] == [name]), 0)
    except (OSError, ValueError, IndexError):
        return 0
