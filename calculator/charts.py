"""Bars and curves as HTML and SVG, each with a table of its numbers. Independent of models and of Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from calculator.memory import GIB

COLOURS = {
    "weights": "#1d4ed8", "gradients": "#0891b2", "optimizer": "#7c3aed", "activations": "#d97706",
    "logits": "#dc2626", "temporaries": "#65a30d", "buffers": "#64748b",
}  # fmt: skip
"""Colours of the components on the GPU; those in RAM use OTHERS."""
OTHERS = ("#0f766e", "#9333ea", "#b45309", "#475569")

Parts = Mapping[str, int]

STYLE = """<style>
.gradio-container { overflow: clip !important; }  /* sticky elements need this; "hidden" would stop them */
.calc { font-variant-numeric: tabular-nums; }
.calc-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 8px 12px; align-items: center; }
.calc-track { position: relative; height: 26px; background: var(--background-fill-secondary); border-radius: 6px;
  display: flex; overflow: hidden; border: 1px solid var(--border-color-primary); }
.calc-track > i { display: block; height: 100%; }
.calc-limit { position: absolute; top: 0; bottom: 0; width: 0; border-left: 2px dashed var(--body-text-color); }
.calc-key { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 10px 0; font-size: 13px; }
.calc-key b { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 5px; }
.calc-hatched { background: repeating-linear-gradient(45deg, currentColor 0 2px, transparent 2px 6px); opacity: .6; }
.gradio-container .calc table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 6px 0; border: 0; }
.gradio-container .calc :is(th, td) { text-align: right; padding: 4px 8px; border: 0;
  border-bottom: 1px solid var(--border-color-primary); }
