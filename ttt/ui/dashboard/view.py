"""A run as HTML, part by part: pure functions. Whatever a stranger or a file wrote is escaped. Knows no gradio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Literal
from urllib.parse import urlsplit

from ttt.swarm.history.summary import Axis, Curve, LeaderboardEntry, Progress, Series
from ttt.swarm.history.types import CheckpointEntry, Event, SampleImage
from ttt.swarm.process.text import clean_text
from ttt.ui.dashboard import plots
from ttt.ui.dashboard.plots import SAMPLES, STEPS, TIME, moment, number
from ttt.ui.dashboard.run_types import NOWHERE, RunData
from ttt.ui.html import duration

Order = Literal["seconds", "samples"]
ORDERS: dict[Order, str] = {"seconds": "Computing time", "samples": "Samples"}
SHORT_LIST = 20
"""Lines of the leaderboard before one asks for all."""
SampleImageUrl = Callable[[SampleImage], str | None]
"""Address of a sample image; None where there is none to show."""

LOSS = plots.Axis("Loss", "number", lambda value: f"{value:.3f}")
PEERS = plots.Axis("Peers", "whole", lambda value: f"{value:.0f}")
SPEED = plots.Axis("Samples/s", "number", number)
RATE = plots.Axis("Learning rate", "number", lambda value: f"{value:.2e}")
PLOTS: dict[str, tuple[str, Series, Axis, plots.Axis, bool]] = {
    # name: title, series, over what, how its values are written, whether the axis begins at zero
    "loss-samples": ("Loss over samples", "loss", "samples", LOSS, False),
    "loss-time": ("Loss over time", "loss", "time", LOSS, False),
    "peers-time": ("Active peers over time", "peers", "time", PEERS, True),
    "speed-time": ("Samples per second over time", "samples_per_second", "time", SPEED, True),
    "step-time": ("Steps over time", "step", "time", STEPS, True),
    "rate-samples": ("Learning rate over samples", "learning_rate", "samples", RATE, True),
}
EVENTS = {
    "started": "The coordinator began",
    "joined": "Joined",
    "left": "Left",
    "rollback": "Set back",
    "problem": "Problem",
}


def empty() -> str:
    """No run on this machine: how to get one."""
    return (
        '<section class="ttt-welcome"><h2>No run on this machine yet</h2>'
        "<p>When a swarm trains here, this page shows its loss falling, who takes part, and what the model paints.</p>"
        "<dl><div><dt>See a swarm in two minutes, on this machine alone</dt><dd><code>make swarm</code></dd></div>"
        "<div><dt>Begin a run of your own</dt><dd><code>python -m ttt run new run.toml</code><br>"
        "<code>python -m ttt coordinator --run run.toml</code></dd></div>"
        "<div><dt>Look at a run that was finished</dt><dd>put its folder, with <code>history.sqlite</code> or an "
        "exported <code>history.json</code>, into <code>runs/</code>, or start the app with "
        "<code>--runs FOLDER</code></dd></div>"
        "</dl></section>"
    )


def problem(message: str) -> str:
    if message == NOWHERE:
        return empty()
    return f'<div class="ttt-problem" role="alert"><strong>This run cannot be shown.</strong> {escape(message)}</div>'


def head(run: RunData) -> str:
    """Where the run stands: state, progress to the next step, numbers."""
    title = f"<h2>{escape(run.title or run.key)}</h2>"
    if run.progress is None:
        return f'{title}<p class="ttt-state" data-state="silent">Waiting for the first reading of the swarm.</p>'
    p = run.progress
    state = "training" if p.active and p.peers else "waiting" if p.active else "silent"
    words = {
        "training": "Training now.",
        "waiting": "The coordinator runs; nobody trains just now.",
        "silent": f"Not running. Last heard of on {moment(p.updated)} UTC.",
    }[state]
    started = run.status.get("started")
    since = f" Began on {escape(str(started)[:10])}." if started else ""
    dot = '<span class="ttt-dot" aria-hidden="true"></span>'
    line = f'<p class="ttt-state" data-state="{state}">{dot}<span>{escape(words)}{since}</span></p>'
    return title + line + _bar(p) + _tiles(run, p)


def _bar(p: Progress) -> str:
    percent = int(p.fraction * 100)
    left = f"{p.samples_accumulated:,} of {p.target_batch_size:,} samples towards step {p.step + 1:,}"
    if p.eta_seconds is None:
        ahead = ""
    else:
        ahead = f"about {duration(p.eta_seconds)} left" if p.eta_seconds >= 1 else "averaging next"
    return (
        f'<div class="ttt-status"><p><strong>{escape(left)}</strong><span class="ttt-eta">{escape(ahead)}</span></p>'
        f'<div class="ttt-bar" role="progressbar" aria-label="Progress to the next step" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}" aria-valuetext="{percent} %, {escape(ahead, quote=True)}">'
        f'<span style="width:{percent}%"></span></div></div>'
    )


def _tiles(run: RunData, p: Progress) -> str:
    samples = p.step * p.target_batch_size + p.samples_accumulated
    facts = [
        ("Step", f"{p.step:,}"),
        ("Loss", _loss(p.loss)),
        ("Samples", number(samples, 4)),
        ("Samples/s", number(p.samples_per_second)),
        ("Active peers", f"{p.peers:,}"),
        *([("Auxiliary peers", f"{p.auxiliary_peers:,}")] if p.auxiliary_peers else []),
        ("Contributors", f"{run.status.get('contributors', len(run.places)):,}"),
        ("Learning rate", number(p.learning_rate)),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="ttt-tiles">{listed}</dl>'


def _loss(value: float | None) -> str:
    return number(None) if value is None else LOSS.text(value)


def figure(run: RunData, name: str) -> str:
    """One of `PLOTS`, drawn."""
    title, _, over, y, zero = PLOTS[name]
    curve, points, band = _curve(run, name)
    gap = plots.usual_gap(curve.x) if over == "time" else float("inf")
    return plots.plot(title, points, TIME if over == "time" else SAMPLES, y, band=band, zero=zero, gap=gap)


def figure_table(run: RunData, name: str) -> str:
    """The same as numbers."""
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


def leaderboard(places: Sequence[LeaderboardEntry], order: Order = "seconds", *, everybody: bool = False) -> str:
    """Who contributed, by credited time or samples."""
    if not places:
        return '<p class="ttt-small">Nobody was credited anything yet.</p>'
    ranked = sorted(places, key=lambda place: -getattr(place, order))
    shown = ranked if everybody else ranked[:SHORT_LIST]
    rows = "".join(_place(rank, place) for rank, place in enumerate(shown, start=1))
    names = ("Rank", "Name", "Computing time", "Samples", "Share", "Last 24 h", "Device", "Last seen (UTC)")
    columns = "".join(f'<th scope="col">{name}</th>' for name in names)
    rest = f" The first {len(shown)} of {len(ranked)}." if len(shown) < len(ranked) else ""
    boast = (
        " Claims more: this peer says it did much more than the peers it averaged with could see."
        if any(place.unverified for place in shown)
        else ""
    )
    return (
        '<div class="ttt-scroll" tabindex="0" role="region" aria-label="Leaderboard">'
        '<table class="ttt-table ttt-board">'
        f'<caption class="sr-only">Leaderboard by {ORDERS[order].lower()}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="ttt-small">Counted from signed records, as far as other peers confirm them.{rest}{boast}</p>'
    )


def _place(rank: int, place: LeaderboardEntry) -> str:
    marks = ""
    if place.active:
        marks += '<span class="ttt-here">active</span>'
    if place.auxiliary:
        marks += '<span class="ttt-tag">auxiliary</span>'
    if place.unverified:
        marks += '<span class="ttt-tag">claims more</span>'
    cells = (
        hours(place.seconds),
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


def hours(seconds: float) -> str:
    """Computing time: 42 s, 12 min, 3.5 h, 120 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def checkpoints(run: RunData) -> str:
    """With their dates, newest first."""
    if not run.checkpoints:
        return '<p class="ttt-small">No checkpoint was written yet.</p>'
    names = ("Date (UTC)", "Step", "Samples", "Loss", "SHA-256", "On the Hub")
    columns = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_checkpoint(one) for one in run.checkpoints)
    return (
        '<div class="ttt-scroll" tabindex="0" role="region" aria-label="Checkpoints"><table class="ttt-table">'
        f'<caption class="sr-only">Checkpoints</caption><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _checkpoint(one: CheckpointEntry) -> str:
    url = one.url if urlsplit(one.url).scheme == "https" else ""
    link = f'<a href="{escape(url, quote=True)}" rel="noopener nofollow">open</a>' if url else "–"
    cells = (f"{one.step:,}", number(one.samples, 4), _loss(one.loss), f"<code>{escape(one.checksum[:12])}</code>")
    return f'<tr><th scope="row">{moment(one.time)}</th>{"".join(f"<td>{c}</td>" for c in cells)}<td>{link}</td></tr>'


def gallery(run: RunData, url: SampleImageUrl) -> str:
    """For each fixed prompt what the model painted, checkpoint by checkpoint."""
    strips = [strip for prompt, several in run.sample_images.items() if (strip := _strip(prompt, several, url))]
    if not strips:
        return '<p class="ttt-small">No sample images yet.</p>'
    return "".join(strips)


def _strip(prompt: str, several: Sequence[SampleImage], url: SampleImageUrl) -> str:
    shown = "".join(_sample_image(prompt, one, address) for one in several if (address := url(one)))
    title = escape(clean_text(prompt, 200), quote=True)
    if not shown:
        return ""
    return (
        f'<section class="ttt-strip" aria-label="{title}"><h3>“{title}”</h3>'
        f'<div class="ttt-scroll" tabindex="0" role="region" aria-label="Sample images of “{title}”">'
        f"<ol>{shown}</ol></div>"
        "</section>"
    )


def _sample_image(prompt: str, one: SampleImage, address: str) -> str:
    alt = escape(f"{clean_text(prompt, 200)}, painted after {one.step:,} steps", quote=True)
    return (
        f'<li><img src="{escape(address, quote=True)}" alt="{alt}" width="128" height="128" loading="lazy">'
        f"<span>step {one.step:,}</span></li>"
    )


def events(happened: Sequence[Event], places: Sequence[LeaderboardEntry]) -> str:
    """The last things that happened."""
    if not happened:
        return '<p class="ttt-small">Nothing yet.</p>'
    names = {place.peer: place.name for place in places}
    rows = [
        [
            moment(event.time),
            EVENTS.get(event.kind, event.kind),
            names.get(event.peer_id[-12:], event.peer_id[-12:]) or "–",
            clean_text(event.text, 300) or "–",
        ]
        for event in happened
    ]
    return plots.table("What happened", ("Time (UTC)", "What", "Who", "Details"), rows)
