"""Static memory on one GPU and in RAM: weights, gradients, optimizer state and buffers.

Owns ZeRO's splits, adapters, offload and hivemind's buffers. Independent of activations.
"""

from __future__ import annotations

import heapq

from calculator import optimizers
from calculator.architectures import Architecture
from calculator.families import FAMILIES
from calculator.families.common import Tensor
from calculator.optimizers import Sizes
from calculator.setup import TrainingSetup

PREFETCHED_LAYERS = 2
"""Extra layers alive in the backward pass: one prefetched, and one whose gradients are being reduced."""
NF4_BLOCK, NF4_SCALES, NF4_MAP = 64, 256, 16 * 4 + 4
"""Weights per scale, scales per second-level scale, and bytes of a tensor's code book (16 values and one mean)."""


class StaticMemory:
    """Bytes on one GPU that do not depend on the batch.

    weights: for the whole step; gathered: other GPUs' weights, until the end of the backward pass; gradients: of all
    parameters; all_gradients: the same before ZeRO splits them; state: of the optimizer, on the GPU or in RAM; paged:
    the part of it that can move to RAM; step: temporaries of the optimizer step; accumulators: hivemind's.
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
        buffers = getattr(FAMILIES[a.family], "buffers", None)
        self.buffers = buffers(a, setup.width) if buffers else 0
        self.accumulators = 0 if not setup.swarm or setup.reuse_grad_buffers else self.all_gradients

    def _weigh(self, setup: TrainingSetup, sizes: Sizes, trained: Sizes, parts: int) -> None:
        """Set the weights as torch's fully_shard does: tensors outside the layers stay gathered until backward."""
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
    """Bytes of the weights of one layer, not quantised."""
    return sum(x.n * setup.width for x, repeat in sizes if repeat > 1)


def weight_bytes(sizes: Sizes, setup: TrainingSetup) -> int:
    """Bytes of a model's weights without adapters; QLoRA's are in NF4 with double quantisation."""
    if setup.adapter != "qlora":
        return optimizers.count(sizes) * setup.width
    return sum(repeat * (nf4_bytes(x.n) if x.is_matrix else x.n * setup.width) for x, repeat in sizes)


def nf4_bytes(n: int) -> int:
    """Half a byte per weight, an 8-bit scale per 64 weights, a 32-bit scale per 256 scales (Dettmers et al. 2023)."""
    scales = -(-n // NF4_BLOCK)
    return -(-n // 2) + scales + 4 * -(-scales // NF4_SCALES) + NF4_MAP


def _split(sizes: Sizes, parts: int) -> Sizes:
    """Return the first GPU's part: each tensor is cut along its first axis, and the first GPUs get the remainder."""
    return [
        (Tensor(x.name, (-(-x.shape[0] // parts), *x.shape[1:]) if x.shape else (), repeat), repeat)
        for x, repeat in sizes
    ]


def fullest(sizes: Sizes, setup: TrainingSetup) -> int:
    """Bytes of state on the fullest GPU. Whole tensors are assigned to the least loaded GPU, the largest first, as in
    torch's ZeroRedundancyOptimizer."""
    loads = [0] * min(setup.gpus, sum(repeat for _, repeat in sizes))
    for x, repeat in sorted(sizes, key=lambda pair: -pair[0].n):
        size = optimizers.state_bytes([(x, 1)], setup)[0]
        for _ in range(repeat):
            heapq.heapreplace(loads, loads[0] + size)
    return max(loads)


def ram(setup: TrainingSetup, trained: int, static: StaticMemory) -> dict[str, int]:
    """Return the bytes that the optimizer and hivemind keep in RAM, without the Python processes themselves.

    trained: number of trained parameters. hivemind averages parameters in float32 and gradients in their own dtype.
    """
    if setup.offload_optimizer == "zero-offload":
        return {"zero-offload": int(max(4 * setup.gpus, 16) * trained * 1.5)}
    buffers = {}
    if setup.offload_optimizer == "hivemind":
        buffers = {"master weights": 4 * trained, "averaged gradients": 4 * trained, "optimizer": static.state}
    elif setup.swarm:
        buffers = {"averaged weights": 4 * trained, "averaged gradients": static.width * trained}
    if setup.paged_optimizer:
        buffers["paged optimizer (at most)"] = static.paged
    return buffers
