"""From a form to what the tab shows: verdict, bars, curves, links and files. Plain functions; knows no gradio."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlencode

from calculator import charts
from calculator.advice import cheapest, largest_batch, longest_sequence
from calculator.architectures import Architecture
from calculator.devices import Device, find_device, verdict
from calculator.errors import CalculatorError
from calculator.hf_config import from_json
from calculator.memory import GIB, MemoryEstimate, estimate, sequence_length
from calculator.presets import PRESETS
from calculator.report import gib
from calculator.setup import TrainingSetup

Form = dict[str, Any]
"""Values of the controls, by name: those of TrainingSetup, `model`, `gpu`, `config` and the dimensions."""

CUSTOM, CONFIG = "custom dimensions", "config.json"
DIMENSIONS = {
    "family": "gpt2", "hidden": 768, "layers": 12, "heads": 12, "feed_forward": 3072, "vocabulary": 50_257,
    "positions": 1024,
}  # fmt: skip
MODEL_FIELDS = ("model", "gpu", "config", *DIMENSIONS)
DEFAULTS: Form = {
    "model": "gpt2-large", "gpu": "RTX 3060", "config": "", **DIMENSIONS,
    **{f.name: f.default for f in fields(TrainingSetup)},
    "optimizer": "adamw", "offload_optimizer": "none",
}  # fmt: skip
OPTIONAL = ("sequence_length", "target_length", "shared_groups")
"""Numbers for which 0 and nothing mean the model's own."""
THREE_WAYS = ("reversible", "tied_embeddings")
OWN: dict[Any, bool | None] = {"model's own": None, "yes": True, "no": False}
CHECKPOINTING = ("off", "every layer", "every 2 layers", "every 4 layers", "every 8 layers")

EXAMPLES: dict[str, Form] = {
    "GPT-2 Large on 12 GB": {"model": "gpt2-large", "gpu": "RTX 3060", "optimizer": "adam8bit", "sequence_length": 1024,
                             "precision": "mixed-fp16", "gradient_checkpointing": True},
    "The swarm's DALL-E on a T4": {"model": "ttt-dalle", "gpu": "T4", "optimizer": "lamb8bit-cpu", "swarm": True,
                                   "offload_optimizer": "hivemind", "precision": "mixed-fp16", "batch_size": 4,
                                   "accumulation_steps": 16},
    "T5-11B": {"model": "t5-11b", "gpu": "A100 80GB", "optimizer": "adafactor", "precision": "pure-bf16",
               "gradient_checkpointing": True},
    "GPT-3 175B": {"model": "gpt3-175b", "gpu": "H100", "precision": "pure-bf16", "gradient_checkpointing": True,
                   "zero_stage": 3, "gpus": 64},
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    estimate: MemoryEstimate
    before: MemoryEstimate
    device: Device


def answer(form: Mapping[str, Any]) -> Answer:
    """The estimate a form asks for, and that of the same sizes without techniques."""
    form = {**DEFAULTS, **form}
    model, device, setup = read_model(form), read_device(form["gpu"]), read_setup(form)
    plain = TrainingSetup(
        batch_size=setup.batch_size, sequence_length=setup.sequence_length, target_length=setup.target_length,
        attention="auto" if setup.attention == "auto" else "eager",
    )  # fmt: skip
    return Answer(estimate(model, setup), estimate(model, plain), device)


def read_device(value: Any) -> Device:
    return find_device(str(value))


def read_model(form: Mapping[str, Any]) -> Architecture:
    name = form["model"]
    if name == CONFIG:
        if not str(form["config"] or "").strip():
            raise CalculatorError("paste or upload a config.json, or choose a model from the list")
        return from_json(form["config"])
    if name == CUSTOM:
        values: dict[str, Any] = {k: form[k] if k == "family" else _whole(k, form[k]) for k in DIMENSIONS}
        if values["family"] == "t5":
            values["decoder_layers"] = values["layers"]
        return Architecture(**values)
    if name not in PRESETS:
        raise CalculatorError(f"unknown model {name!r}; known: {', '.join(PRESETS)}, {CUSTOM}, {CONFIG}")
    return PRESETS[name]


def read_setup(form: Mapping[str, Any]) -> TrainingSetup:
    """Numbers of a browser are floats, and nothing where a field is empty."""
    values: Form = {}
    for f in fields(TrainingSetup):
        value = form[f.name]
        if f.name in OPTIONAL:
            value = None if value in (None, "", 0) else _whole(f.name, value)
        elif f.name == "gradient_checkpointing":
            value = _checkpointing(value)
        elif f.name in THREE_WAYS:
            value = OWN.get(value, value)
        elif isinstance(f.default, int) and not isinstance(f.default, bool):
            value = _whole(f.name, value)
        values[f.name] = value
    return TrainingSetup(**values)


def _checkpointing(value: Any) -> bool | int:
    if isinstance(value, str):
        if value not in CHECKPOINTING:
            raise CalculatorError(f"gradient_checkpointing must be one of {', '.join(CHECKPOINTING)}; got {value!r}")
        return value == "every layer" or (value != "off" and int(value.split()[1]))
    return value if isinstance(value, bool) else _whole("gradient_checkpointing", value)


def _whole(name: str, value: Any) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value):
        raise CalculatorError(f"{name} must be a whole number, got {value!r}")
    return int(value)


