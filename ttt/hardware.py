"""Which device and which precision to paint with, chosen by what is there and by measuring. Knows no weights."""

from __future__ import annotations

import time

import torch

from ttt.config import DalleConfig
from ttt.errors import InvalidInput
from ttt.linear import Int8Linear, PackedLinear

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
SMALL_MODEL_FLOP = 200_000_000
"""Below this many operations a code, "auto" is float32 everywhere: 16 bits save little (demo: 19 million)."""
CLEARLY_FASTER = 1.5


def choose_device(name: str | torch.device = "auto", dtype: str | torch.dtype = "auto") -> torch.device:
    """ "auto" is a GPU where there is one and the `dtype` asked for is not that of CPUs.

    CUDA devices come numbered: another may be current in another thread.
    """
    if str(name) == "auto" and str(dtype).removeprefix("torch.") == "int8":
        name = "cpu"
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.empty(0, device="cuda").device
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        found = torch.empty(1, device=device).device
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"device {str(name)[:60]!r} cannot be used here ({reason}); allowed: 'auto', 'cpu', and where there "
            "is one 'cuda' or 'mps'"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise InvalidInput(f"device {str(name)[:60]!r} cannot be used; allowed: 'auto', 'cpu', 'cuda', 'mps'")
    return found if device.type == "cuda" else device


def choose_dtype(name: str | torch.dtype, device: torch.device, config: DalleConfig) -> torch.dtype:
    """Of matrix products and caches. "auto": 16 bits for large models where they are clearly faster, else float32.

    "int8" has to be asked for: it is faster still on CPUs, and what it paints is a little further from the model's.
    """
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name == "int8" and not (device.type == "cpu" and Int8Linear.works()):
        raise InvalidInput("dtype 'int8' is for CPUs with VNNI, and a torch with oneDNN; choose 'auto' here")
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise InvalidInput(f"dtype {str(name)[:60]!r} is unknown; allowed: 'auto', {', '.join(map(repr, DTYPES))}")
    if is_small(config) or device.type == "mps":
        return torch.float32
    if device.type == "cuda":
        with torch.cuda.device(device):  # it may not be the current one
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    float32, bfloat16 = _seconds(config.dim)
    return torch.bfloat16 if float32 >= CLEARLY_FASTER * bfloat16 else torch.float32


def is_small(config: DalleConfig) -> bool:
    return flop_per_code(config) < SMALL_MODEL_FLOP


def flop_per_code(config: DalleConfig) -> int:
    """Operations of all matrix products with weights for one code of one candidate."""
    inner = config.heads * config.dim_head
    layer = 4 * inner * config.dim + 3 * config.ff_mult * config.dim**2
    return 2 * (config.depth * layer + config.num_image_tokens * config.dim)


@torch.inference_mode()
def _seconds(dim: int) -> tuple[float, float]:
    """The best of many products [64, dim] x [dim, 8 dim], float32 and bfloat16.

    In turns: on a busy machine one of them alone could have all the bad luck.
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
