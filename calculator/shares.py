"""What lives on one GPU, and in RAM, whatever is computed: weights, gradients, optimizer state, buffers.

Owns ZeRO's splits, adapters, offload and hivemind's buffers; knows no activations.
"""

from __future__ import annotations

import heapq

from calculator import optimizers
from calculator.architectures import Architecture
from calculator.families import FAMILIES
from calculator.families.common import Tensor
from calculator.optimizers import Sizes
from calculator.setup import TrainingSetup

AHEAD = 2
"""Layers beside the one in use, on the way back: one fetched ahead, one whose gradients are being scattered."""
NF4_BLOCK, NF4_SCALES, NF4_MAP = 64, 256, 16 * 4 + 4
"""Weights of a scale, scales of a scale, and bytes of a map of 16 values with the mean of the scales."""


class Shares:
    """Bytes on one GPU for the whole step.

    weights: always there; gathered: of other GPUs' parts, until the end of the backward pass;
    gradients: once all exist; all_gradients: the same before ZeRO splits them; state: of the optimizer, wherever it
    is; paged: thereof allowed to leave; step: what the optimizer's step makes and frees; accumulators: hivemind's.
    """

    def __init__(self, a: Architecture, setup: TrainingSetup, sizes: Sizes, trained: Sizes) -> None:
        parts = setup.gpus if setup.zero_stage else 1
        self.width = 4 if setup.adapter != "none" else setup.width
        split = setup.zero_stage >= 2
        mine = _split(trained, parts) if split else trained
        self._weigh(setup, sizes, trained, parts if split else 1)
        self.all_gradients = optimizers.count(trained) * self.width
        self.gradients = optimizers.count(mine) * self.width
        state, pageable = optimizers.state_bytes(mine, setup)
        self.state = fullest(trained, setup) if setup.zero_stage == 1 else state
        self.paged = min(self.state, -(-pageable // parts) if setup.zero_stage == 1 else pageable)
        offloaded = setup.offload_optimizer != "none"
        self.state_on_gpu = 0 if offloaded else self.state - self.paged
        temporaries = 0 if offloaded else optimizers.step_temporaries(mine, setup, self.width)
        self.step = -(-temporaries // parts) if setup.zero_stage == 1 else temporaries
        own = getattr(FAMILIES[a.family], "buffers", None)
        self.buffers = own(a, setup.width) if own else 0
        self.accumulators = 0 if not setup.swarm or setup.reuse_grad_buffers else self.all_gradients

    def _weigh(self, setup: TrainingSetup, sizes: Sizes, trained: Sizes, parts: int) -> None:
        """As torch's fully_shard: tensors outside the layers stay gathered from the forward to the backward pass."""
        adapters = optimizers.count(trained) * 4 if setup.adapter != "none" else 0
        self.weights, self.gathered = weight_bytes(sizes, setup) + adapters, 0
        if parts == 1:
            return
        self.gathered = self.weights
        if setup.zero_stage == 3:
            outside = [(x, repeat) for x, repeat in sizes if repeat == 1]
            self.gathered = weight_bytes(outside, setup) + layer_bytes(sizes, setup)
        self.weights = weight_bytes(_split(sizes, parts), setup) + -(-adapters // parts)


def layer_bytes(sizes: Sizes, setup: TrainingSetup) -> int:
    """Weights of one layer, unpacked."""
    return sum(x.n * setup.width for x, repeat in sizes if repeat > 1)


def weight_bytes(sizes: Sizes, setup: TrainingSetup) -> int:
    """Of a model's own weights, adapters apart; QLoRA's in NF4 with double quantisation."""
    if setup.adapter != "qlora":
        return optimizers.count(sizes) * setup.width
    return sum(repeat * (nf4_bytes(x.n) if x.is_matrix else x.n * setup.width) for x, repeat in sizes)


def nf4_bytes(n: int) -> int:
    """Half a byte a weight, an 8-bit scale for 64 weights, a 32-bit one for 256 scales (Dettmers et al. 2023)."""
    scales = -(-n // NF4_BLOCK)
    return -(-n // 2) + scales + 4 * -(-scales // NF4_SCALES) + NF4_MAP


def _split(sizes: Sizes, parts: int) -> Sizes:
    """The first GPU's part: each tensor is cut along its first axis, the rest of the division to the first ones."""
    return [
        (Tensor(x.name, (-(-x.shape[0] // parts), *x.shape[1:]) if x.shape else (), repeat), repeat)
        for x, repeat in sizes
    ]


def fullest(sizes: Sizes, setup: TrainingSetup) -> int:
    """State of the fullest of the GPUs among which whole tensors are dealt, the largest first, as torch's
    ZeroRedundancyOptimizer does."""
    loads = [0] * min(setup.gpus, sum(repeat for _, repeat in sizes))
    for x, repeat in sorted(sizes, key=lambda pair: -pair[0].n):
        size = optimizers.state_bytes([(x, 1)], setup)[0]
        for _ in range(repeat):
            heapq.heapreplace(loads, loads[0] + size)
    return max(loads)


def ram(setup: TrainingSetup, trained: int, shares: Shares) -> dict[str, int]:
    """What the optimizer and hivemind keep in RAM; the Python processes themselves are not counted.

    trained: parameters. hivemind averages parameters in float32 and gradients in their own type.
    """
    if setup.offload_optimizer == "zero-offload":
        return {"zero-offload": int(max(4 * setup.gpus, 16) * trained * 1.5)}
    kept = {}
    if setup.offload_optimizer == "hivemind":
        kept = {"master weights": 4 * trained, "averaged gradients": 4 * trained, "optimizer": shares.state}
    elif setup.swarm:
        kept = {"averaged weights": 4 * trained, "averaged gradients": shares.width * trained}
    if setup.paged_optimizer:
        kept["paged optimizer (at most)"] = shares.paged
    return kept