# -- what is shown ----------------------------------------------------------------------------------------------------


def verdict_html(a: Answer) -> str:
    m, word = a.estimate, verdict(a.estimate, a.device)
    kind = {"fits": "fits", "tight": "tight"}.get(word, "not")
    low, high = m.overhead
    text = {"fits": "It fits", "tight": "It is tight", "does not fit": "It does not fit"}[word]
    return (
        f'{charts.STYLE}<div class="calc"><div class="calc-verdict calc-{kind}" role="status">'
        f"<strong>{text}: {gib(m.gpu_total)} of GPU memory, {gib(m.ram_total)} of RAM</strong><br>"
        f"{escape(m.model.name)}, {m.parameter_count / 1e6:,.1f} M parameters, on {escape(a.device.name)} "
        f"({a.device.gib:g} GiB). The peak is in: {m.peak.name}. Beside it, CUDA's context and fragmentation take "
        f"{gib(low)} to {gib(high)}.</div></div>"
    )


def bars_html(a: Answer) -> str:
    before, after = a.before, a.estimate
    rows = [
        ("GPU before", before.peak.gpu), ("GPU after", after.peak.gpu),
        ("RAM before", before.ram), ("RAM after", after.ram),
    ]  # fmt: skip
    return charts.bars(rows, a.device.bytes, a.device.name, "Components in GiB")


def phases_html(a: Answer) -> str:
    return charts.bars(
        [(f"GPU, {p.name}", p.gpu) for p in a.estimate.phases], a.device.bytes, a.device.name, "Phases in GiB"
    )


