"""GPUs by name, the memory that each offers to a program, and the verdict whether an estimate fits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from calculator.checks import number_above_zero
from calculator.errors import CalculatorError
from calculator.memory import GIB, MemoryEstimate

FitVerdict = Literal["fits", "tight", "does not fit"]

APPLE_SHARE = 0.75
"""Share of its unified memory that macOS lets the GPU use. The RAM that a setup needs comes out of the same memory."""


@dataclass(frozen=True)
class Device:
    """A GPU. `gib` is about what the driver reports as total memory: less than `gb`, the size in its product name."""

    name: str
    gib: float
    gb: int = 0
    """Nominal size; 0 for a size that a user entered."""
    unified: bool = False
    bf16: bool = True
    """The GPU computes in bfloat16 (from Ampere on)."""

    @property
    def bytes(self) -> int:
        """Memory in bytes."""
        return int(self.gib * GIB)


_OLD = (  # without bfloat16
    ("GTX 1080 Ti", 11, 10.9), ("RTX 2080 Ti", 11, 10.7), ("RTX 2080", 8, 7.8), ("TITAN RTX", 24, 23.6),
    ("Quadro RTX 6000", 24, 23.6), ("Quadro RTX 8000", 48, 47.4), ("T4", 16, 14.6), ("P40", 24, 22.4),
    ("P100", 16, 15.9), ("V100 16GB", 16, 15.8), ("V100 32GB", 32, 31.7),
)  # fmt: skip
_NEW = (
    ("RTX 3050", 8, 7.8), ("RTX 3060", 12, 11.8), ("RTX 3060 Ti", 8, 7.8), ("RTX 3060 Laptop", 6, 5.8),
    ("RTX 3070", 8, 7.8), ("RTX 3070 Ti", 8, 7.8), ("RTX 3080 10GB", 10, 9.8), ("RTX 3080 12GB", 12, 11.8),
    ("RTX 3080 Ti", 12, 11.8), ("RTX 3090", 24, 23.7), ("RTX 3090 Ti", 24, 23.7), ("RTX 4060", 8, 7.8),
    ("RTX 4060 Laptop", 8, 7.8), ("RTX 4060 Ti 8GB", 8, 7.8), ("RTX 4060 Ti 16GB", 16, 15.7), ("RTX 4070", 12, 11.7),
    ("RTX 4070 Laptop", 8, 7.8), ("RTX 4070 SUPER", 12, 11.7), ("RTX 4070 Ti", 12, 11.7),
    ("RTX 4070 Ti SUPER", 16, 15.7), ("RTX 4080", 16, 15.7), ("RTX 4080 Laptop", 12, 11.7),
    ("RTX 4080 SUPER", 16, 15.7), ("RTX 4090", 24, 23.6), ("RTX 4090 D", 24, 23.6), ("RTX 4090 Laptop", 16, 15.7),
    ("RTX 5060", 8, 7.7), ("RTX 5060 Ti 8GB", 8, 7.7), ("RTX 5060 Ti 16GB", 16, 15.5), ("RTX 5070", 12, 11.5),
    ("RTX 5070 Ti", 16, 15.5), ("RTX 5080", 16, 15.5), ("RTX 5090", 32, 31.4), ("RTX 5090 Laptop", 24, 23.5),
    ("RTX A4000", 16, 15.7), ("RTX A5000", 24, 23.6), ("RTX A6000", 48, 47.4), ("RTX 4000 Ada", 20, 19.6),
    ("RTX 5000 Ada", 32, 31.5), ("RTX 6000 Ada", 48, 47.4), ("RTX PRO 6000 Blackwell", 96, 94.9), ("A2", 16, 14.6),
    ("A10", 24, 22.0), ("A10G", 24, 22.1), ("A16", 16, 14.6), ("A30", 24, 23.5), ("A40", 48, 44.3), ("L4", 24, 22.0),
    ("L40", 48, 44.3), ("L40S", 48, 44.3), ("A100 40GB", 40, 39.4), ("A100 80GB", 80, 79.2), ("H100", 80, 79.2),
    ("H100 NVL", 94, 93.0), ("GH200", 96, 94.5), ("H200", 141, 139.8), ("B200", 180, 178.4), ("MI210", 64, 63.9),
    ("MI300X", 192, 191.4), ("RX 7900 XTX", 24, 23.9),
)  # fmt: skip
_ALL = (
    *(Device(name, gib, gb, bf16=False) for name, gb, gib in _OLD),
    *(Device(name, gib, gb) for name, gb, gib in _NEW),
    *(Device(f"Apple {gb}GB", gb * APPLE_SHARE, gb, unified=True) for gb in (16, 24, 32, 48, 64, 96, 128, 192)),
)
DEVICES: dict[str, Device] = {device.name: device for device in _ALL}
ALIASES = {"RTX 3080": "RTX 3080 10GB", "NVIDIA GH200 480GB": "GH200"}
"""A name in older links, and one that gives the size of another memory."""
GROUPS = (8, 12, 16, 24, 32, 40, 48, 80)
"""Nominal sizes in GB that can be chosen without naming a card."""

_FILLERS = re.compile(
    r"\b(nvidia|geforce|tesla|amd|radeon|instinct|gpu|graphics|generation|mobile|workstation|edition|server|"
    r"sxm\d?|pcie?|hbm\d?e?|oam|cu)\b"
)


def find_device(text: str) -> Device:
    """Return a GPU by its name, also as nvidia-smi prints it, or by its memory: "24 GB", "24 GiB", "24564MiB", "24".

    A size in GB means a card sold with that size, which offers a little less. Raises CalculatorError for a name that is
    unknown, or that is sold with several sizes of memory.
    """
    text = ALIASES.get(text.strip(), text)
    if text in DEVICES:
        return DEVICES[text]
    if size := _size(text):
        return size
    if re.match(r"\s*\d+\s*[x×]\s*\S", text.lower()):
        raise CalculatorError(f"{text!r}: name one GPU, and set the number of GPUs with ZeRO")
    base, gb = _split(text)
    named = [d for d in _ALL if base and {base, f"rtx{base}"} & {_split(d.name)[0], _joined(d.name)}]
    matches = [d for d in named if not gb or d.gb == gb]
    if len(matches) == 1:
        return matches[0]
    if len(matches) > 1:
        sizes = " or ".join(d.name for d in matches)
        raise CalculatorError(f"{text!r} is sold with different memory sizes: choose {sizes}")
    near = [d.name for d in named or _ALL if named or (len(base) > 1 and base in _joined(d.name))]
    known = f"did you mean {', '.join(near[:8])}?" if near else f"known: {', '.join(DEVICES)};"
    raise CalculatorError(f"unknown GPU {text[:80]!r}; {known} You can also give its memory, for example 24 GB")


def _size(text: str) -> Device | None:
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(mib|gib|gb|g)?\s*", text.lower())
    if not number or not 0 < float(number[1]) <= 100_000:
        return None
    value, unit = float(number[1]), number[2]
    if unit is None and value >= 1000:  # the number of a card: 3090
        return None
    if unit == "mib":
        value /= 1024
    if unit == "gb" and value in GROUPS:
        smallest = min((d for d in _ALL if d.gb == value and not d.unified), key=lambda d: d.gib)
        return Device(f"{value:g} GB card", smallest.gib, int(value))
    return Device(f"{value:g} GiB", value)


def _split(name: str) -> tuple[str, int]:
    """Return the name without fillers, spaces and size, and its size in GB (0 if it has none)."""
    plain = _FILLERS.sub(" ", re.sub(r"[\s_()\[\]/-]+", " ", name.lower()))
    size = re.search(r"\b(\d+)\s?gb\b", plain)
    plain = plain.replace(size[0], " ") if size else plain
    return re.sub(r"[^a-z0-9]", "", plain), int(size[1]) if size else 0


def _joined(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def verdict(m: MemoryEstimate, device: Device) -> FitVerdict:
    """Compare the need with the device: "tight" if it fits with the smallest overhead, but not with the largest."""
    need = m.gpu_total + (m.ram_total if device.unified else 0)
    low, high = m.overhead
    if need + high <= device.bytes:
        return "fits"
    return "tight" if need + low <= device.bytes else "does not fit"


def custom_gpu(gib: float) -> Device:
    """Return a GPU with this much memory in GiB."""
    size = number_above_zero("GPU memory in GiB", gib, most=100_000)
    return Device(f"{size:g} GiB", size)
