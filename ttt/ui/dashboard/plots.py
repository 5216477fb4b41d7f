"""Line plots as SVG, and the same numbers as tables: pure functions. Independent of runs and of Gradio.

The drawing is stretched to the width of the page. Labels are HTML on top of it, so they keep their size on a phone.
Coordinates are whole thousandths of the plot, so 300 points take a few kilobytes; dashboard.js turns them back into
values under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import TypeVar

GRID = 1000
"""Width and height of the drawing, in its own units."""
TABLE_ROWS = 40
MINUTE, HOUR, DAY = 60, 3600, 86_400
TIME_STEPS = (
    MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR,
    12 * HOUR, DAY, 2 * DAY, 4 * DAY, 7 * DAY, 14 * DAY, 28 * DAY, 56 * DAY, 112 * DAY, 364 * DAY,
)  # fmt: skip

T = TypeVar("T")
Curve = Sequence[tuple[float, float | None]]
"""(x, y) with x increasing; y = None interrupts the line."""
Band = Sequence[tuple[float, float, float]]
"""(x, low, high) with x increasing."""


@dataclass(frozen=True)
class Axis:
    """Name and number format of a quantity."""

    name: str
    kind: str
    """Format of its values in dashboard.js: "time", "whole" or "number"."""
    text: Callable[[float], str]
    """Formats a value for tables and descriptions."""


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits: 1234567 -> 1.23 M, 0.00012 -> 1.20e-04."""
    if value is None:
        return "–"
    size = abs(value)
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if size >= limit:
            return f"{value / limit:.{digits}g}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{digits}g}"


def moment(time: float) -> str:
    """Unix time as date and minute in UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


TIME = Axis("Time (UTC)", "time", moment)
SAMPLES = Axis("Samples", "whole", lambda value: f"{value:,.0f}")
STEPS = Axis("Step", "whole", lambda value: f"{value:,.0f}")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values within [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(low: float, high: float, count: int = 4) -> list[tuple[float, str]]:
    """Round times within [low, high] and their labels: a time of day, or a date if they are days apart."""
    step = next((s for s in TIME_STEPS if (high - low) / s <= count), TIME_STEPS[-1])
    first = math.ceil(low / step)
    times = [float(i * step) for i in range(first, math.floor(high / step) + 1)]
    return [(t, _clock(t, step)) for t in times]


def _clock(time: float, step: int) -> str:
    day = datetime.fromtimestamp(time, UTC)
    if step >= 112 * DAY:
        return day.strftime("%b %Y")
    midnight = time % DAY == 0
    # Not "%-d", which Windows does not know.
    return f"{day.day} {day:%b}" if midnight or step >= DAY else day.strftime("%H:%M")


def plot(
    title: str, curve: Curve, x: Axis, y: Axis, *, band: Band = (), zero: bool = False, gap: float = math.inf
) -> str:
    """A figure: title, latest value, drawing.

    zero: start the y axis at 0; gap: interrupt the line where two points are further apart.
    """
    known = [(a, b) for a, b in curve if b is not None]
    if not known:
        return _empty(title)
    (left, right), (low, high) = _limits(curve, known, band, zero)

    def point(a: float, b: float) -> tuple[int, int]:
        return round(GRID * (a - left) / (right - left)), round(GRID * (high - b) / (high - low))

    lines = "".join(_line([point(a, b) for a, b in piece]) for piece in _pieces(curve, gap))
    upper = [point(a, top) for a, _, top in band]
    lower = [point(a, bottom) for a, bottom, _ in reversed(band)]
    area = f'<polygon points="{_points([*upper, *lower])}"/>' if band else ""
    end = point(*known[-1])
    dot = f'<i class="ttt-dot-now" style="left:{end[0] / 10:g}%;top:{end[1] / 10:g}%"></i>'
    marks = [(b, number(b)) for b in ticks(low, high, 4) if y.kind != "whole" or b == int(b)]
    rules = "".join(f'<path d="M0 {point(left, b)[1]}H{GRID}"/>' for b, _ in marks)
    beside = "".join(f'<span style="top:{point(left, b)[1] / 10:g}%">{text}</span>' for b, text in marks)
    below = "".join(_below(point(a, low)[0], text) for a, text in _x_marks(left, right, x))
    drawing = (
        f'<svg viewBox="0 0 {GRID} {GRID}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<g class="ttt-rules">{rules}</g>{area}{lines}</svg>'
    )
    limits = f'data-x="{left:.10g} {right:.10g} {x.kind}" data-y="{low:.6g} {high:.6g} {y.kind}"'
    return (
        f'<figure class="ttt-plot"><figcaption><strong>{escape(title)}</strong>'
        f"<span>{escape(y.text(known[-1][1]))}</span></figcaption>"
        f'<div class="ttt-canvas" role="img" aria-label="{escape(_describe(title, known, x, y), quote=True)}">'
        f'<div class="ttt-y">{beside}</div><div class="ttt-area" {limits}>{drawing}{dot}</div>'
        f'<div class="ttt-x">{below}</div><div class="ttt-axis">{escape(x.name)}</div></div></figure>'
    )


def table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> str:
    """The numbers of a plot. Escapes the cells."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    small = f'<p class="ttt-small">{escape(note)}</p>' if note else ""
    return (
        f'<div class="ttt-scroll" tabindex="0" role="region" aria-label="{escape(title, quote=True)}">'
        f'<table class="ttt-table"><caption class="sr-only">{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{small}"
    )


