"""What to do about a verdict: the largest batch, the longest sequence, the cheapest techniques that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import compress, product
from typing import Any

from calculator.architectures import Architecture
from calculator.devices import Device, FitVerdict, verdict
from calculator.errors import CalculatorError
from calculator.memory import MemoryEstimate, estimate
from calculator.setup import TrainingSetup

MOST_BATCH, MOST_SEQUENCE = 1 << 16, 1 << 20
FIXED_SEQUENCE = ("vit", "dalle")
"""Families whose sequence follows from their images."""


@dataclass(frozen=True)
class Advice:
    """Techniques that make a setup fit, and what a step then takes compared with the setup asked about."""

    setup: TrainingSetup
    changes: tuple[str, ...]
    time: float
    verdict: FitVerdict
    gpu_total: int
    ram_total: int


@dataclass(frozen=True)
class Technique:
    """A change of a setup; `time`: what it multiplies a step by, a rule of thumb with its source."""

    name: str
    time: float
    changes: dict[str, Any]


TECHNIQUES: tuple[Technique, ...] = (
    Technique("sdpa attention", 0.9, {"attention": "sdpa"}),  # no slower anywhere, and faster on long sequences
    Technique("fused optimizer", 0.99, {"optimizer_implementation": "fused"}),
    Technique("mixed precision (bf16)", 0.7, {"precision": "mixed-bf16"}),
    Technique("mixed precision (fp16)", 0.7, {"precision": "mixed-fp16"}),  # for GPUs without bfloat16
    Technique("8-bit optimizer", 1.0, {"bits": 8}),  # Dettmers et al. 2021, table 5: no slower than 32-bit
    Technique("gradient checkpointing", 1.33, {"gradient_checkpointing": True}),  # one more forward pass
    Technique("micro-batch 1 with accumulation", 1.2, {"micro": True}),
    Technique("optimizer in RAM", 1.5, {"offload_optimizer": "hivemind"}),
)
"""None of them changes what is computed beyond rounding; adapters, sharing and pure 16-bit weights would."""


def largest_batch(model: Architecture | str, setup: TrainingSetup, device: Device) -> int:
    """The largest micro-batch that fits (tight counts); 0 if none does."""
    return _largest(lambda n: _allowed(model, replace(setup, batch_size=n), device), MOST_BATCH)


def longest_sequence(model: Architecture | str, setup: TrainingSetup, device: Device) -> int:
    """The longest sequence that fits (tight counts) and that the model can read; 0 if none does."""
    return _largest(lambda n: _allowed(model, replace(setup, sequence_length=n), device), MOST_SEQUENCE)


def as_dict(m: MemoryEstimate, device: Device) -> dict[str, Any]:
    """The verdict, the largest sizes that fit, and what to do where it does not; JSON-ready."""
    fixed = m.model.family in FIXED_SEQUENCE
    word = verdict(m, device)
    found = cheapest(m.model, m.setup, device) if word == "does not fit" else []
    return {
        "gpu": device.name,
        "verdict": word,
        "largest_batch": largest_batch(m.model, m.setup, device),
        "longest_sequence": None if fixed else longest_sequence(m.model, m.setup, device),
        "advice": [{"changes": list(a.changes), "time": a.time, "verdict": a.verdict, "gpu_total": a.gpu_total,
                    "ram_total": a.ram_total} for a in found],
    }  # fmt: skip


def cheapest(model: Architecture | str, setup: TrainingSetup, device: Device, most: int = 3) -> list[Advice]:
    """Sets of techniques that make it fit, the least costly in time first; none of them changes the model."""
    found: list[Advice] = []
    offered = [t for t in TECHNIQUES if t.changes.get("precision") != ("mixed-fp16" if device.bf16 else "mixed-bf16")]
    for chosen in product((False, True), repeat=len(offered)):
        techniques = list(compress(offered, chosen))
        changed = _with(setup, techniques)
        time = 1.0
        for technique in techniques:
            time *= technique.time
        if changed is None or any(_needless(a, techniques) for a in found):
            continue
        try:
            m = estimate(model, changed)
        except CalculatorError:
            continue
        result = verdict(m, device)
        if result != "does not fit":
            names = tuple(t.name for t in techniques)
            found.append(Advice(changed, names, time, result, m.gpu_total, m.ram_total))
    found.sort(key=lambda a: (round(a.time, 3), len(a.changes)))
    different: list[Advice] = []
    for advice in found:
        if not any(set(advice.changes) <= set(d.changes) for d in different):
            different.append(advice)
    found = different
    return found[:most]


def _with(setup: TrainingSetup, techniques: list[Technique]) -> TrainingSetup | None:
    """The setup with the techniques; None where one of them changes nothing or is impossible."""
    changes: dict[str, Any] = {}
    for technique in techniques:
        changes |= technique.changes
    if changes.pop("bits", 0):
        if setup.bits == 8 or setup.optimizer.startswith("adafactor"):
            return None
        changes["optimizer"] = setup.optimizer.removesuffix("16bit") + "8bit"
    if changes.pop("micro", False):
        if setup.batch_size == 1:
            return None
        changes |= {"batch_size": 1, "accumulation_steps": setup.accumulation_steps * setup.batch_size}
    if any(getattr(setup, name) == value for name, value in changes.items()):
        return None
    if "attention" in changes and setup.attention == "auto":  # which is sdpa wherever there is one
        return None
    if "precision" in changes and setup.precision != "float32":
        return None
    try:
        return replace(setup, **changes)
    except CalculatorError:
        return None


def _needless(found: Advice, techniques: list[Technique]) -> bool:
    """A set that contains one that fits already costs more, unless what it adds saves time."""
    names = {t.name for t in techniques}
    return set(found.changes) < names and all(t.time >= 1 for t in techniques if t.name not in found.changes)


def _allowed(model: Architecture | str, setup: TrainingSetup, device: Device) -> bool:
    try:
        return verdict(estimate(model, setup), device) != "does not fit"
    except CalculatorError:
        return False


def _largest(works: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that works, where all smaller ones do too."""
    if not works(1):
        return 0
    low, high = 1, 2
    while high <= most and works(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low