.gradio-container .calc :is(th, td):first-child { text-align: left; }
.gradio-container .calc tr { border: 0; }
.gradio-container .calc th[scope=row] { font-weight: 400; }
.gradio-container .calc tr:last-child > th[scope=row]:not(.calc-plain *) { font-weight: 600; }
.gradio-container .calc-plain :is(th, td) { vertical-align: top; text-align: left; }
.calc-scroll { overflow-x: auto; max-height: 480px; overflow-y: auto; border-radius: 8px; }
.calc-verdict { padding: 12px 16px; border-radius: 14px; border: 1px solid var(--border-color-primary); }
.gradio-container .calc-verdict strong { font-size: 18px; line-height: 1.3; color: inherit; display: block; }
.gradio-container .calc-verdict p { margin: 4px 0 0; color: inherit; font-size: 13px; }
.calc-fits { background: #f0fdf4; color: #14532d; } .calc-tight { background: #fffbeb; color: #713f12; }
.calc-not { background: #fef2f2; color: #7f1d1d; }
.dark .calc-fits { background: #052e16; color: #bbf7d0; } .dark .calc-tight { background: #2d1d05; color: #fde68a; }
.dark .calc-not { background: #2d1111; color: #fecaca; }
.calc-gauge { position: relative; height: 10px; margin-top: 8px; border-radius: 5px; display: flex; overflow: hidden;
  border: 1px solid currentColor; }
.calc-gauge { background: var(--body-background-fill); --accent: #16a34a; }
.calc-tight .calc-gauge { --accent: #d97706; } .calc-not .calc-gauge { --accent: #dc2626; }
.calc-gauge > i { display: block; height: 100%; background: var(--accent); opacity: 1; }
.calc-gauge > i.calc-hatched { background: repeating-linear-gradient(45deg, var(--accent) 0 2px, transparent 2px 6px); }
.calc-gauge > span { position: absolute; top: -1px; bottom: -1px; width: 5px; margin-left: -2px;
  background: var(--body-text-color); border: 1px solid var(--body-background-fill); }
.calc svg { width: 100%; height: auto; display: block; }
.calc svg text { fill: var(--body-text-color); font-size: 12px; }
.calc-curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 16px; }
.gradio-container .calc h2 { margin: 14px 0 6px; font-size: 16px; font-weight: 600; }
.calc-row { display: contents; }
#calc-verdict { position: sticky !important; top: 0; z-index: 50; background: var(--body-background-fill); }
.calc .sr-only { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
#tab-calculator button.sm { border-width: 1px; border-radius: 10px; }
#calc-verdict .html-container, #calc-own-message .html-container { padding: 0 !important; }
#calc-own-message:not(:has(p)) { display: none; }
#calc-drop .wrap { font-size: 13px; line-height: 1.2; padding-top: 26px; min-height: 0; gap: 2px; }
#calc-drop .icon-wrap { display: none; }
.calc-apply button, button.calc-apply { white-space: normal; text-align: left; justify-content: flex-start; }
#calc-own textarea { min-height: 42px; }
#calc-drop { min-height: 0; }
@media (max-width: 820px) {
  #calculator, #calc-choose { flex-direction: column !important; }
  #calculator > *, #calc-choose > * { width: 100% !important; min-width: 0 !important; flex: 1 1 auto !important; }
  .calc-verdict { padding: 8px 12px; border-radius: 0 0 12px 12px; }
  .gradio-container .calc-verdict strong { font-size: 15px; }
  .calc-detail { display: none; }
  #calc-examples button, button.calc-apply { min-height: 44px; }
}
@media (max-width: 560px) { .calc-bars { display: block; }
  .calc-row { display: grid; grid-template-columns: 1fr max-content; gap: 2px 8px; margin-bottom: 8px; }
  .calc-row > .calc-track { grid-column: 1 / -1; order: 3; } }
</style>"""


def gauge(need: int, overhead: tuple[int, int], limit: int) -> str:
    """A bar of the need, then the largest overhead (hatched), with a mark at the memory of the GPU."""
    high = overhead[1]
    scale = max(limit * 1.05, (need + high) * 1.02, 1)
    return (
        f'<div class="calc-gauge" aria-hidden="true"><i style="width:{100 * need / scale:.2f}%"></i>'
        f'<i class="calc-hatched" style="width:{100 * high / scale:.2f}%"></i>'
        f'<span style="left:{100 * limit / scale:.2f}%"></span></div>'
    )


def bars(rows: Sequence[tuple[str, Parts]], limit: int, limit_name: str, title: str, limited: str = "GPU") -> str:
    """Stacked bars on one scale, and a table of the same numbers.

    Rows whose name begins with `limited` show the limit as a line.
    """
    scale = max([limit, 1, *(sum(parts.values()) for _, parts in rows)])
    names = [n for n in dict.fromkeys(n for _, parts in rows for n in parts) if any(p.get(n) for _, p in rows)]
    colours = _colours(names)
    lines = []
    for name, parts in rows:
        pieces = "".join(
            f'<i style="width:{100 * size / scale:.3f}%;background:{colours[part]}"></i>'
            for part, size in parts.items() if size
        )  # fmt: skip
        line = f'<span class="calc-limit" style="left:{100 * limit / scale:.2f}%"></span>'
        line = line if name.startswith(limited) else ""
        total = f"{sum(parts.values()) / GIB:.2f} GiB"
        track = f'<div class="calc-track">{pieces}{line}</div>'
        lines.append(f'<div class="calc-row"><span>{escape(name)}</span>{track}<span>{total}</span></div>')
    key = "".join(f'<span><b style="background:{colours[n]}"></b>{escape(n)}</span>' for n in names)
    dashed = f"<span>dashed line: {escape(limit_name)}, {limit / GIB:.1f} GiB</span>"
    drawn = f'<div class="calc-bars" aria-hidden="true">{"".join(lines)}</div>'
    keys = f'<div class="calc-key" aria-hidden="true">{key}{dashed}</div>'
    return f'<div class="calc">{drawn}{keys}{_table(rows, names, title)}</div>'


def _colours(names: Sequence[str]) -> dict[str, str]:
    left = iter(OTHERS * 4)
    return {name: COLOURS.get(name) or next(left) for name in names}


def _table(rows: Sequence[tuple[str, Parts]], names: Sequence[str], title: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in rows)
    body = "".join(
        f'<tr><th scope="row">{escape(n)}</th>' + "".join(f"<td>{_cell(p.get(n, 0))}</td>" for _, p in rows) + "</tr>"
        for n in names
    )
    total = "".join(f"<td>{sum(p.values()) / GIB:.3f}</td>" for _, p in rows)
    caption = f'<caption class="sr-only">{escape(title)}</caption>'
    return (
        f'<div class="calc-scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table>{caption}'
        f'<tr><th scope="col">GiB</th>{head}</tr>{body}<tr><th scope="row">total</th>{total}</tr></table></div>'
    )


def _cell(size: int) -> str:
    if not size:
        return "–"
    return f"{size / GIB:.3f}" if size >= GIB / 2000 else "&lt;0.001"


def curve(title: str, points: Sequence[tuple[int, int, int]], limit: int, here: int) -> str:
    """Peak memory, and activations with logits, over one size; with the limit, and a table of the numbers.

    points: (size, peak, activations and logits); here: the chosen size.
    """
    width, height, left, bottom = 360, 220, 52, 28
    top = max([limit, *(peak for _, peak, _ in points)]) * 1.08
    most = points[-1][0]

    def x(v: float) -> float:
        return left + (width - left - 12) * v / most

    def y(v: float) -> float:
        return (height - bottom) - (height - bottom - 10) * v / top

    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b, _ in points)
    below_path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, _, b in points)
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
    now = next((b for a, b, _ in points if a == here), None)
    dot = f'<circle cx="{x(here):.1f}" cy="{y(now):.1f}" r="4.5" fill="currentColor"/>' if now else ""
    rows = "".join(f"<tr><td>{a:,}</td><td>{b / GIB:.2f}</td><td>{c / GIB:.2f}</td></tr>" for a, b, c in points)
    return (
        f'<div class="calc"><h2>{escape(title)}</h2>'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{ticks}{below}'
        f'<line x1="{left}" x2="{width - 12}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" '
        f'stroke="#dc2626" stroke-width="2" '
        f'stroke-dasharray="6 4"/>'
        f'<polyline points="{below_path}" fill="none" stroke="{COLOURS["activations"]}" stroke-width="2"/>'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="2"/>{dot}</svg>'
        f'<div class="calc-key" aria-hidden="true"><span>line: peak</span><span><b style="background:'
        f'{COLOURS["activations"]}"></b>activations and logits</span><span>dashed: memory of the GPU</span></div>'
        f'<details><summary>Show as table</summary><table><tr><th scope="col">{escape(title.split(" by ")[-1])}</th>'
        f'<th scope="col">peak, GiB</th><th scope="col">activations and logits, GiB</th></tr>{rows}</table>'
        f"</details></div>"
    )
