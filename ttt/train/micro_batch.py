"""Chooses how a device trains: the largest micro-batch that fits in memory, and whether activations are recomputed.

The calculator estimates the memory, and on a GPU a trial confirms the choice. Independent of the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from calculator import Architecture, TrainingSetup, estimate
from ttt.config import DalleConfig
from ttt.errors import InvalidInput
from ttt.hardware import is_out_of_memory, memory_budget
from ttt.model.dalle import Dalle
from ttt.model.rotary import rotary_channels
from ttt.text import format_bytes
from ttt.train.step import TrainingStep
from ttt.types import Batch


@dataclass(frozen=True)
class MemoryPlan:
    """How much a device computes at once."""

    micro_batch: int
    reversible: bool
    """The backward pass recomputes activations: slower, but memory does not grow with depth."""
    bytes: int
    """Estimated peak of a step on the device, with the weights and, if it is there, the optimizer's state."""


def plan_memory(
    config: DalleConfig, device: torch.device, batch_size: int, dtype: torch.dtype, *, free: int = 0
) -> MemoryPlan:
    """The fastest way to train on `device` with batches of `batch_size` samples; InvalidInput if nothing fits.

    free: bytes that may be used; 0: measured. Storing activations is about 1.3x faster than recomputing them, so it is
    preferred if a micro-batch of 8 (or the whole batch) still fits.
    """
    free = free or memory_budget(device)
    plans = [
        MemoryPlan(size, reversible, needed)
        for reversible in ((False, True) if config.reversible else (False,))
        for size in _sizes(batch_size)
        if (needed := peak_bytes(config, device, size, dtype, reversible)) <= free
    ]
    large = [plan for plan in plans if plan.micro_batch >= min(8, batch_size)]
    best = next(iter(large), None) or max(plans, key=lambda plan: plan.micro_batch, default=None)
    if best is None:
        min_bytes = peak_bytes(config, device, 1, dtype, config.reversible)
        raise InvalidInput(
            f"this model needs {format_bytes(min_bytes)} to train with a micro-batch of 1, and {format_bytes(free)} "
            "can be used here; free some memory, or choose a smaller model or another device"
        )
    return best


def probe(plan: MemoryPlan, dalle: Dalle, *, precision: str) -> MemoryPlan:
    """The plan, with its micro-batch halved until a step with random data succeeds on the GPU.

    On a CPU nothing is tried, because running out of memory there ends the process.
    """
    config = dalle.config
    step = TrainingStep(dalle, precision=precision)
    if step.device.type != "cuda":
        return plan
    while True:
        try:
            step.backward(_random_batch(config, plan.micro_batch))
            return plan
        except RuntimeError as error:
            if not is_out_of_memory(error) or plan.micro_batch == 1:
                raise
            plan = replace(plan, micro_batch=plan.micro_batch // 2)
        finally:
            dalle.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def peak_bytes(
    config: DalleConfig, device: torch.device, micro_batch: int, dtype: torch.dtype, reversible: bool
) -> int:
    """Estimated bytes on `device` at the peak of a step, with the optimizer of `ttt.train`."""
    setup = TrainingSetup(
        optimizer="lamb8bit-cpu",
        offload_optimizer=True,  # its state is in RAM; `Lamb` keeps no copy of the weights there
        precision={torch.bfloat16: "mixed-bf16", torch.float16: "mixed-fp16"}.get(dtype, "float32"),  # type: ignore[arg-type]
        batch_size=micro_batch,
        reversible=reversible,
    )
    memory = estimate(as_architecture(config), setup)
    return memory.gpu_total + (0 if device.type == "cuda" else memory.optimizer)


def as_architecture(config: DalleConfig) -> Architecture:
    """The model as the calculator describes it."""
    return Architecture(
        family="dalle",
        name="ttt-dalle",
        hidden=config.dim,
        layers=config.depth,
        heads=config.heads,
        head_size=config.dim_head,
        feed_forward=config.dim * config.ff_mult,
        vocabulary=config.total_tokens,
        positions=config.seq_len,
        rotary=rotary_channels(config),
        groups=len(set(config.weight_ids)),
        reversible=config.reversible,
        text_positions=config.text_seq_len,
        image_vocabulary=config.num_image_tokens,
    )


def _sizes(batch_size: int) -> Iterator[int]:
    """The batch size, then its halves."""
    while batch_size >= 1:
        yield batch_size
        batch_size //= 2


def _random_batch(config: DalleConfig, size: int) -> Batch:
    return Batch(
        torch.randint(config.num_text_tokens, (size, config.text_seq_len)),
        torch.randint(config.num_image_tokens, (size, config.image_seq_len)),
    )
