"""A few numbers that say whether two peers hold the same parameters. Knows no network.

hivemind logs "averaged with 4 peers" when it exchanged nothing; only the parameters themselves tell. A fingerprint is
linear, so that the difference of two fingerprints is the fingerprint of the difference, and its length is on average
that of the difference itself (sums of many elements, each as likely too high as too low).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 16


def fingerprint(tensors: Iterable[Tensor]) -> tuple[list[float], float]:
    """(`SIZE` sums over all elements, each element in one of them; Euclidean norm of all elements)."""
    import torch

    sums, square = torch.zeros(SIZE, dtype=torch.float64), 0.0
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).to("cpu", torch.float32)
        whole = flat[: len(flat) // SIZE * SIZE].view(-1, SIZE)
        sums += whole.sum(dim=0, dtype=torch.float64)
        rest = flat[whole.numel() :]
        sums[: len(rest)] += rest
        square += float(flat.square().sum(dtype=torch.float64))
    return sums.tolist(), math.sqrt(square)


def distance(a: Sequence[float], b: Sequence[float], norm: float) -> float:
    """Estimate of |parameters a - parameters b| / norm."""
    difference = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return difference / norm if norm > 0 else difference
