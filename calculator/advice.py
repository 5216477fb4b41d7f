"""Advice on a verdict: the largest batch, the longest sequence, and the fastest changes of the setup that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import compress, product
from typing import Any

from calculator.architectures import Architecture
from calculator.devices import Device, FitVerdict, verdict
from calculator.errors import CalculatorError
from calculator.memory import MemoryEstimate, estimate
from calculator.setup import TrainingSetup

LARGEST_BATCH, LONGEST_SEQUENCE = 1 << 16, 1 << 20
FIXED_SEQUENCE = ("vit", "dalle")
"""Families whose sequence length follows from the image size."""


@dataclass(frozen=True)
class Advice:
    """A changed setup that fits. `time`: duration of a step, relative to the original setup.

    exact: training computes the same as before, except for rounding.
    """

    setup: TrainingSetup
    changes: tuple[str, ...]
    time: float
    verdict: FitVerdict
    gpu_total: int
    ram_total: int
    exact: bool = True


@dataclass(frozen=True)
class Technique:
    """A change of a setup; `time` is the factor on the duration of a step: a rule of thumb, with its source."""

    name: str
    time: float
    changes: dict[str, Any]


TECHNIQUES: tuple[Technique, ...] = (
    Technique("sdpa attention", 0.9, {"attention": "sdpa"}),  # never slower, and faster on long sequences
    Technique("fused optimizer", 0.99, {"optimizer_implementation": "fused"}),
    Technique("mixed precision (bf16)", 0.7, {"precision": "mixed-bf16"}),
    Technique("mixed precision (fp16)", 0.7, {"precision": "mixed-fp16"}),  # for GPUs without bfloat16
    Technique("8-bit optimizer", 1.0, {"bits": 8}),  # Dettmers et al. 2021, table 5: no slower than 32-bit
    Technique("gradient checkpointing", 1.33, {"gradient_checkpointing": True}),  # one more forward pass
    Technique("micro-batch of 1 with gradient accumulation", 1.2, {"micro": True}),
    Technique("optimizer in RAM", 1.5, {"offload_optimizer": "hivemind"}),
)
"""Techniques that change training by rounding only."""
ADAPTER_TECHNIQUES: tuple[Technique, ...] = (
    TECHNIQUES[0],
    # The frozen weights are loaded in 16 bits; the adapters, their gradients and their state stay in float32.
    Technique("16-bit frozen weights", 0.7, {"precision": "pure-bf16"}),
    TECHNIQUES[5],
    TECHNIQUES[6],
)
"""The same for LoRA and QLoRA: everything that is trained stays in float32."""


def largest_batch(model: Architecture | str, setup: TrainingSetup, device: Device) -> int:
    """Return the largest micro-batch that fits (a tight fit counts); 0 if none does."""
    return _largest(lambda n: _fits(model, replace(setup, batch_size=n), device), LARGEST_BATCH)


def longest_sequence(model: Architecture | str, setup: TrainingSetup, device: Device) -> int:
    """Return the longest sequence that fits (a tight fit counts) and that the model supports; 0 if none does."""
    return _largest(lambda n: _fits(model, replace(setup, sequence_length=n), device), LONGEST_SEQUENCE)


def as_dict(m: MemoryEstimate, device: Device) -> dict[str, Any]:
    """Return the verdict, the largest sizes that fit, and advice if the setup does not fit; JSON-ready."""
    fixed = m.model.family in FIXED_SEQUENCE
    return {
        "gpu": device.name,
        "verdict": verdict(m, device),
        "largest_batch": largest_batch(m.model, m.setup, device),
        "longest_sequence": None if fixed else longest_sequence(m.model, m.setup, device),
        "advice": [{"changes": list(a.changes), "time": a.time, "verdict": a.verdict, "gpu_total": a.gpu_total,
                    "ram_total": a.ram_total, "exact": a.exact} for a in advise(m, device)],
    }  # fmt: skip


def advise(m: MemoryEstimate, device: Device) -> list[Advice]:
    """Return the fastest changes that fit, or else changes of what is trained; nothing if the setup already fits."""
    if verdict(m, device) != "does not fit":
        return []
    return cheapest(m.model, m.setup, device) or alternatives(m.model, m.setup, device)


def cheapest(model: Architecture | str, setup: TrainingSetup, device: Device, most: int = 3) -> list[Advice]:
    """Return up to `most` sets of techniques that fit, the fastest first. They change training by rounding only."""
    fitting: list[Advice] = []
    unsuitable = "mixed-fp16" if device.bf16 else "mixed-bf16"
    techniques = TECHNIQUES if setup.adapter == "none" else ADAPTER_TECHNIQUES
    offered = [t for t in techniques if t.changes.get("precision") != unsuitable]
    for chosen in product((False, True), repeat=len(offered)):
        combination = list(compress(offered, chosen))
        changed = _with(setup, combination)
        if changed is None or any(_needless(a, combination) for a in fitting):
            continue
        time = 1.0
        for technique in combination:
            time *= technique.time
        advice = _try(model, changed, device, tuple(t.name for t in combination), time)
        if advice:
            fitting.append(advice)
    fitting.sort(key=lambda a: (round(a.time, 3), len(a.changes)))
    different: list[Advice] = []
    for advice in fitting:
        if not any(set(advice.changes) <= set(d.changes) for d in different):
            different.append(advice)
    return different[:most]


def alternatives(model: Architecture | str, setup: TrainingSetup, device: Device, most: int = 3) -> list[Advice]:
    """Return setups that fit but train something else, or on more GPUs: LoRA, QLoRA, ZeRO over 2 to 64 GPUs."""
    adapter: dict[str, Any] = {
        "optimizer": "adamw", "precision": "pure-bf16" if device.bf16 else "pure-fp16", "gradient_checkpointing": True,
        "offload_optimizer": "none", "zero_stage": 0, "gpus": 1, "shared_groups": None, "paged_optimizer": False,
        "embeddings_32bit": False, "batch_size": 1, "accumulation_steps": setup.accumulation_steps * setup.batch_size,
    }  # fmt: skip
    # The time of a step is not comparable: 0 stands for unknown.
    tries: list[tuple[str, dict[str, Any]]] = []
    if setup.adapter == "none":
        tries.append(("LoRA with 16-bit weights", {**adapter, "adapter": "lora"}))
    if setup.adapter != "qlora":
        tries.append(("QLoRA (4-bit weights)", {**adapter, "adapter": "qlora"}))
    fitting = [a for name, changes in tries if (a := _try_changes(model, setup, changes, device, name))]
    sharded: dict[str, Any] = {
        "zero_stage": 3, "gradient_checkpointing": True, "offload_optimizer": "none", "swarm": False,
        "delayed_updates": False, "reuse_grad_buffers": False,
    }  # fmt: skip
    if setup.adapter == "none" and setup.precision == "float32":
        sharded["precision"] = "mixed-bf16" if device.bf16 else "mixed-fp16"
    for gpus in (2, 4, 8, 16, 32, 64):
        advice = None
        if gpus > setup.gpus:
            advice = _try_changes(model, setup, {**sharded, "gpus": gpus}, device, f"ZeRO 3 on {gpus} of these GPUs")
        if advice:
            return [*fitting[: most - 1], advice]
    return fitting[:most]


def _try_changes(
    model: Architecture | str, setup: TrainingSetup, changes: dict[str, Any], device: Device, name: str
) -> Advice | None:
    try:
        changed = replace(setup, **changes)
    except CalculatorError:
        return None
    advice = _try(model, changed, device, (name,), 0.0)
    return replace(advice, exact=False) if advice else None


def _try(
    model: Architecture | str, setup: TrainingSetup, device: Device, changes: tuple[str, ...], time: float
) -> Advice | None:
    """Return the setup as advice if the model supports it and it fits."""
    try:
        m = estimate(model, setup)
    except CalculatorError:
        return None
    result = verdict(m, device)
    return None if result == "does not fit" else Advice(setup, changes, time, result, m.gpu_total, m.ram_total)


def _with(setup: TrainingSetup, techniques: Iterable[Technique]) -> TrainingSetup | None:
    """Return the setup with the techniques; None if one of them changes nothing or is not possible."""
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
    if "attention" in changes and setup.attention == "auto":  # auto is sdpa for every model that has it
        return None
    if "precision" in changes and setup.precision != "float32" and setup.adapter == "none":
        return None
    try:
        return replace(setup, **changes)
    except CalculatorError:
        return None


def _needless(smaller: Advice, techniques: list[Technique]) -> bool:
    """True for a superset of a set that already fits, unless the added techniques save time."""
    names = {t.name for t in techniques}
    return set(smaller.changes) < names and all(t.time >= 1 for t in techniques if t.name not in smaller.changes)


def _fits(model: Architecture | str, setup: TrainingSetup, device: Device) -> bool:
    try:
        return verdict(estimate(model, setup), device) != "does not fit"
    except CalculatorError:
        return False


def _largest(works: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that works, given that all smaller ones do; 0 if 1 does not."""
    if not works(1):
        return 0
    low, high = 1, 2
    while high <= most and works(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low
