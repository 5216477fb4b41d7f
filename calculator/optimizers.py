"""Bytes of every optimizer's state, tensor by tensor, and the temporaries of its step. Independent of models."""

from __future__ import annotations

from collections.abc import Iterable

from calculator.families.common import Tensor
from calculator.setup import TrainingSetup

SMALLEST_8BIT = 4096
"""bitsandbytes' min_8bit_size: smaller tensors keep 32 bits."""
BLOCK = 256
CODE_BOOK = 256 * 4
"""Bytes of a quantisation map; all tensors share one."""
RUN_SMALLEST_8BIT, RUN_BLOCK = 65_536, 4096
"""The thresholds of the 2021 run's 8-bit LAMB."""
SMALLEST_PAGED = 100_000

OF_PYTORCH = ("adam", "adamw", "sgd")
"""torch.optim keeps its state in the parameter's dtype; bitsandbytes' 32-bit optimizers and Adafactor in float32."""

Sizes = list[tuple[Tensor, int]]
"""Tensors with the number of copies of each."""


def states(optimizer: str) -> int:
    """State numbers per parameter."""
    return 1 if optimizer.startswith(("sgd", "lion")) else 2


def tensor_state(x: Tensor, setup: TrainingSetup) -> int:
    """Bytes of one tensor's state, without code books."""
    norm = 4 if setup.optimizer in ("lamb", "lamb8bit") else 0  # bitsandbytes stores the update's norm of each tensor
    return norm + _numbers(x, setup)


def _numbers(x: Tensor, setup: TrainingSetup) -> int:
    name, n = setup.optimizer, x.n
    if name.startswith("adafactor"):
        first = 4 * n if name.endswith("momentum") else 0
        if len(x.shape) < 2:
            return first + 4 * n
        rows, columns = n // x.shape[-1], n // x.shape[-2]
        return first + 4 * (rows + columns)
    k = states(name)
    if setup.bits == 16 or (setup.width == 2 and setup.adapter == "none" and name in OF_PYTORCH):
        return 2 * k * n
    if setup.bits == 32 or (setup.embeddings_32bit and is_embedding(x)):
        return 4 * k * n
    least, block = (RUN_SMALLEST_8BIT, RUN_BLOCK) if name == "lamb8bit-cpu" else (SMALLEST_8BIT, BLOCK)
    return 4 * k * n if n < least else k * (n + 4 * -(-n // block))


def is_embedding(x: Tensor) -> bool:
    return "embed" in x.name or "wte" in x.name or "wpe" in x.name or x.name in ("shared.weight", "to_logits.weight")


def state_bytes(sizes: Sizes, setup: TrainingSetup) -> tuple[int, int]:
    """Return the bytes of the whole state, and the bytes of it that can be paged to RAM."""
    total = pageable = 0
    large = False
    for x, count in sizes:
        size = tensor_state(x, setup) * count
        total += size
        large = large or x.n >= SMALLEST_8BIT
        if setup.paged_optimizer and x.n >= SMALLEST_PAGED:
            pageable += size
    if setup.bits == 8 and large and setup.optimizer != "lamb8bit-cpu":
        total += states(setup.optimizer) * CODE_BOOK
    return total, pageable


def step_temporaries(sizes: Sizes, setup: TrainingSetup, width: int) -> int:
    """Bytes that an optimizer step allocates and frees on the device where it runs."""
    largest = max((x.n for x, _ in sizes), default=0)
    name = setup.optimizer
    if name.startswith("adafactor"):
        return 3 * 4 * largest
    if setup.bits == 8 or setup.optimizer_implementation == "fused" or name.startswith(("sgd", "lion", "lamb")):
        return 0
    if setup.optimizer_implementation == "for-loop":
        return 2 * width * largest
    return width * sum(x.n * count for x, count in sizes)


def count(sizes: Iterable[tuple[Tensor, int]]) -> int:
    return sum(x.n * repeat for x, repeat in sizes)
