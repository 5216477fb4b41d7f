"""Updates and results as HTML and as words: pure functions. Everything that came from outside is escaped."""

from __future__ import annotations

import base64
from html import escape
from urllib.parse import quote

from ttt.ui.generate import form as forms
from ttt.ui.generate.models import ModelState, Source
from ttt.ui.generate.queue import Update
from ttt.ui.generate.results import RANKED_COLUMNS, Result

STAGES = {
    "reading": "Reading the prompt",
    "painting": "Painting",
    "decoding": "Turning codes into pictures",
    "ranking": "Ranking with CLIP",
    "done": "Done",
}


def duration(seconds: float) -> str:
    """A time to wait, as precise as one can know it."""
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def remaining(update: Update, now: float) -> float | None:
    """Seconds left by the pace so far; None while nothing can be said."""
    elapsed = now - update.since
    if update.phase != "working" or update.fraction < 0.01 or elapsed < 0.5:
        return None
    return elapsed * (1 - update.fraction) / update.fraction


def headline(update: Update, now: float) -> tuple[str, str]:
    """What is going on, and how long it will take."""
    if update.phase == "loading":
        return f"Loading the model: {update.message}", f"{now - update.since:.0f} s so far"
    if update.phase == "waiting":
        place = update.ahead + 1
        if update.ahead == 0:
            return "Next in the queue", "starting"
        before = "1 request" if update.ahead == 1 else f"{update.ahead} requests"
        return f"Place {place} in the queue", f"{before} before yours"
    if update.phase == "working":
        left = remaining(update, now)
        name = STAGES.get(update.stage, update.stage.capitalize())
        return f"{name}, {update.fraction:.0%}", "" if left is None else f"about {duration(left)} left"
    if update.phase == "stopped":
        return "Stopped", ""
    return ("Done", "") if update.phase == "finished" else ("Failed", "")


def status(update: Update, now: float) -> str:
    """The line with the bar above the pictures."""
    if update.phase == "failed":
        return problem(update.message)
    left, right = headline(update, now)
    percent = round(update.fraction * 100)
    busy = " ttt-busy" if update.phase in ("loading", "waiting") else ""
    value = "" if busy else f' aria-valuenow="{percent}"'
    bar = (
        f'<div class="ttt-bar{busy}" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"'
        f'{value} aria-valuetext="{escape(left)}"><span style="width:{percent}%"></span></div>'
    )
    if update.phase == "stopped":
        bar = ""
    return (
        f'<div class="ttt-status"><p><strong>{escape(left)}</strong><span class="ttt-eta">{escape(right)}</span></p>'
        f"{bar}</div>"
    )


def announcement(update: Update) -> str:
    """The same for a screen reader, which wants to hear less often: each stage, each quarter."""
    if update.phase == "working":
        name = STAGES.get(update.stage, update.stage)
        return escape(f"{name}, {int(update.fraction * 4) * 25} percent")
    if update.phase == "failed":
        return ""  # the message itself is an alert
    if update.phase == "finished":
        return "Done. The best pictures are shown."
    return escape(headline(update, update.since)[0])


def problem(message: str) -> str:
    return f'<div class="ttt-problem" role="alert"><strong>That did not work.</strong> {escape(message)}</div>'


def note(message: str) -> str:
    return f'<div class="ttt-note" role="status">{escape(message)}</div>' if message else ""


def placeholder() -> str:
    """The empty stage: where the candidates will appear."""
    return '<div class="ttt-empty"><p>The candidates appear here while they are painted.</p></div>'


def sheet(update: Update) -> str:
    """The contact sheet as it is now."""
    if update.sheet is None:
        return placeholder()
    data = base64.b64encode(update.sheet).decode("ascii")
    alt = f"All candidates on one sheet, {update.fraction:.0%} done"
    return f'<img class="ttt-sheet" decoding="sync" alt="{alt}" src="data:image/jpeg;base64,{data}">'


def file_url(path: object) -> str:
    return "gradio_api/file=" + quote(str(path))


def result(result: Result) -> str:
    """The best pictures with their scores, what made them, and all candidates ranked."""
    figures = "".join(_figure(result, rank) for rank in range(len(result.best)))
    params = result.params
    link = escape(forms.to_query(result.prompt, params, result.model), quote=True)
    facts = [
        ("Seed", f'<span id="shown-seed">{escape(str(params.get("seed")))}</span>'),
        ("Model", escape(result.model)),
        ("Candidates", escape(str(params.get("candidates")))),
        ("Time", escape(duration(result.seconds))),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        f'<section class="ttt-result" aria-label="Best pictures" data-result="{escape(result.id, quote=True)}">'
        f'<h2>“{escape(result.prompt)}”</h2><div class="ttt-best">{figures}</div><dl class="ttt-facts">{listed}</dl>'
        f'<p class="ttt-actions"><a class="ttt-button" href="{file_url(result.archive)}" download="pictures.zip">'
        f'Download ZIP</a><button type="button" class="ttt-button ttt-copy" data-link="{link}">Copy link</button></p>'
        f"{_ranking(result)}</section>"
    )


def _figure(result: Result, rank: int) -> str:
    picture = result.best[rank]
    url = file_url(result.path(picture.file))
    alt = escape(f"{result.prompt}, rank {rank + 1}", quote=True)
    name = escape(picture.file, quote=True)
    return (
        f'<figure><img src="{url}" alt="{alt}"><figcaption><span>#{rank + 1}</span>'
        f'<span>CLIP {picture.score:.2f}</span><a href="{url}" download="{name}" '
        f'aria-label="Download picture {rank + 1}">PNG</a></figcaption></figure>'
    )


def _ranking(result: Result) -> str:
    """All candidates as tiles cut by the browser out of one JPEG, which is fetched when they are opened."""
    count = len(result.ranking)
    columns = min(RANKED_COLUMNS, max(1, count))
    rows = -(-count // columns)
    url = file_url(result.ranked_sheet)
    tiles = "".join(
        f'<li><span role="img" aria-label="Rank {i + 1}, candidate {candidate}" '
        f'style="background-position:{_percent(i % columns, columns)} {_percent(i // columns, rows)}"></span>'
        f"{i + 1} · {score:.1f}</li>"
        for i, (candidate, score) in enumerate(result.ranking)
    )
    # A rule, not a custom property: there a relative address would be read against the style sheet's own.
    style = f"#all-{result.id} span{{background-image:url('{url}');background-size:{columns * 100}% {rows * 100}%}}"
    return (
        f'<details class="ttt-all" id="all-{result.id}"><summary>Show all {count}, ranked</summary>'
        f"<style>{style}</style><ol>{tiles}</ol></details>"
    )


def _percent(index: int, count: int) -> str:
    return f"{100 * index / (count - 1):.4g}%" if count > 1 else "0%"


def model_line(source: Source, state: ModelState, now: float) -> str:
    """The state of the chosen model."""
    words = {
        "idle": "Not loaded yet.",
        "loading": f"Loading… {now - state.since:.0f} s. Requests wait until it is ready.",
        "ready": "Ready.",
        "failed": f"Cannot be used: {state.reason}",
    }[state.status]
    return (
        f'<p class="ttt-model" data-state="{state.status}"><span class="ttt-dot" aria-hidden="true"></span>'
        f"<span>{escape(words)} {escape(source.about)}</span></p>"
    )
