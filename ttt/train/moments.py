"""Stores the two moments of one tensor as float32 or as 8 bits in blocks. Independent of the update rule.

8 bits: block-wise dynamic quantisation (Dettmers et al. 2022, section 2.1) in blocks of 4096 elements, each with one
float32 scale, its largest magnitude. The map of codes and the conversion to float32 are those of bitsandbytes. The
conversion to codes is a table over the first bits of a float32: that of bitsandbytes on a CPU gives everything below
1e-5 of a block's largest number the same code, and takes several times as long (docs/optimizer.md).
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
"""The moments of one parameter. 32 bits: exp_avg, exp_avg_sq, float32 in its shape. 8 bits: exp_avg_codes,
exp_avg_sq_codes, uint8 [elements]; exp_avg_scales, exp_avg_sq_scales, float32 [blocks]."""

MOMENTS: tuple[Moment, ...] = ("exp_avg", "exp_avg_sq")
SMALLEST_8BIT = 65_536
"""Tensors with fewer elements keep float32: they take little memory and are the most sensitive."""
BLOCK = 4096
"""Elements that share one scale."""
TABLE_BITS = 18
"""Sign, exponent and 9 bits of the mantissa, which is finer than the distance between codes."""


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
    """beta times the elements `part` of a moment: a view of the state with 32 bits, a new tensor with 8."""
    if name in state:
        return state[name].view(-1)[part].mul_(beta)
    codes, scales = state[name + "_codes"][part], state[name + "_scales"][_blocks(part)]
    code = _code(name, codes.device)
    moment: Tensor = bitsandbytes().dequantize_blockwise(codes, absmax=scales * beta, code=code, blocksize=BLOCK)
    return moment


def store(state: State, name: Moment, part: slice, moment: Tensor) -> None:
    """Store a moment that `decayed` returned and the caller has updated. With 8 bits, `moment` is overwritten."""
    if name in state:
        return
    signed = name == "exp_avg"
    scales = state[name + "_scales"][_blocks(part)]
    full = moment.numel() // BLOCK * BLOCK  # elements in full blocks; the rest is a shorter block
    for blocks, largest in (
        (moment[:full].view(-1, BLOCK), scales[: full // BLOCK]),
        (moment[full:].view(1, -1), scales[full // BLOCK :]),
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


def matching(own: State, theirs: dict[str, Any], number: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs (target, source) for loading the state of parameter `number`.

    Raises CheckpointError if it does not fit: it may come from strangers.
    """
    if set(own) != set(theirs):
        raise CheckpointError(
            f"optimizer state of parameter {number} has {', '.join(sorted(theirs)) or 'nothing'}; "
            f"{', '.join(sorted(own))} expected: was it saved with the same state_bits?"
        )
    for name, tensor in theirs.items():
        expected = f"{own[name].dtype} {list(own[name].shape)}"
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"optimizer state {name} of parameter {number} is {found}; {expected} expected")
        if not tensor.isfinite().all() or (name != "exp_avg" and (tensor < 0).any()):
            raise CheckpointError(
                f"optimizer state {name} of parameter {number} holds impossible values (NaN or negative)"
            )
    return [(own[name], theirs[name]) for name in own]


@cache
def bitsandbytes() -> Any:
    """`bitsandbytes.functional`, imported when it is first needed: the import is slow, and works on Linux alone."""
    # It warns about a 4-bit kernel that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise InvalidInput(
            "8-bit optimizer state needs bitsandbytes, which is not installed (it exists for Linux): "
            "pip install bitsandbytes, or use state_bits=32"
        ) from error
    return functional


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


@cache
def _code(name: Moment, device: torch.device) -> Tensor:
    """The dynamic map in ascending order, float32 [256]; without negative numbers for squares."""
    code: Tensor = bitsandbytes().create_dynamic_map(signed=name == "exp_avg")
    return code.to(device)


@cache
def _table(name: Moment, device: torch.device) -> Tensor:
    """A table from the first bits of a float32 in [-1, 1] to the code nearest to the middle of all such numbers; uint8.

    A square never becomes 0: otherwise a mean that has not decayed yet (of a row of an embedding seen long ago) would
    be divided by eps alone (docs/optimizer.md).
    """
    rest = 32 - TABLE_BITS
    patterns = (torch.arange(2**TABLE_BITS) << rest) + (1 << (rest - 1))
    numbers = torch.where(patterns < 2**31, patterns, patterns - 2**32).to(torch.int32).view(torch.float32)
    code = _code(name, torch.device("cpu"))
    nearest = torch.bucketize(numbers.nan_to_num(0.0), (code[1:] + code[:-1]) / 2)
    if name == "exp_avg_sq":
        nearest.clamp_(min=1)
    return nearest.to(torch.uint8).to(device)
