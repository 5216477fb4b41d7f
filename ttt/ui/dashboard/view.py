"""A run as HTML, part by part: pure functions that escape whatever a peer or a file wrote. Independent of Gradio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Literal
from urllib.parse import urlsplit

from ttt.swarm.history.summary import Axis, Curve, LeaderboardEntry, Progress, Series
from ttt.swarm.history.types import CheckpointEntry, Event, SampleImage
from ttt.swarm.process.sanitize import clean_text
from ttt.ui import html
from ttt.ui.dashboard import plots
from ttt.ui.dashboard.plots import SAMPLES, STEPS, TIME, moment, number
from ttt.ui.dashboard.runs import NO_RUNS, RunData
from ttt.ui.html import duration, progress_bar

Order = Literal["seconds", "samples"]
ORDERS: dict[Order, str] = {"seconds": "Training time", "samples": "Samples"}
SHORT_LIST = 20
"""Rows of the leaderboard unless all are requested."""
SampleImageUrl = Callable[[SampleImage], str | None]
"""Address of a sample image, or None if it cannot be shown."""

LOSS = plots.Axis("Loss", "number", lambda value: f"{value:.3f}")
PEERS = plots.Axis("Peers", "whole", lambda value: f"{value:.0f}")
SPEED = plots.Axis("Samples/s", "number", number)
RATE = plots.Axis("Learning rate", "number", lambda value: f"{value:.2e}")
PLOTS: dict[str, tuple[str, Series, Axis, plots.Axis, bool]] = {
    # name: (title, series, x axis, y axis, y axis starts at zero)
    "loss-samples": ("Loss over samples", "loss", "samples", LOSS, False),
    "loss-time": ("Loss over time", "loss", "time", LOSS, False),
    "peers-time": ("Active peers over time", "peers", "time", PEERS, True),
    "speed-time": ("Samples per second over time", "samples_per_second", "time", SPEED, True),
    "step-time": ("Steps over time", "step", "time", STEPS, True),
    "rate-samples": ("Learning rate over samples", "learning_rate", "samples", RATE, True),
}
EVENTS = {
    "started": "Run started",
    "joined": "Joined",
    "left": "Left",
    "rollback": "Rolled back",
    "problem": "Problem",
}


def empty() -> str:
    """Shown while there is no run: how to get one."""
    return (
        '<section class="ttt-welcome"><h2>No runs yet</h2>'
        "<p>During a run, this page shows the loss, the participants and images that the model generates.</p>"
        "<dl><div><dt>Try a swarm on this machine, in two minutes</dt><dd><code>make swarm</code></dd></div>"
        "<div><dt>Start your own run</dt><dd><code>python -m ttt run new run.toml</code><br>"
        "<code>python -m ttt coordinator --run run.toml</code></dd></div>"
        "<div><dt>Open a finished run</dt><dd>Put its folder, with <code>history.sqlite</code> or an exported "
        "<code>history.json</code>, into <code>runs/</code>, or start the app with <code>--runs FOLDER</code>.</dd>"
        "</div>"
        "</dl></section>"
    )


def problem(message: str) -> str:
    if message == NO_RUNS:
        return empty()
    return html.problem(message, "This run cannot be shown.")


def head(run: RunData) -> str:
    """The state of the run, progress to the next step, and the main numbers."""
    title = f"<h2>{escape(run.title or run.key)}</h2>"
    if run.progress is None:
        return f'{title}<p class="ttt-state" data-state="silent">Waiting for the first report.</p>'
    p = run.progress
    state = "training" if p.active and p.peers else "waiting" if p.active else "silent"
    text = {
        "training": "Training now.",
        "waiting": "Online. No peers are training right now.",
        "silent": f"Offline since {moment(p.updated)} UTC.",
    }[state]
    started = run.status.get("started")
    since = f" Started on {escape(str(started)[:10])}." if started else ""
    dot = '<span class="ttt-dot" aria-hidden="true"></span>'
    line = f'<p class="ttt-state" data-state="{state}">{dot}<span>{escape(text)}{since}</span></p>'
    return title + line + _bar(p) + _tiles(run, p)


def _bar(p: Progress) -> str:
    percent = int(p.fraction * 100)
    left = f"Step {p.step + 1:,}: {p.samples_accumulated:,} of {p.target_batch_size:,} samples"
    if p.eta_seconds is None:
        eta = ""
    else:
        eta = f"about {duration(p.eta_seconds)} left" if p.eta_seconds >= 1 else "averaging now"
    bar = progress_bar("Progress of the next step", percent, f"{percent} %, {eta}" if eta else f"{percent} %")
    return f'<div class="ttt-status"><p><strong>{left}</strong><span class="ttt-eta">{eta}</span></p>{bar}</div>'


def _tiles(run: RunData, p: Progress) -> str:
    samples = p.step * p.target_batch_size + p.samples_accumulated
    facts = [
        ("Step", f"{p.step:,}"),
        ("Loss", _loss(p.loss)),
        ("Samples", number(samples, 4)),
        ("Samples/s", number(p.samples_per_second)),
        ("Active peers", f"{p.peers:,}"),
        *([("Auxiliary peers", f"{p.auxiliary_peers:,}")] if p.auxiliary_peers else []),
        ("Participants", f"{run.status.get('contributors', len(run.places)):,}"),
        ("Learning rate", number(p.learning_rate)),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="ttt-tiles">{listed}</dl>'


def _loss(value: float | None) -> str:
    return number(None) if value is None else LOSS.text(value)


def figure(run: RunData, name: str) -> str:
    """One of `PLOTS` as a figure."""
    title, _, over, y, zero = PLOTS[name]
    curve, points, band = _curve(run, name)
    gap = plots.expected_gap(curve.x) if over == "time" else float("inf")
    return plots.plot(title, points, TIME if over == "time" else SAMPLES, y, band=band, zero=zero, gap=gap)


def figure_table(run: RunData, name: str) -> str:
    """The same numbers as a table."""
    title, _, over, y, _ = PLOTS[name]
    _, points, band = _curve(run, name)
    return plots.curve_table(title, points, TIME if over == "time" else SAMPLES, y, band=band)


def _curve(run: RunData, name: str) -> tuple[Curve, plots.Curve, plots.Band]:
    _, series, over, _, _ = PLOTS[name]
    curve = run.curves[series, over]
    points = list(zip(curve.x, curve.y, strict=True))
    if curve.low is None or curve.high is None:
        return curve, points, []
    edges = zip(curve.x, curve.low, curve.high, strict=True)
    return curve, points, [edge for edge in edges if edge[1] == edge[1] and edge[2] == edge[2]]


def leaderboard(places: Sequence[LeaderboardEntry], order: Order = "seconds", *, show_all: bool = False) -> str:
    """The participants, by credited training time or samples."""
    if not places:
        return '<p class="ttt-small">No contributions yet.</p>'
    ranked = sorted(places, key=lambda place: -getattr(place, order))
    shown = ranked if show_all else ranked[:SHORT_LIST]
    rows = "".join(_place(rank, place) for rank, place in enumerate(shown, start=1))
    names = ("Rank", "Name", "Training time", "Samples", "Share", "Samples, last 24 h", "Device", "Last seen (UTC)")
    columns = "".join(f'<th scope="col">{name}</th>' for name in names)
    rest = f" Showing the first {len(shown)} of {len(ranked)}." if len(shown) < len(ranked) else ""
    unverified = (
        " “Unverified”: reports much more work than other peers observed."
        if any(place.unverified for place in shown)
        else ""
    )
    return (
        '<div class="ttt-scroll" tabindex="0" role="region" aria-label="Leaderboard">'
        '<table class="ttt-table ttt-board">'
        f'<caption class="sr-only">Leaderboard by {ORDERS[order].lower()}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="ttt-small">Only work confirmed by other peers is counted.{rest}{unverified}</p>'
    )


def _place(rank: int, place: LeaderboardEntry) -> str:
    marks = ""
    if place.active:
        marks += ' <span class="ttt-here">active</span>'
    if place.auxiliary:
        marks += ' <span class="ttt-tag">auxiliary</span>'
    if place.unverified:
        marks += ' <span class="ttt-tag">unverified</span>'
    cells = (
        duration(place.seconds),
        f"{place.samples:,}",
        f"{place.share:.1%}",
        f"{place.samples_today:,}",
        escape(place.device),
        moment(place.last_seen),
    )
    return (
        f'<tr><td>{rank}</td><th scope="row"><span title="{escape(place.peer, quote=True)}">{place.html_name}</span>'
        f"{marks}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    )


def checkpoints(run: RunData) -> str:
    """The checkpoints, newest first."""
    if not run.checkpoints:
        return '<p class="ttt-small">No checkpoints yet.</p>'
    names = ("Date (UTC)", "Step", "Samples", "Loss", "SHA-256", "Hub")
    columns = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_checkpoint(checkpoint) for checkpoint in run.checkpoints)
    return (
        '<div class="ttt-scroll" tabindex="0" role="region" aria-label="Checkpoints"><table class="ttt-table">'
        f'<caption class="sr-only">Checkpoints</caption><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _checkpoint(checkpoint: CheckpointEntry) -> str:
    url = checkpoint.url if urlsplit(checkpoint.url).scheme == "https" else ""
    cells = (
        f"{checkpoint.step:,}",
        number(checkpoint.samples, 4),
        _loss(checkpoint.loss),
        f"<code>{escape(checkpoint.checksum[:12])}</code>",
        f'<a href="{escape(url, quote=True)}" rel="noopener nofollow">open</a>' if url else "–",
    )
    listed = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{moment(checkpoint.time)}</th>{listed}</tr>'


def gallery(run: RunData, url: SampleImageUrl) -> str:
    """For each fixed prompt, the sample images of each checkpoint."""
    strips = [strip for prompt, images in run.sample_images.items() if (strip := _strip(prompt, images, url))]
    if not strips:
        return '<p class="ttt-small">No sample images yet.</p>'
    return "".join(strips)


def _strip(prompt: str, images: Sequence[SampleImage], url: SampleImageUrl) -> str:
    shown = "".join(_sample_image(prompt, image, address) for image in images if (address := url(image)))
    title = escape(clean_text(prompt, 200), quote=True)
    if not shown:
        return ""
    return (
        f'<section class="ttt-strip" aria-label="{title}"><h3>“{title}”</h3>'
        f'<div class="ttt-scroll" tabindex="0" role="region" aria-label="Sample images of “{title}”">'
        f"<ol>{shown}</ol></div>"
        "</section>"
    )


def _sample_image(prompt: str, image: SampleImage, address: str) -> str:
    alt = escape(f"{clean_text(prompt, 200)}, generated after {image.step:,} steps", quote=True)
    return (
        f'<li><img src="{escape(address, quote=True)}" alt="{alt}" width="128" height="128" loading="lazy">'
        f"<span>step {image.step:,}</span></li>"
    )


def events(recent: Sequence[Event], places: Sequence[LeaderboardEntry]) -> str:
    """The recent events, newest first."""
    if not recent:
        return '<p class="ttt-small">No events yet.</p>'
    names = {place.peer: place.name for place in places}
    rows = [
        [
            moment(event.time),
            EVENTS.get(event.kind, event.kind),
            names.get(event.peer_id[-12:], event.peer_id[-12:]) or "–",
            clean_text(event.text, 300) or "–",
        ]
        for event in recent
    ]
    return plots.table("Recent events", ("Time (UTC)", "Event", "Peer", "Details"), rows)