def curve_table(title: str, curve: Curve, x: Axis, y: Axis, *, band: Band = ()) -> str:
    """At most `TABLE_ROWS` evenly spaced points of a curve, including the first and the last."""
    spread = {a: (low, high) for a, low, high in band}
    chosen = evenly([point for point in curve if point[1] is not None], TABLE_ROWS)
    names = [x.name, y.name, *(["Low", "High"] if band else [])]
    rows = [
        [x.text(a), y.text(b or 0.0), *((y.text(v) for v in spread[a]) if a in spread else ["–", "–"] if band else [])]
        for a, b in chosen
    ]
    note = f"{len(rows)} of {len(curve)} points, evenly spaced." if len(rows) < len(curve) else ""
    return table(title, names, rows, note=note)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` evenly spaced items, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _limits(
    curve: Curve, known: Sequence[tuple[float, float]], band: Band, zero: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    left, right = min(a for a, _ in curve), max(a for a, _ in curve)
    if right <= left:
        left, right = left - 1, right + 1
    values = [b for _, b in known] + [edge for _, a, b in band for edge in (a, b)]
    low, high = min(values), max(values)
    if zero:
        low = min(0.0, low)
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2 * (not zero), high + (abs(high) or 1.0) / 2
    room = (high - low) * 0.05
    return (left, right), (low if zero else low - room, high + room)


def _pieces(curve: Curve, gap: float) -> Iterable[list[tuple[float, float]]]:
    """The curve in pieces, interrupted where values are missing."""
    piece: list[tuple[float, float]] = []
    last = -math.inf
    for a, b in curve:
        if piece and (b is None or a - last > gap):
            yield piece
            piece = []
        if b is not None:
            piece.append((a, b))
            last = a
    if piece:
        yield piece


def expected_gap(xs: Sequence[float]) -> float:
    """Six times the median distance between two points: beyond it, no coordinator was recording."""
    distances = sorted(b - a for a, b in pairwise(xs))
    median = distances[len(distances) // 2] if distances else 0.0
    return 6 * median if median > 0 else math.inf


def _line(points: Sequence[tuple[int, int]]) -> str:
    if len(points) == 1:  # a line of one point is invisible
        points = [*points, (points[0][0] + 2, points[0][1])]
    return f'<polyline points="{_points(points)}"/>'


def _points(points: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{a},{b}" for a, b in points)


def _x_marks(left: float, right: float, x: Axis) -> list[tuple[float, str]]:
    return time_ticks(left, right) if x.kind == "time" else [(a, number(a)) for a in ticks(left, right, 4)]


def _below(x: int, text: str) -> str:
    edge = ' class="ttt-first"' if x < 60 else ' class="ttt-last"' if x > GRID - 60 else ""
    return f'<span{edge} style="left:{x / 10:g}%">{text}</span>'


def _describe(title: str, known: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """The plot as a sentence, for screen readers; the table has the details."""
    values = [b for _, b in known]
    return (
        f"{title}: from {y.text(values[0])} at {x.text(known[0][0])} to {y.text(values[-1])} at "
        f"{x.text(known[-1][0])}; lowest {y.text(min(values))}, highest {y.text(max(values))}."
    )


def _empty(title: str) -> str:
    return (
        f'<figure class="ttt-plot"><figcaption><strong>{escape(title)}</strong></figcaption>'
        '<div class="ttt-canvas ttt-nothing"><p>No data yet.</p></div></figure>'
    )
