"""GPUs by name, the bytes each offers to a program, and whether an estimate fits. Knows no techniques."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from calculator.checks import number_above_zero
from calculator.errors import CalculatorError
from calculator.memory import GIB, MemoryEstimate

FitVerdict = Literal["fits", "tight", "does not fit"]

APPLE_SHARE = 0.75
"""Of its unified memory, macOS lets the GPU use about this much; the RAM that a setup needs comes out of it too."""


@dataclass(frozen=True)
class Device:
    """What the driver reports as total memory, which is less than what is printed on the box where ECC takes a part."""

    name: str
    gib: float
    unified: bool = False
    bf16: bool = True
    """Computes in bfloat16 (from Ampere on)."""

    @property
    def bytes(self) -> int:
        return int(self.gib * GIB)


_ALL = (
    Device("T4", 14.6, bf16=False), Device("P100", 15.9, bf16=False), Device("V100 16GB", 15.8, bf16=False),
    Device("V100 32GB", 31.7, bf16=False),
    Device("RTX 3060", 11.8), Device("RTX 3060 Ti", 7.8), Device("RTX 3070", 7.8), Device("RTX 3080", 9.8),
    Device("RTX 3080 Ti", 11.8), Device("RTX 3090", 23.7), Device("RTX 4060", 7.8), Device("RTX 4060 Ti 16GB", 15.7),
    Device("RTX 4070", 11.7), Device("RTX 4080", 15.7), Device("RTX 4090", 23.6), Device("RTX 5060", 7.7),
    Device("RTX 5060 Ti 16GB", 15.5), Device("RTX 5070", 11.5), Device("RTX 5070 Ti", 15.5), Device("RTX 5080", 15.5),
    Device("RTX 5090", 31.4), Device("L4", 22.0), Device("A10G", 22.1), Device("A100 40GB", 39.4),
    Device("A100 80GB", 79.2), Device("H100", 79.2), Device("H200", 139.8), Device("B200", 178.4),
    *(Device(f"Apple {size}GB", size * APPLE_SHARE, unified=True) for size in (16, 24, 32, 48, 64, 96, 128, 192)),
)  # fmt: skip
DEVICES: dict[str, Device] = {device.name: device for device in _ALL}


def find_device(text: str) -> Device:
    """A device by its name, or a number of GiB of one's own: "RTX 3060", "a100 80gb", "12", "12 GiB"."""
    wanted = _plain(text)
    for device in _ALL:
        if _plain(device.name) == wanted:
            return device
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gib|gb)?\s*", text.lower())
    if number and 0 < float(number[1]) <= 100_000:
        return Device(f"{float(number[1]):g} GiB", float(number[1]))
    near = [d.name for d in _ALL if wanted and wanted in _plain(d.name)]
    if len(near) == 1:
        return DEVICES[near[0]]
    known = ", ".join(near or DEVICES)
    raise CalculatorError(f"unknown GPU {text!r}; known: {known}, or a number of GiB")


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]|nvidia|geforce", "", text.lower())


def verdict(m: MemoryEstimate, device: Device) -> FitVerdict:
    """tight: it fits if context and fragmentation are as small as they ever are, and not if they are at their worst."""
    need = m.gpu_total + (m.ram_total if device.unified else 0)
    low, high = m.overhead
    if need + high <= device.bytes:
        return "fits"
    return "tight" if need + low <= device.bytes else "does not fit"


def custom_gpu(gib: float) -> Device:
    """Return a GPU with this much memory in GiB."""
    size = number_above_zero("GPU memory in GiB", gib, most=100_000)
    return Device(f"{size:g} GiB", size)
