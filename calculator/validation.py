"""The tables of predicted and measured memory that `benchmarks.calculator` writes into docs/calculator.md."""

from __future__ import annotations

from html import escape
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "calculator.md"
BEGIN, END = "<!-- measured: written by python -m benchmarks.calculator -->", "<!-- end of measured -->"


def section(document: Path = DOCUMENT) -> str:
    """Return the section that the benchmark wrote, as Markdown; a sentence if the docs are missing."""
    try:
        text = document.read_text(encoding="utf-8")
    except OSError:
        return "The tables are in docs/calculator.md of the repository; that file is missing here."
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def as_html(markdown: str | None = None) -> str:
    """Return the headings, paragraphs and tables of the section as HTML."""
    lines = (section() if markdown is None else markdown).splitlines()
    out: list[str] = []
    title = "Predicted against measured"
    for i, line in enumerate(lines):
        if line.startswith("|"):
            out += _row(line, first=not lines[i - 1].startswith("|") or i == 0, title=title)
            if i + 1 == len(lines) or not lines[i + 1].startswith("|"):
                out.append("</table></div>")
        elif line.startswith("#"):
            title = line.lstrip("# ")
            out.append(f"<h2>{escape(title)}</h2>")
        elif line.strip():
            out.append(f"<p>{escape(line.replace('`', ''))}</p>")
    return f'<div class="calc calc-plain">{"".join(out)}</div>'


def _row(line: str, *, first: bool, title: str) -> list[str]:
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    if all(set(cell) <= set("-:") for cell in cells):
        return []
    if first:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in cells)
        region = f'tabindex="0" role="region" aria-label="{escape(title)}"'
        return [f'<div class="calc-scroll" {region}><table><tr>{head}</tr>']
    data = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return [f'<tr><th scope="row">{escape(cells[0])}</th>{data}</tr>']
