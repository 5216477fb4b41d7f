"""The device that a peer trains on: what fits there and how, its name, its memory. Knows no network."""

from __future__ import annotations

import os

import torch

from ttt.config import DalleConfig
from ttt.errors import InvalidInput
from ttt.hardware import memory_budget
from ttt.train.micro_batch import MemoryPlan, peak_bytes, plan_memory

MICRO_BATCH = {True: 64, False: 8}
"""The largest that is proposed with and without CUDA: beyond it there is little to gain, and others wait longer."""
STEP_SHARE = 8
"""A micro-batch is at most this fraction of the global batch, so that a step does not end with a jump."""


def plan(
    config: DalleConfig, device: torch.device, dtype: torch.dtype, global_batch: int, *, asked: int = 0, free: int = 0
) -> MemoryPlan:
    """Micro-batch and memory technique of a peer; InvalidInput where not even one sample fits, or too many are asked.

    asked: the micro-batch that its owner insists on; 0: the largest that fits and is worth it. free: bytes that may be
    used; 0: measured.
    """
    if asked > global_batch:
        raise InvalidInput(
            f"--micro-batch {asked} is more than the global batch of this run, {global_batch}, and others would not "
            f"believe it; choose at most {global_batch}, or 0 for what fits"
        )
    free = free or usable(device)
    if not asked:
        most = min(MICRO_BATCH[device.type == "cuda"], max(1, global_batch // STEP_SHARE))
        return plan_memory(config, device, most, dtype, free=free)
    remembering = peak_bytes(config, device, asked, dtype, reversible=False)
    if not config.reversible or remembering <= free:
        return MemoryPlan(asked, False, remembering)
    return MemoryPlan(asked, True, peak_bytes(config, device, asked, dtype, reversible=True))


def least(config: DalleConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that a micro-batch of 1 takes."""
    return peak_bytes(config, device, 1, dtype, reversible=config.reversible)


def usable(device: torch.device) -> int:
    """Bytes that may be planned for; of a GPU no more than its owner lends."""
    if device.type != "cuda":
        return memory_budget(device)
    lent = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.get_device_properties(device).total_memory
    return min(memory_budget(device), int(lent))


def memory_in_use(device: torch.device) -> tuple[int, int]:
    """(bytes that this process holds on the GPU, bytes it has); zeros where there is none."""
    if device.type != "cuda":
        return 0, 0
    return torch.cuda.memory_reserved(device), torch.cuda.get_device_properties(device).total_memory


def device_name(device: torch.device) -> str:
    """In words, for the leaderboard."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type.upper()}, {os.cpu_count()} cores"


def in_words(fitted: MemoryPlan, device: torch.device) -> str:
    """What is done at once, and how."""
    how = "computed again" if fitted.reversible else "remembered"
    return f"training on {device} in micro-batches of {fitted.micro_batch}, activations {how},"
