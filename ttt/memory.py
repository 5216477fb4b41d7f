"""How much memory there is now, and how to tell that it ran out. Knows no model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = {"cuda": 0.85, "cpu": 0.6}
"""Of what is free, what a request may plan to use; the rest is for other programs and for fragmentation."""
CGROUP = Path("/sys/fs/cgroup")


def budget(device: torch.device) -> int:
    """Bytes that may be planned for on `device`."""
    return int(available(device) * SHARE.get(device.type, SHARE["cpu"]))


def available(device: torch.device) -> int:
    """Free bytes on `device`, measured now; the host's where the device does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(value for value in (_system_available(), _container_available()) if value is not None)


def is_out_of_memory(error: BaseException) -> bool:
    """True of the errors by which Python, CUDA, MPS and torch's CPU allocator say that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "out of memory" in text or "can't allocate memory" in text
    )


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 4 << 30


def _container_available() -> int | None:
    """What the control group (v2, then v1) still allows; None where there is no limit.

    Files read lately count as used there, but give way to whoever needs the memory.
    """
    for folder, limit, used, files in (
        (CGROUP, "memory.max", "memory.current", "inactive_file"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            taken = int((folder / used).read_text()) - _statistic(folder / "memory.stat", files)
            return max(0, int((folder / limit).read_text()) - max(0, taken))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None


def _statistic(file: Path, name: str) -> int:
    """The number beside `name` in a control group's `memory.stat`, 0 where it is not told."""
    try:
        return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[:1] == [name]), 0)
    except (OSError, ValueError, IndexError):
        return 0
