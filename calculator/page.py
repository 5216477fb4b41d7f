"""The HTML of an answer: verdict, bars, curves, advice, comparisons and links. Independent of Gradio."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlencode

from calculator import charts
from calculator.advice import FIXED_SEQUENCE, Advice, largest_batch, longest_sequence
from calculator.devices import verdict
from calculator.form import (
    CHECKPOINTING,
    CONFIG,
    CUSTOM,
    DEFAULTS,
    LABELS,
    METHODS,
    OPTIONAL,
    OWN,
    THREE_WAYS,
    Answer,
    Form,
    answer,
    checkpointing,
)
from calculator.hf_config import READERS
from calculator.memory import GIB, estimate
from calculator.presets import PRESETS
from calculator.report import gib
from calculator.setup import TrainingSetup
from calculator.techniques import LEARNED_POSITIONS, sequence_length

WORDS = {"fits": "Fits", "tight": "Tight fit", "does not fit": "Does not fit"}
LONGEST_LINK = 6000
"""Longest config.json, in characters, that a link carries; servers limit the length of an address."""


def verdict_html(a: Answer, note: str = "") -> str:
    """The verdict: what is needed, the overhead, and what the card has, as a sentence and as a gauge."""
    m, word = a.estimate, verdict(a.estimate, a.device)
    kind = {"fits": "fits", "tight": "tight"}.get(word, "not")
    low, high = m.overhead
    need = m.gpu_total + (m.ram_total if a.device.unified else 0)
    ram = f" RAM: {gib(m.ram_total)}." if m.ram_total else ""
    count = f"{m.trained_count / 1e6:,.1f} M of " if m.trained_count != m.parameter_count else ""
    gpus = f"each of {m.setup.gpus} GPUs" if m.setup.gpus > 1 else "the GPU"
    remarks = "".join(f"<p>{escape(text)}</p>" for text in (*m.notes, note) if text)
    return (
        f'{charts.STYLE}<div class="calc"><div class="calc-verdict calc-{kind}" role="status">'
        f"<strong>{WORDS[word]}: needs {gib(need, 1)} + {low / GIB:.1f} to {gib(high, 1)} overhead; "
        f"{escape(a.device.name)} has {gib(a.device.bytes, 1)}</strong>"
        f"{charts.gauge(need, (low, high), a.device.bytes)}"
        f'<p class="calc-detail">{escape(m.model.name)}: {count}{_count(m.parameter_count)} parameters. '
        f"Peak on {gpus}: {m.peak.name}. Overhead: CUDA context and fragmentation.{ram}</p>{remarks}</div></div>"
    )


def _count(n: int) -> str:
    return f"{n / 1e9:,.1f} B" if n >= 1e9 else f"{n / 1e6:,.1f} M"


def refused_html(message: str) -> str:
    """Takes the place of the verdict; names the controls by their labels."""
    for f in fields(TrainingSetup):
        message = re.sub(rf"\b{f.name}\b", LABELS[f.name], message)
    message = message[:1].upper() + message[1:]
    heading = "<strong>This setup cannot be estimated</strong>"
    body = f'<div class="calc-verdict calc-not" role="alert">{heading}<p>{escape(message)}</p></div>'
    return f'{charts.STYLE}<div class="calc">{body}</div>'


def bars_html(a: Answer) -> str:
    """A bar for each phase of a step, one for plain float32 AdamW if the setup differs from it, and the RAM."""
    m = a.estimate
    rows = [(f"GPU: {p.name}", p.gpu) for p in m.phases]
    if a.plain.setup != replace(m.setup, accumulation_steps=1):
        rows.append(("GPU: peak with plain float32 AdamW", a.plain.peak.gpu))
    if m.ram:
        rows.append(("RAM", m.ram))
    return charts.bars(rows, a.device.bytes, a.device.name, "Memory by phase of a training step, in GiB")


def curves_html(a: Answer) -> str:
    """Memory over the sequence length and over the batch size."""
    m, limit = a.estimate, a.device.bytes
    s, b = sequence_length(m.model, m.setup), m.setup.batch_size

    def points(name: str, steps: list[int]) -> list[tuple[int, int, int]]:
        result = []
        for x in steps:
            e = estimate(m.model, replace(m.setup, **{name: x}))  # type: ignore[arg-type]
            result.append((x, e.gpu_total, max(p.gpu["activations"] + p.gpu["logits"] for p in e.phases)))
        return result

    parts = []
    if m.model.family not in FIXED_SEQUENCE:
        most = min(max(2 * s, 512), m.model.positions if m.model.family in LEARNED_POSITIONS else 4 * s)
        steps = sorted({max(1, most * i // 8) for i in range(1, 9)} | {s})
        parts.append(charts.curve("Memory by sequence length", points("sequence_length", steps), limit, s))
    steps = sorted({max(1, max(8, 2 * b) * i // 8) for i in range(1, 9)} | {b})
    parts.append(charts.curve("Memory by batch size", points("batch_size", steps), limit, b))
    return f'<div class="calc-curves">{"".join(parts)}</div>'


def advice_html(a: Answer, advice: list[Advice]) -> str:
    """The largest sizes that fit, a sentence above the buttons of the advice, and the traffic of a swarm."""
    m, device = a.estimate, a.device
    batch = largest_batch(m.model, m.setup, device)
    lines = [f"Largest batch size that fits: <b>{batch or 'none'}</b>"]
    if m.model.family not in FIXED_SEQUENCE:
        longest = longest_sequence(m.model, m.setup, device)
        lines.append(f"Longest sequence that fits: <b>{f'{longest:,}' if longest else 'none'}</b>")
    if m.swarm:
        rows = ", ".join(f"{n}: {x / GIB:.3f} GiB, {t:.0f} s" for n, (x, t) in m.swarm.by_compression.items())
        lines.append(f"Sent and received per swarm step at {m.setup.bandwidth_mbit:g} Mbit/s, by compression: {rows}")
    if verdict(m, device) == "does not fit":
        lines.append(_advice_line(a, advice))
    return '<div class="calc"><ul>' + "".join(f"<li>{line}</li>" for line in lines) + "</ul></div>"


def _advice_line(a: Answer, advice: list[Advice]) -> str:
    name = escape(a.device.name)
    if not advice:
        return f"None of the techniques makes it fit on {name}: choose a larger GPU or a smaller model"
    if advice[0].exact:
        return "These changes make it fit, and training stays the same except for rounding:"
    return (
        f"Techniques that keep training the same are not enough on one {name}. These setups fit, but train differently:"
    )


def advice_label(advice: Advice) -> str:
    """The text of a button that applies the advice."""
    percent = round(100 * (advice.time - 1))
    speed = f", {abs(percent)} % {'slower' if percent > 0 else 'faster'} per step" if advice.exact and percent else ""
    result = "tight fit" if advice.verdict == "tight" else "fits"
    return f"Apply: {', '.join(advice.changes)} ({result} with {gib(advice.gpu_total, 1)}{speed})"


def compare_html(forms: list[Form]) -> str:
    """Up to three setups side by side."""
    if not forms:
        return '<div class="calc"><p>Add up to three setups to compare them.</p></div>'
    answers = [answer(form) for form in forms]
    words = "".join(f"<td>{WORDS[verdict(a.estimate, a.device)]}</td>" for a in answers)
    rows = [(f"Setup {i}", a.estimate.peak.gpu) for i, a in enumerate(answers, 1)]
    rows += [(f"RAM of setup {i}", a.estimate.ram) for i, a in enumerate(answers, 1) if a.estimate.ram]
    heads = "".join(f'<th scope="col">{i}. {describe(form)}</th>' for i, form in enumerate(forms, 1))
    table = f'<table><tr><th scope="col">Setup</th>{heads}</tr><tr><th scope="row">Verdict</th>{words}</tr></table>'
    region = 'tabindex="0" role="region" aria-label="Setups compared"'
    limit = max(a.device.bytes for a in answers)
    bars = charts.bars(rows, limit, "largest GPU", "Setups in GiB", limited="Setup")
    return f'<div class="calc calc-scroll calc-plain" {region}>{table}</div>{bars}'


def describe(form: Form) -> str:
    """The model, the GPU and what differs from the defaults, as HTML."""
    values = changed(form)
    gpu = f"{values['gib']:g} GiB" if values.get("gib") else values["gpu"]
    name = answer(form).estimate.model.name
    lines = [f"<b>{escape(str(name))}</b> on {escape(str(gpu))}"]
    for key, value in values.items():
        if key not in ("model", "gpu", "gib", "config"):
            text = "on" if value is True else "off" if value is False else str(value)
            text = next((method for method, adapter in METHODS.items() if adapter == text), text)
            lines.append(f"{escape(LABELS[key])}: {escape(text)}")
    return "<br>".join(lines)


def changed(form: Form) -> Form:
    """Return what differs from the defaults; always with the model and the GPU."""
    plain = {k: _plain(k, v) for k, v in form.items() if k in DEFAULTS}
    return {k: v for k, v in plain.items() if k in ("model", "gpu") or v != DEFAULTS[k]}


def _plain(name: str, value: Any) -> Any:
    """A control's value as TrainingSetup has it."""
    if name in OPTIONAL:
        return value or None
    if name in THREE_WAYS:
        return OWN.get(value, value)
    if name == "adapter":
        return METHODS.get(value, value)
    if name == "gradient_checkpointing" and value in CHECKPOINTING:
        return checkpointing(value)
    return value


