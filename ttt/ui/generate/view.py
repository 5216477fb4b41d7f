"""Updates and results as text and HTML: pure functions that escape whatever comes from outside."""

from __future__ import annotations

import base64
from html import escape

from ttt.ui.generate import form as forms
from ttt.ui.generate.models import ModelSource, ModelState
from ttt.ui.generate.queue import Update
from ttt.ui.generate.results import RANKED_COLUMNS, Result
from ttt.ui.html import duration, file_url, problem, progress_bar

STAGES = {
    "prefill": "Reading the prompt",
    "sampling": "Generating",
    "decoding": "Decoding",
    "ranking": "Choosing the best",
    "done": "Done",
}


def remaining(update: Update, now: float) -> float | None:
    """Estimated seconds left at the pace so far; None while it is too early to say."""
    elapsed = now - update.since
    if update.phase != "working" or update.fraction < 0.01 or elapsed < 0.5:
        return None
    return elapsed * (1 - update.fraction) / update.fraction


def headline(update: Update, now: float) -> tuple[str, str]:
    """The state of the request, and how long it will take."""
    if update.phase == "loading":
        return f"Loading the model: {update.message}", f"{now - update.since:.0f} s so far"
    if update.phase == "waiting":
        if update.ahead == 0:
            return "You are next", ""
        return ("One request" if update.ahead == 1 else f"{update.ahead} requests") + " ahead of yours", ""
    if update.phase == "working":
        left = remaining(update, now)
        name = STAGES.get(update.stage, update.stage.capitalize())
        eta = "" if left is None else "almost done" if left < 1 else f"about {duration(left)} left"
        return f"{name}, {update.fraction:.0%}", eta
    if update.phase == "stopped":
        return "Stopped. Press Generate to start again.", ""
    return ("Done", "") if update.phase == "finished" else ("Failed", "")


def status(update: Update, now: float) -> str:
    """The line and the progress bar above the images."""
    if update.phase == "failed":
        return problem(update.message)
    left, right = headline(update, now)
    percent = round(update.fraction * 100)
    bar = ""
    if update.phase != "stopped":
        bar = progress_bar("Progress", None if update.phase in ("loading", "waiting") else percent, left)
    return (
        f'<div class="ttt-status"><p><strong>{escape(left)}</strong><span class="ttt-eta">{escape(right)}</span></p>'
        f"{bar}</div>"
    )


def announcement(update: Update) -> str:
    """The state for a screen reader, which should speak less often: at each stage and each quarter."""
    if update.phase == "working":
        name = STAGES.get(update.stage, update.stage)
        return escape(f"{name}, {int(update.fraction * 4) * 25} percent")
    if update.phase == "failed":
        return ""  # the message itself is an alert
    if update.phase == "finished":
        return "Done. The best images are shown."
    return escape(headline(update, update.since)[0])


def placeholder() -> str:
    """Shown where the images will appear."""
    return '<div class="ttt-empty"><p>Your images will appear here.</p></div>'


def preview(update: Update) -> str:
    """The candidates so far."""
    if update.preview is None:
        return placeholder()
    data = base64.b64encode(update.preview).decode("ascii")
    alt = f"Preview of all candidates, {update.fraction:.0%} done"
    return f'<img class="ttt-sheet" decoding="sync" alt="{alt}" src="data:image/jpeg;base64,{data}">'


def result(result: Result) -> str:
    """The best images with their scores and settings, and all candidates ranked."""
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
        f'<section class="ttt-result" aria-label="Best images" data-result="{escape(result.id, quote=True)}">'
        f'<h2>“{escape(result.prompt)}”</h2><div class="ttt-best">{figures}</div><dl class="ttt-facts">{listed}</dl>'
        f'<p class="ttt-actions"><a class="ttt-button" href="{file_url(result.archive)}" '
        f'download="{escape(result.archive.name)}">'
        f'Download ZIP</a><button type="button" class="ttt-button ttt-copy" data-link="{link}">Copy link</button></p>'
        f"{_ranking(result)}</section>"
    )


def _figure(result: Result, rank: int) -> str:
    image = result.best[rank]
    url = file_url(result.path(image.file))
    alt = escape(f"{result.prompt}, rank {rank + 1}", quote=True)
    name = escape(image.file, quote=True)
    return (
        f'<figure><img src="{url}" alt="{alt}"><figcaption><span>#{rank + 1}</span>'
        f'<span>CLIP {image.score:.2f}</span><a href="{url}" download="{name}" '
        f'aria-label="Save image {rank + 1}">Save</a></figcaption></figure>'
    )


def _ranking(result: Result) -> str:
    """All candidates as tiles that the browser cuts out of one JPEG, which it fetches when they are opened."""
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
    # A rule instead of a custom property, in which a relative URL would be resolved against the style sheet.
    style = f"#all-{result.id} span{{background-image:url('{url}');background-size:{columns * 100}% {rows * 100}%}}"
    return (
        f'<details class="ttt-all" id="all-{result.id}"><summary>See all {count}, ranked</summary>'
        f"<style>{style}</style><ol>{tiles}</ol></details>"
    )


def _percent(index: int, count: int) -> str:
    return f"{100 * index / (count - 1):.4g}%" if count > 1 else "0%"


def model_line(source: ModelSource, state: ModelState, now: float) -> str:
    """The state of the chosen model."""
    text = {
        "idle": f"Not loaded yet. {source.about}",
        "loading": f"Loading ({now - state.since:.0f} s). Your request starts as soon as it is ready.",
        "ready": f"Ready. {source.about}",
        "failed": f"Could not load the model: {state.reason}",
    }[state.status]
    return (
        f'<p class="ttt-model" data-state="{state.status}"><span class="ttt-dot" aria-hidden="true"></span>'
        f"<span>{escape(text)}</span></p>"
    )
