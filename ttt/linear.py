"""Matrix products with constant weights, packed once for the processor. Independent of any model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROWS = 4
"""Callers pad to this many rows. With fewer, libraries use kernels that round differently: a candidate's codes would
depend on how many others are computed beside it."""
INT8_MAX, OFFSET = 127, 128
"""Largest int8 value, and the offset that makes x unsigned, as the library requires."""
TINY = 1e-30
"""The scale of a row of zeros."""


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


class Int8Linear:
    """`x @ weight.T + bias` in 8-bit integers, with a scale for each row of the weight and for each row of x.

    Rows do not influence each other, and the sums are exact: only the rounding to 8 bits costs precision (as in
    LLM.int8, Dettmers et al. 2022, without its treatment of outliers). Needs oneDNN and a CPU with VNNI; on other CPUs
    oneDNN adds pairs of products in 16 bits, which overflow.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight [o, i] and bias [o] of any floating type; x is float32 or bfloat16, and so is the result."""
        weight = weight.detach().float()
        self.scale = (weight.abs().amax(dim=1) / INT8_MAX).clamp_min_(TINY)
        rounded = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.no_offset = torch.zeros(len(weight), dtype=torch.long)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        exact = x.to(torch.float32, copy=True)
        scale = torch.maximum(exact.amax(dim=1, keepdim=True), -exact.amin(dim=1, keepdim=True))
        # In the dtype of `out`, because a product of two dtypes copies one first. Rounding the scale to 16 bits lets
        # values reach 127.3 below, which still rounds to 127.
        scale = scale.div_(INT8_MAX).clamp_min_(TINY).to(x.dtype)
        rounded = exact.mul_(1 / scale.float()).round_().to(torch.int8)
        out = self.of_integers(rounded.view(torch.uint8).bitwise_xor_(OFFSET), x.dtype)
        return out.mul_(scale) if self.bias is None else torch.addcmul(self.bias, out, scale, out=out)

    def of_integers(self, rounded: Tensor, dtype: torch.dtype) -> Tensor:
        """(uint8 [n, i] - OFFSET) times the weight -> [n, o] of `dtype`."""
        return torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, OFFSET, self.weight, self.scale, self.no_offset, None, 1.0, 0, dtype, "none", [], ""
        )

    @staticmethod
    def works() -> bool:
        """True if this processor and build of torch compute correctly, tried with the largest possible sums."""
        try:
            largest = Int8Linear(torch.ones(16, 64))(torch.ones(MIN_ROWS, 64))
            return bool(((largest - 64).abs() < 0.1).all())
        except (AttributeError, NotImplementedError, RuntimeError):
            return False


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