# -- links ------------------------------------------------------------------------------------------------------------


def link(form: Form, base: str = "") -> str:
    """Return the address that restores a setup. A config.json is part of it, reduced to the keys that matter."""
    values = changed(form)
    values.pop("config", None)
    if form.get("model") == CONFIG:
        values["config"] = _short_config(form["config"])
    return f"{base}?{urlencode({k: _text(v) for k, v in values.items()})}"


def _short_config(text: str) -> str:
    config = json.loads(str(text).removeprefix("\ufeff"))
    reader = READERS.get(config.get("model_type"))
    labels = config.pop("id2label", None)
    if isinstance(labels, dict):
        config["num_labels"] = len(labels)
    known = {*(reader.defaults if reader else ()), *(reader.aliases if reader else ()), *_MODEL_KEYS}
    short = json.dumps({k: v for k, v in config.items() if k in known}, separators=(",", ":"))
    return short if len(short) <= LONGEST_LINK else ""


_MODEL_KEYS = (
    "model_type", "architectures", "_name_or_path", "num_labels", "text_config", "vision_config",
    "text_config_dict", "vision_config_dict", "head_dim", "attention_bias", "mlp_bias", "hidden_activation",
    "quantization_config", "rope_parameters", "add_cross_attention",
)  # fmt: skip


def from_query(query: str) -> Form | None:
    """Return the form of a link, or None if it names none of our models. Values that do not parse are ignored."""
    given = {k: v[-1] for k, v in parse_qs(query[: 3 * LONGEST_LINK]).items()}
    if given.get("model") not in {*PRESETS, CUSTOM, CONFIG}:
        return None
    form = dict(DEFAULTS)
    for name, text in given.items():
        if name not in DEFAULTS:
            continue
        try:
            form[name] = text if isinstance(DEFAULTS[name], str) else json.loads(text)
        except (ValueError, RecursionError):
            form[name] = text if name in ("gradient_checkpointing", *THREE_WAYS) else DEFAULTS[name]
    return form


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
