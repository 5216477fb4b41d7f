"""What the tab shows of an answer: verdict, bars, curves, advice, comparisons and links; knows no gradio."""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlencode

from calculator import charts
from calculator.advice import FIXED_SEQUENCE, cheapest, largest_batch, longest_sequence
from calculator.devices import verdict
from calculator.form import (
    CHECKPOINTING,
    CUSTOM,
    DEFAULTS,
    OPTIONAL,
    OWN,
    THREE_WAYS,
    Answer,
    Form,
    answer,
    checkpointing,
)
from calculator.memory import GIB, estimate
from calculator.presets import PRESETS
from calculator.report import gib
from calculator.techniques import sequence_length


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


def refused_html(message: str) -> str:
    """Stands where the verdict would."""
    body = f'<div class="calc-verdict calc-not" role="alert"><strong>Refused</strong><br>{escape(message)}</div>'
    return f'{charts.STYLE}<div class="calc">{body}</div>'


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
    if m.model.family not in FIXED_SEQUENCE:
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
    if m.model.family not in FIXED_SEQUENCE:
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
    """Up to three setups beside each other."""
    if not kept:
        return '<div class="calc"><p>Keep up to three setups to see them side by side.</p></div>'
    answers = [answer(form) for form in kept]
    words = "".join(f"<td>{verdict(a.estimate, a.device)}</td>" for a in answers)
    rows = [(f"GPU {i}", a.estimate.peak.gpu) for i, a in enumerate(answers, 1)]
    rows += [(f"RAM {i}", a.estimate.ram) for i, a in enumerate(answers, 1) if a.estimate.ram]
    names = "".join(f'<th scope="col">{i}: {escape(describe(form))}</th>' for i, form in enumerate(kept, 1))
    head = f'<table><tr><th scope="col">setup</th>{names}</tr><tr><th scope="row">on its GPU</th>{words}</tr></table>'
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
        return checkpointing(value)
    return value


# -- links ------------------------------------------------------------------------------------------------------------


def link(form: Form, base: str = "") -> str:
    """A setup as a query string; a pasted config.json stays here."""
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
