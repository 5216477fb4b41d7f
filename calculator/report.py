"""An estimate as JSON-ready data, as CSV and as text. Independent of Gradio."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from typing import Any

from calculator.architectures import Architecture
from calculator.memory import GIB, MemoryEstimate
from calculator.setup import TrainingSetup


def gib(size: int, digits: int = 2) -> str:
    """Return bytes as text in GiB."""
    return f"{size / GIB:.{digits}f} GiB"


def as_dict(m: MemoryEstimate) -> dict[str, Any]:
    """Return the estimate as JSON-ready data; every size is in bytes."""
    return {
        "model": m.model.name,
        "architecture": _short(m.model),
        "setup": _short(m.setup),
        "parameter_count": m.parameter_count,
        "trained_count": m.trained_count,
        "gpu_total": m.gpu_total,
        "ram_total": m.ram_total,
        "peak_phase": m.peak.name,
        "parameters": m.parameters,
        "gradients": m.gradients,
        "optimizer": m.optimizer,
        "activations": m.activations,
        "logits": m.logits,
        "temporaries": m.temporaries,
        "phases": {phase.name: dict(phase.gpu) for phase in m.phases},
        "ram": dict(m.ram),
        "overhead": list(m.overhead),
        "swarm": asdict(m.swarm) if m.swarm else None,
        "notes": list(m.notes),
    }


def as_csv(estimates: list[MemoryEstimate]) -> str:
    """Return one CSV row per setup, phase and component, in bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["setup", "model", "where", "phase", "component", "bytes"])
    for number, m in enumerate(estimates, 1):
        for phase in m.phases:
            for name, size in phase.gpu.items():
                writer.writerow([number, _safe(m.model.name), "GPU", phase.name, name, size])
        for name, size in m.ram.items():
            writer.writerow([number, _safe(m.model.name), "RAM", "all", name, size])
    return out.getvalue()


def _safe(text: str) -> str:
    """Quote a cell that a spreadsheet would execute as a formula."""
    return "'" + text if text[:1] in "=+-@\t\r" else text


def _short(value: Architecture | TrainingSetup) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    result = {}
    for f in fields(value):
        x = getattr(value, f.name)
        if x != f.default and f.name != "name":
            result[f.name] = _short(x) if isinstance(x, Architecture) else x
    return result
