"""Bars and curves as HTML and SVG, each with its table. Knows sizes and names; no models and no gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from calculator.memory import GIB

COLOURS = {
    "weights": "#1d4ed8", "gradients": "#0891b2", "optimizer": "#7c3aed", "activations": "#d97706",
    "logits": "#dc2626", "temporaries": "#65a30d", "buffers": "#64748b",
}  # fmt: skip
"""Of the components; those in RAM take what is left."""
OTHERS = ("#0f766e", "#9333ea", "#b45309", "#475569")

Parts = Mapping[str, int]

STYLE = """<style>
.calc { font-variant-numeric: tabular-nums; }
.calc-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 8px 12px; align-items: center; }
.calc-track { position: relative; height: 26px; background: var(--background-fill-secondary); border-radius: 4px;
  display: flex; overflow: hidden; border: 1px solid var(--border-color-primary); }
.calc-track > i { display: block; height: 100%; }
.calc-limit { position: absolute; top: 0; bottom: 0; width: 0; border-left: 2px dashed var(--body-text-color); }
.calc-key { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 10px 0; font-size: 13px; }
.calc-key b { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; }
.gradio-container .calc table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 6px 0; border: 0; }
.gradio-container .calc :is(th, td) { text-align: right; padding: 4px 8px; border: 0;
  border-bottom: 1px solid var(--border-color-primary); }
.gradio-container .calc :is(th, td):first-child { text-align: left; }
.gradio-container .calc th[scope=row] { font-weight: 400; }
.gradio-container .calc tr:last-child > th[scope=row]:not(.calc-plain *) { font-weight: 600; }
.calc-scroll { overflow-x: auto; }
.calc-verdict { padding: 14px 16px; border-radius: 8px; border: 1px solid var(--border-color-primary); }
.calc-verdict strong { font-size: 20px; color: inherit; }
.calc-fits { background: #f0fdf4; color: #14532d; } .calc-tight { background: #fffbeb; color: #713f12; }
.calc-not { background: #fef2f2; color: #7f1d1d; }
.dark .calc-fits { background: #052e16; color: #bbf7d0; } .dark .calc-tight { background: #2d1d05; color: #fde68a; }
.dark .calc-not { background: #2d1111; color: #fecaca; }
.calc svg { width: 100%; height: auto; display: block; }
.calc svg text { fill: var(--body-text-color); font-size: 12px; }
.calc-curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px; }
.gradio-container .calc h2 { margin: 14px 0 6px; font-size: 16px; font-weight: 600; }
.calc-row { display: contents; }
#calc-verdict { z-index: 20; }
@media (max-width: 768px) { #calc-verdict { position: sticky; top: 0; } .calc-verdict { padding: 8px 12px; }
  .gradio-container .calc-verdict strong { font-size: 16px; } .gradio-container .calc-verdict { font-size: 13px; } }
.calc .sr-only { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 560px) { .calc-bars { display: block; }
  .calc-row { display: grid; grid-template-columns: 1fr max-content; gap: 2px 8px; margin-bottom: 8px; }
  .calc-row > .calc-track { grid-column: 1 / -1; order: 3; } }
</style>"""


def bars(rows: Sequence[tuple[str, Parts]], limit: int, limit_name: str, title: str) -> str:
    """Stacked bars on one scale, the GPU's limit in those that begin with "GPU", and a table of the same numbers."""
    scale = max([limit, 1, *(sum(parts.values()) for _, parts in rows)])
    names = [n for n in dict.fromkeys(n for _, parts in rows for n in parts) if any(p.get(n) for _, p in rows)]
    colours = _colours(names)
    lines = []
    for name, parts in rows:
        pieces = "".join(
            f'<i style="width:{100 * size / scale:.3f}%;background:{colours[part]}"></i>'
            for part, size in parts.items() if size
        )  # fmt: skip
        line = f'<span class="calc-limit" style="left:{100 * limit / scale:.2f}%"></span>' if name[:3] == "GPU" else ""
        total = f"{sum(parts.values()) / GIB:.2f} GiB"
        track = f'<div class="calc-track">{pieces}{line}</div>'
        lines.append(f'<div class="calc-row"><span>{escape(name)}</span>{track}<span>{total}</span></div>')
    key = "".join(f'<span><b style="background:{colours[n]}"></b>{escape(n)}</span>' for n in names)
    dashed = f"<span>dashed: {escape(limit_name)}, {limit / GIB:.1f} GiB</span>"
    drawn = f'<div class="calc-bars" aria-hidden="true">{"".join(lines)}</div>'
    keys = f'<div class="calc-key" aria-hidden="true">{key}{dashed}</div>'
    return f'<div class="calc">{drawn}{keys}{_table(rows, names, title)}</div>'


def _colours(names: Sequence[str]) -> dict[str, str]:
    left = iter(OTHERS * 4)
    return {name: COLOURS.get(name) or next(left) for name in names}


def _table(rows: Sequence[tuple[str, Parts]], names: Sequence[str], title: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in rows)
    body = "".join(
        f'<tr><th scope="row">{escape(n)}</th>'
        + "".join(f"<td>{p.get(n, 0) / GIB:.3f}</td>" for _, p in rows)
        + "</tr>"
        for n in names
    )
    total = "".join(f"<td>{sum(p.values()) / GIB:.3f}</td>" for _, p in rows)
    caption = f'<caption class="sr-only">{escape(title)}</caption>'
    return (
        f'<div class="calc-scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table>{caption}'
        f'<tr><th scope="col">GiB</th>{head}</tr>{body}<tr><th scope="row">total</th>{total}</tr></table></div>'
    )


def curve(title: str, points: Sequence[tuple[int, int]], limit: int, here: int) -> str:
    """Peak memory over one size, with the limit drawn in, and the numbers for those who can't see it."""
    width, height, left, bottom = 360, 220, 52, 28
    top = max([limit, *(y for _, y in points)]) * 1.08
    most = points[-1][0]

    def x(v: float) -> float:
        return left + (width - left - 12) * v / most

    def y(v: float) -> float:
        return (height - bottom) - (height - bottom - 10) * v / top

    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    ticks = "".join(
        f'<text x="{left - 6}" y="{y(top * f) + 4:.1f}" text-anchor="end">{top * f / GIB:.3g}</text>'
        f'<line x1="{left}" x2="{width - 12}" y1="{y(top * f):.1f}" y2="{y(top * f):.1f}" '
        f'stroke="currentColor" opacity=".12"/>'
        for f in (0, 0.25, 0.5, 0.75, 1.0)
    )
    below = "".join(
        f'<text x="{x(v):.1f}" y="{height - 8}" text-anchor="{"end" if v == most else "middle"}">{v:,}</text>'
        for v in (most // 2, most)
    )
    now = next((b for a, b in points if a == here), None)
    dot = f'<circle cx="{x(here):.1f}" cy="{y(now):.1f}" r="4.5" fill="currentColor"/>' if now else ""
    rows = "".join(f"<tr><td>{a:,}</td><td>{b / GIB:.2f}</td></tr>" for a, b in points)
    return (
        f'<div class="calc"><h2>{escape(title)}</h2>'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{ticks}{below}'
        f'<line x1="{left}" x2="{width - 12}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" '
        f'stroke="#dc2626" stroke-width="2" '
        f'stroke-dasharray="6 4"/>'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="2"/>{dot}</svg>'
        f'<details><summary>GiB as numbers</summary><table><tr><th scope="col">{escape(title.split(" over ")[-1])}</th>'
        f'<th scope="col">GiB</th></tr>{rows}</table></details></div>'
    )
