"""How the two moments of one tensor are kept: float32, or 8 bits in blocks. Knows no update rule and no parameters.

8 bits: block-wise dynamic quantisation (Dettmers et al. 2022, section 2.1) in blocks of 4096 elements, each with one
float32 scale, its largest magnitude. The map of codes and the way back are bitsandbytes'. The way there is a table
over the first bits of a float32: bitsandbytes' own on a CPU turns all that is below 1e-5 of a block's largest number
into one code, and takes several times as long (docs/optimizer.md).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from ttt.errors import CheckpointError, InvalidInput

Moment = Literal["exp_avg", "exp_avg_sq"]
State = dict[str, Tensor]
"""Of one parameter. 32 bits: exp_avg, exp_avg_sq, float32 in its shape. 8 bits: exp_avg_codes, exp_avg_sq_codes,
uint8 [elements]; exp_avg_scales, exp_avg_sq_scales, float32 [blocks]."""

MOMENTS: tuple[Moment, ...] = ("exp_avg", "exp_avg_sq")
SMALLEST_8BIT = 65_536
"""Tensors with fewer elements keep float32: they cost little and are the sensitive ones."""
BLOCK = 4096
"""Elements that share one scale."""
TABLE_BITS = 18
"""Sign, exponent and 9 bits of the mantissa: codes differ by more than that."""


def zeros(parameter: Tensor, device: torch.device, bits: int) -> State:
    n = parameter.numel()
    if bits == 32 or n < SMALLEST_8BIT:
        return {name: torch.zeros(parameter.shape, dtype=torch.float32, device=device) for name in MOMENTS}
    blocks = -(-n // BLOCK)
    state = {}
    for name in MOMENTS:
        state[name + "_codes"] = torch.zeros(n, dtype=torch.uint8, device=device)
        state[name + "_scales"] = torch.zeros(blocks, dtype=torch.float32, device=device)
    return state


def decayed(state: State, name: Moment, part: slice, beta: float) -> Tensor:
    """beta times a moment's elements `part`: a view of the state in 32 bits, a new tensor from 8."""
    if name in state:
        return state[name].view(-1)[part].mul_(beta)
    codes, scales = state[name + "_codes"][part], state[name + "_scales"][_blocks(part)]
    code = _code(name, codes.device)
    moment: Tensor = bitsandbytes().dequantize_blockwise(codes, absmax=scales * beta, code=code, blocksize=BLOCK)
    return moment


def store(state: State, name: Moment, part: slice, moment: Tensor) -> None:
    """Keeps what `decayed` gave once it was advanced. In 8 bits `moment` is worked in, and of no use afterwards."""
    if name in state:
        return
    signed = name == "exp_avg"
    scales = state[name + "_scales"][_blocks(part)]
    whole = moment.numel() // BLOCK * BLOCK
    for blocks, largest in (
        (moment[:whole].view(-1, BLOCK), scales[: whole // BLOCK]),
        (moment[whole:].view(1, -1), scales[whole // BLOCK :]),
    ):
        if blocks.numel():
            torch.amax(blocks, 1, out=largest)
            if signed:
                torch.maximum(largest, -blocks.amin(1), out=largest)
            blocks.mul_(largest.clamp_min(1e-38).reciprocal_().unsqueeze(1))
    first_bits = moment.view(torch.int32).bitwise_right_shift_(32 - TABLE_BITS)
    if signed:
        first_bits.bitwise_and_(2**TABLE_BITS - 1)  # the shift fills with the sign
    torch.index_select(_table(name, moment.device), 0, first_bits, out=state[name + "_codes"][part])


def matching(mine: State, theirs: dict[str, Any], number: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs (target, source) of the state of parameter `number`, or CheckpointError: it may come from strangers."""
    if set(mine) != set(theirs):
        raise CheckpointError(
            f"optimizer state of parameter {number} has {', '.join(sorted(theirs)) or 'nothing'}; "
            f"{', '.join(sorted(mine))} expected: was it saved with the same state_bits?"
        )
    for name, tensor in theirs.items():
        wanted = f"{mine[name].dtype} {list(mine[name].shape)}"
        if not isinstance(tensor, Tensor) or tensor.shape != mine[name].shape or tensor.dtype != mine[name].dtype:
            what = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"optimizer state {name} of parameter {number} is {what}; {wanted} expected")
        if not tensor.isfinite().all() or (name != "exp_avg" and (tensor < 0).any()):
            raise CheckpointError(f"optimizer state {name} of parameter {number} holds impossible values")
    return [(mine[name], theirs[name]) for name in mine]


@cache
def bitsandbytes() -> Any:
    """`bitsandbytes.functional`, imported when first needed: it is slow, and for Linux alone."""
    # It warns of a 4-bit kernel that nobody here asked for.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise InvalidInput(
            "8-bit optimizer state needs bitsandbytes, which is not installed here (it is for Linux): "
            "pip install bitsandbytes, or use state_bits=32"
        ) from error
    return functional


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


@cache
def _code(name: Moment, device: torch.device) -> Tensor:
    """The dynamic map, float32 [256], rising; without negative numbers for the squares."""
    code: Tensor = bitsandbytes().create_dynamic_map(signed=name == "exp_avg")
    return code.to(device)


@cache
def _table(name: Moment, device: torch.device) -> Tensor:
    """First bits of a float32 in [-1, 1] -> the code nearest to the middle of all such numbers; uint8.

    A square never becomes 0: over it, a mean that did not (of a row of an embedding seen long ago) would be divided by
    eps alone (docs/optimizer.md).
    """
    rest = 32 - TABLE_BITS
    patterns = (torch.arange(2**TABLE_BITS) << rest) + (1 << (rest - 1))
    numbers = torch.where(patterns < 2**31, patterns, patterns - 2**32).to(torch.int32).view(torch.float32)
    code = _code(name, torch.device("cpu"))
    nearest = torch.bucketize(numbers.nan_to_num(0.0), (code[1:] + code[:-1]) / 2)
    if name == "exp_avg_sq":
        nearest.clamp_(min=1)
    return nearest.to(torch.uint8).to(device)