def curves_html(a: Answer) -> str:
    m, limit = a.estimate, a.device.bytes
    s, b = sequence_length(m.model, m.setup), m.setup.batch_size
    parts = []
    if m.model.family not in ("vit", "dalle"):
        most = min(max(2 * s, 512), m.model.positions if m.model.family in ("bert", "gpt2", "clip") else 4 * s)
        steps = sorted({max(1, most * i // 8) for i in range(1, 9)} | {s})
        points = [(x, estimate(m.model, replace(m.setup, sequence_length=x)).gpu_total) for x in steps]
        parts.append(charts.curve("GiB over sequence length", points, limit, s))
    steps = sorted({max(1, max(8, 2 * b) * i // 8) for i in range(1, 9)} | {b})
    points = [(x, estimate(m.model, replace(m.setup, batch_size=x)).gpu_total) for x in steps]
    parts.append(charts.curve("GiB over micro-batch", points, limit, b))
    return f'<div class="calc-curves">{"".join(parts)}</div>'


def advice_html(a: Answer) -> str:
    m, device = a.estimate, a.device
    batch = largest_batch(m.model, m.setup, device)
    lines = [f"Largest micro-batch that fits: <b>{batch or 'none'}</b>."]
    if m.model.family not in ("vit", "dalle"):
        longest = longest_sequence(m.model, m.setup, device)
        lines.append(f"Longest sequence that fits: <b>{longest or 'none'}</b>.")
    if verdict(m, device) == "does not fit":
        found = cheapest(m.model, m.setup, device)
        if not found:
            lines.append("No set of techniques that leaves the model as it is makes it fit on one such GPU.")
        for x in found:
            cost = (
                f"{gib(x.gpu_total)} of GPU memory, {gib(x.ram_total)} of RAM, a step takes {x.time:.2f} times as long"
            )
            lines.append(f"{x.verdict.capitalize()} with {escape(', '.join(x.changes))}: {cost}.")
    if m.swarm:
        rows = ", ".join(f"{n}: {x / GIB:.3f} GiB, {t:.0f} s" for n, (x, t) in m.swarm.by_compression.items())
        lines.append(f"A swarm step sends (and receives) at {m.setup.bandwidth_mbit:g} Mbit/s, by compression: {rows}.")
    return '<div class="calc"><ul>' + "".join(f"<li>{line}</li>" for line in lines) + "</ul></div>"


def compare_html(kept: list[Form]) -> str:
    """Up to three set-ups beside each other."""
    if not kept:
        return '<div class="calc"><p>Keep up to three set-ups to see them side by side.</p></div>'
    answers = [answer(form) for form in kept]
    words = "".join(f"<td>{verdict(a.estimate, a.device)}</td>" for a in answers)
    rows = [(f"GPU {i}", a.estimate.peak.gpu) for i, a in enumerate(answers, 1)]
    rows += [(f"RAM {i}", a.estimate.ram) for i, a in enumerate(answers, 1) if a.estimate.ram]
    names = "".join(f'<th scope="col">{i}: {escape(describe(form))}</th>' for i, form in enumerate(kept, 1))
    head = f'<table><tr><th scope="col">set-up</th>{names}</tr><tr><th scope="row">on its GPU</th>{words}</tr></table>'
    limit = max(a.device.bytes for a in answers)
    region = 'tabindex="0" role="region" aria-label="Set-ups compared"'
    return f'<div class="calc calc-scroll" {region}>{head}</div>' + charts.bars(
        rows, limit, "largest GPU", "Set-ups in GiB"
    )


def describe(form: Form) -> str:
    shown = [f"{k}={v}" for k, v in changed(form).items() if k != "config"]
    return " ".join(shown)[:200]


def changed(form: Form) -> Form:
    """What differs from the defaults; the model and the GPU always."""
    plain = {k: _plain(k, v) for k, v in form.items() if k in DEFAULTS}
    return {k: v for k, v in plain.items() if k in ("model", "gpu") or v != DEFAULTS[k]}


def _plain(name: str, value: Any) -> Any:
    """A control's value as TrainingSetup has it."""
    if name in OPTIONAL:
        return value or None
    if name in THREE_WAYS:
        return OWN.get(value, value)
    if name == "gradient_checkpointing" and value in CHECKPOINTING:
        return _checkpointing(value)
    return value


# -- links ------------------------------------------------------------------------------------------------------------


def link(form: Form, base: str = "") -> str:
    """A set-up as a query string; a pasted config.json stays here."""
    return f"{base}?{urlencode({k: _text(v) for k, v in changed(form).items() if k != 'config'})}"


def from_query(query: str) -> Form | None:
    """The form of a link; None where it names no model of ours. Values that do not parse are left at their defaults."""
    given = {k: v[-1] for k, v in parse_qs(query[:4000]).items()}
    if given.get("model") not in {*PRESETS, CUSTOM}:
        return None
    form = dict(DEFAULTS)
    for name, text in given.items():
        if name not in DEFAULTS or name == "config":
            continue
        try:
            form[name] = text if isinstance(DEFAULTS[name], str) else json.loads(text)
        except ValueError:
            form[name] = text if name in ("gradient_checkpointing", *THREE_WAYS) else DEFAULTS[name]
    return form


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
