"""Matrix products with fixed weights, laid out once for the processor. Knows no model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROWS = 4
"""With fewer rows the libraries take other paths, whose rounding differs: a candidate's codes would depend
on how many others are computed beside it. Callers pad to this many."""


class PackedLinear:
    """`x @ weight.T + bias` for x [n, i], weight [o, i].

    On CPUs oneDNN's packed layout is used where this build of torch has it (on AMD processors 2.2x faster in
    float32 than the default library); elsewhere this is `F.linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> None:
        packed = _pack(weight.detach()) if pack else None
        self.packed = packed is not None
        self.weight = weight.detach() if packed is None else packed
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def _pack(weight: Tensor) -> Tensor | None:
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        with torch.inference_mode():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 64)
            ones = weight.new_ones(MIN_ROWS, weight.shape[1])
            probe = torch.ops.mkldnn._linear_pointwise(ones, packed, None, "none", [], "")
            return packed if probe.shape == (MIN_ROWS, weight.shape[0]) else None
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return None
