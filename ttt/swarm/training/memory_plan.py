"""Plans how a peer trains on its device: the micro-batch and memory technique that fit. Independent of the network."""

from __future__ import annotations

import os

import torch

from ttt.config import DalleConfig
from ttt.errors import InvalidInput
from ttt.hardware import memory_budget
from ttt.train.micro_batch import MemoryPlan, peak_bytes, plan_memory

MAX_MICRO_BATCH = {"cuda": 64, "cpu": 8}
"""The largest micro-batch that is chosen automatically: larger ones gain little speed, and other peers wait."""
STEP_SHARE = 8
"""An automatic micro-batch is at most this fraction of the global batch, or the step would overshoot its batch."""


def plan_micro_batch(
    config: DalleConfig, device: torch.device, dtype: torch.dtype, global_batch: int, *, limit: int = 0, free: int = 0
) -> MemoryPlan:
    """Choose micro-batch and memory technique by the free memory of the device.

    limit: the micro-batch that the user chose, which is taken if it fits, and halved until it does; 0: choose. free:
    bytes that may be used; 0: measure them. Raises InvalidInput if not even one sample fits, or `limit` is larger than
    the global batch.
    """
    if limit > global_batch:
        raise InvalidInput(
            f"--micro-batch {limit} is more than the global batch of this run, {global_batch}, and other peers would "
            f"refuse it; choose at most {global_batch}, or 0 for the largest that fits"
        )
    free = free or usable_bytes(device)
    if not limit:
        most = MAX_MICRO_BATCH.get(device.type, MAX_MICRO_BATCH["cpu"])
        return plan_memory(config, device, min(most, max(1, global_batch // STEP_SHARE)), dtype, free=free)
    # plan_memory prefers a smaller micro-batch with activations kept; here the user's size comes first.
    for reversible in (False, True) if config.reversible else (False,):
        needed = peak_bytes(config, device, limit, dtype, reversible)
        if needed <= free:
            return MemoryPlan(limit, reversible, needed)
    return plan_memory(config, device, limit, dtype, free=free)


def min_bytes(config: DalleConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Return the peak bytes of training with a micro-batch of 1."""
    return peak_bytes(config, device, 1, dtype, reversible=config.reversible)


def usable_bytes(device: torch.device) -> int:
    """Return the bytes that may be planned for; on a GPU not more than the user's cap on this process."""
    if device.type != "cuda":
        return memory_budget(device)
    cap = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.get_device_properties(device).total_memory
    return min(memory_budget(device), int(cap))


def memory_in_use(device: torch.device) -> tuple[int, int]:
    """Return (bytes that this process holds on the GPU, bytes of the GPU); zeros without a GPU."""
    if device.type != "cuda":
        return 0, 0
    return torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory


def device_name(device: torch.device) -> str:
    """Return a human-readable name for the leaderboard."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type.upper()}, {os.cpu_count()} cores"


def describe_plan(plan: MemoryPlan, device: torch.device) -> str:
    """Return the plan as text for the status."""
    activations = "recomputed" if plan.reversible else "kept"
    return f"training on {device} in micro-batches of {plan.micro_batch}, activations {activations}"
