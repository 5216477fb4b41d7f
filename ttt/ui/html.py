"""Pieces of HTML and text that several tabs show: pure functions that escape whatever comes from outside."""

from __future__ import annotations

from html import escape
from urllib.parse import quote


def problem(message: str, title: str = "") -> str:
    strong = f"<strong>{escape(title)}</strong> " if title else ""
    return f'<div class="ttt-problem" role="alert">{strong}{escape(sentence(message))}</div>'


def note(message: str) -> str:
    return f'<div class="ttt-note" role="status">{escape(message)}</div>' if message else ""


def progress_bar(label: str, percent: int | None, text: str) -> str:
    """label: name of the bar, text: its value, both for screen readers; percent: None if the end is unknown."""
    value = "" if percent is None else f' aria-valuenow="{percent}"'
    busy = " ttt-busy" if percent is None else ""
    return (
        f'<div class="ttt-bar{busy}" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" '
        f'aria-valuemax="100"{value} aria-valuetext="{escape(text)}"><span style="width:{percent or 0}%"></span></div>'
    )


def file_url(path: object) -> str:
    """Address, relative to the page, at which Gradio serves a file below an allowed path."""
    return "gradio_api/file=" + quote(str(path))


def duration(seconds: float) -> str:
    """A duration rounded to what an estimate is worth: "42 s", "12 min", "3.5 h", "1,200 h"."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def sentence(message: str) -> str:
    """With a capital first letter: error messages begin with a small one."""
    return message[:1].upper() + message[1:]
