"""How one device is best used: the largest micro-batch that fits, and whether activations must be computed again.

The calculator estimates, and on a GPU a trial confirms. Knows no data.
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
from ttt.train.step import TrainingStep
from ttt.types import Batch


@dataclass(frozen=True)
class MemoryPlan:
    """What a device is asked to do at once."""

    micro_batch: int
    reversible: bool
    """Activations are computed again in the backward pass: slower, and memory does not grow with depth."""
    bytes: int
    """Peak of a step by the calculator, weights and (where it is kept there) optimizer state among them."""


def plan_memory(
    config: DalleConfig, device: torch.device, batch_size: int, dtype: torch.dtype, *, free: int = 0
) -> MemoryPlan:
    """The fastest way to train on `device` with batches of `batch_size` samples.

    free: bytes that may be used (0: measured). Remembering activations is about 1.3x faster than computing them
    again, so it comes first where a micro-batch of 8 (or the whole batch) still fits. InvalidInput if nothing fits.
    """
    free = free or memory_budget(device)
    fitting = [
        MemoryPlan(size, reversible, needed)
        for reversible in ((False, True) if config.reversible else (False,))
        for size in _sizes(batch_size)
        if (needed := peak_bytes(config, device, size, dtype, reversible)) <= free
    ]
    comfortable = [found for found in fitting if found.micro_batch >= min(8, batch_size)]
    best = next(iter(comfortable), None) or max(fitting, key=lambda found: found.micro_batch, default=None)
    if best is None:
        least = peak_bytes(config, device, 1, dtype, config.reversible)
        raise InvalidInput(
            f"this model needs {least / 2**30:.1f} GiB to train with a micro-batch of 1 and {free / 2**30:.1f} GiB "
            "can be used here; free some memory, take a smaller model or another device"
        )
    return best


def probe(fitted: MemoryPlan, dalle: Dalle, *, precision: str) -> MemoryPlan:
    """The fit, halved until a step with random data really succeeds. On a CPU nothing is tried: there, running out
    of memory ends the process.
    """
    config = dalle.config
    step = TrainingStep(dalle, precision=precision)
    if step.device.type != "cuda":
        return fitted
    while True:
        try:
            step.backward(_random_batch(config, fitted.micro_batch))
            return fitted
        except RuntimeError as error:
            if not is_out_of_memory(error) or fitted.micro_batch == 1:
                raise
            fitted = replace(fitted, micro_batch=fitted.micro_batch // 2)
        finally:
            dalle.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def peak_bytes(
    config: DalleConfig, device: torch.device, micro_batch: int, dtype: torch.dtype, reversible: bool
) -> int:
    """Bytes on `device` at the largest moment of a step, with the optimizer of `ttt.train`."""
    setup = TrainingSetup(
        optimizer="lamb8bit-cpu",
        offload_optimizer=True,  # of the RAM this plans, the state alone: `Lamb` keeps no copy of the weights
        precision={torch.bfloat16: "mixed-bf16", torch.float16: "mixed-fp16"}.get(dtype, "float32"),  # type: ignore[arg-type]
        batch_size=micro_batch,
        reversible=reversible,
    )
    memory = estimate(as_architecture(config), setup)
    return memory.gpu_total + (0 if device.type == "cuda" else memory.optimizer)


def as_architecture(config: DalleConfig) -> Architecture:
    """The model as the calculator knows it."""
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
    """The whole batch, then its halves."""
    while batch_size >= 1:
        yield batch_size
        batch_size //= 2


def _random_batch(config: DalleConfig, size: int) -> Batch:
    return Batch(
        torch.randint(config.num_text_tokens, (size, config.text_seq_len)),
        torch.randint(config.num_image_tokens, (size, config.image_seq_len)),
    )
