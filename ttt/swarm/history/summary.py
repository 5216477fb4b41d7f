"""Summaries of a run's history for the dashboard and its API. Independent of pages and of SQL.

Every function takes a `HistoryReader` and returns a few kilobytes of dataclasses, lists and dicts, for runs of any
length.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from ttt.swarm.history.reader import HistoryReader
from ttt.swarm.history.types import CheckpointEntry, Event, SampleImage, Snapshot
from ttt.swarm.process.sanitize import MAX_NAME, clean_text, safe_name

Axis = Literal["time", "samples"]
Series = Literal["loss", "peers", "samples_per_second", "learning_rate", "step"]
ACTIVE_SECONDS = 120.0
"""A swarm without news for longer than this is shown as silent."""
DAY = 86_400.0


@dataclass(frozen=True)
class Curve:
    """One line of a plot; `low` and `high` are the quartiles over peers, if known."""

    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Progress:
    """Progress towards the next optimizer step."""

    step: int
    samples_accumulated: int
    target_batch_size: int
    fraction: float
    """0 to 1."""
    eta_seconds: float | None
    """None while no samples are computed or the swarm is silent."""
    active: bool
    """True if the monitor wrote within the last two minutes."""
    peers: int
    auxiliary_peers: int
    samples_per_second: float | None
    loss: float | None
    learning_rate: float | None
    updated: float
    """Unix time."""


@dataclass(frozen=True)
class LeaderboardEntry:
    """One row of the leaderboard."""

    rank: int
    peer: str
    """The last 12 characters of its libp2p id."""
    name: str
    """Written by the peer, cleaned but not escaped."""
    html_name: str
    """The name, escaped for HTML and Markdown."""
    device: str
    seconds: float
    """Computing time, credited."""
    samples: int
    """Credited samples."""
    samples_today: int
    """Samples credited in the last 24 hours."""
    share: float
    """Share of all credited samples, 0 to 1."""
    first_seen: float
    last_seen: float
    active: bool
    auxiliary: bool
    unverified: bool
    """The peer claims over 1.5 times the samples that others confirm."""


def curve(history: HistoryReader, series: Series, *, over: Axis = "time", points: int = 300) -> Curve:
    """Return a series over Unix time or samples, reduced to at most `points` points that preserve its extremes."""
    columns = history.points()
    known = ~np.isnan(columns[series])
    x, y = columns[over][known], columns[series][known]
    kept = downsample_min_max(x, y, points)
    spread = [_rounded(columns[name][known][kept]) for name in ("loss_low", "loss_high")] if series == "loss" else None
    low, high = spread or (None, None)
    return Curve(_rounded(x[kept], 10), _rounded(y[kept]), low, high)


def downsample_min_max(x: np.ndarray, y: np.ndarray, points: int) -> np.ndarray:
    """Return the indices of at most `points` points: minimum and maximum per interval of x, first and last point."""
    if len(x) <= points:
        return np.arange(len(x))
    intervals = max(1, (points - 2) // 2)
    first, last = float(x.min()), float(x.max())
    width = (last - first) / intervals or 1.0
    interval = np.minimum(((x - first) / width).astype(int), intervals - 1)
    by_value = np.lexsort((y, interval))  # sorted by y within each interval
    bounds = np.flatnonzero(np.diff(interval[by_value]))
    lowest, highest = np.append(0, bounds + 1), np.append(bounds, len(x) - 1)
    return np.unique(np.concatenate([by_value[lowest], by_value[highest], [0, len(x) - 1]]))


def progress(history: HistoryReader, *, at: float | None = None) -> Progress | None:
    """Return the current progress; None before the first reading. at: Unix time, now by default."""
    now = history.snapshot()
    if now is None:
        return None
    at = time.time() if at is None else at
    active, left = at - now.time < ACTIVE_SECONDS, now.target_batch_size - now.samples_accumulated
    eta = _eta(now, left, at) if active else None
    return Progress(
        step=now.step,
        samples_accumulated=now.samples_accumulated,
        target_batch_size=now.target_batch_size,
        fraction=min(1.0, now.samples_accumulated / now.target_batch_size) if now.target_batch_size else 0.0,
        eta_seconds=eta,
        active=active,
        peers=now.peers if active else 0,
        auxiliary_peers=now.auxiliary_peers if active else 0,
        samples_per_second=_short(now.samples_per_second) if active else None,
        loss=_short(now.loss),
        learning_rate=_short(now.learning_rate),
        updated=now.time,
    )


def leaderboard(history: HistoryReader, *, limit: int = 100, at: float | None = None) -> list[LeaderboardEntry]:
    """Return the contributors with the most credited computing time."""
    at = time.time() if at is None else at
    now = history.snapshot()  # read first: a peer that reports while the rest is read still counts as active
    peers, today = history.peers(), history.contributed_since(at - DAY)
    latest = now.time if now is not None and at - now.time < ACTIVE_SECONDS else math.inf
    total = sum(peer.samples for peer in peers) or 1.0
    unsettled = 2 * history.about().target_batch_size  # claims of the last steps, not credited yet
    shown = [peer for peer in peers if peer.samples > 0 or peer.auxiliary][:limit]
    return [
        LeaderboardEntry(
            rank=rank,
            peer=peer.peer_id[-12:],
            name=clean_text(peer.name, MAX_NAME) or f"peer {peer.peer_id[-8:]}",
            html_name=safe_name(peer.name, peer.peer_id),
            device=clean_text(peer.device, 60),
            seconds=round(peer.seconds, 1),
            samples=round(peer.samples),
            samples_today=round(today.get(peer.peer_id, (0.0, 0.0))[0]),
            share=round(peer.samples / total, 4),
            first_seen=peer.first_seen,
            last_seen=peer.last_seen,
            active=peer.last_seen >= latest,
            auxiliary=peer.auxiliary,
            unverified=peer.claimed_samples > 1.5 * peer.samples + unsettled,
        )
        for rank, peer in enumerate(shown, start=1)
    ]


def checkpoints(history: HistoryReader, *, limit: int = 50) -> list[CheckpointEntry]:
    """Return the newest ones, newest first."""
    return history.checkpoints(limit)


def events(history: HistoryReader, *, limit: int = 50) -> list[Event]:
    """Return the newest ones, newest first."""
    return history.events(limit)


def sample_images(history: HistoryReader, *, per_prompt: int = 12) -> dict[str, list[SampleImage]]:
    """Prompt -> its sample images from oldest to newest, thinned evenly; the first and the newest always stay."""
    found: dict[str, list[SampleImage]] = {}
    for image in history.sample_images():
        found.setdefault(image.prompt, []).append(image)
    return {prompt: _evenly(several, per_prompt) for prompt, several in found.items()}


def swarm_status(history: HistoryReader, *, at: float | None = None) -> dict[str, Any]:
    """Return the status for the endpoint of this name: numbers, text and ISO dates."""
    about, state, newest = history.about(), progress(history, at=at), history.checkpoints(1)
    status: dict[str, Any] = {
        "run": about.run,
        "title": about.title,
        "started": _iso(about.started),
        "contributors": history.contributors(),
        "last_checkpoint": (
            {"step": newest[0].step, "date": _iso(newest[0].time), "url": newest[0].url} if newest else None
        ),
    }
    if state is None:
        return {**status, "active": False}
    samples = state.step * state.target_batch_size + state.samples_accumulated
    return {**status, "samples": samples, **asdict(state), "updated": _iso(state.updated)}


def _eta(now: Snapshot, left: int, at: float) -> float | None:
    if not now.samples_per_second or now.samples_per_second <= 0:
        return None
    return round(max(0.0, left / now.samples_per_second - (at - now.time)), 1)


def _evenly(items: list[SampleImage], count: int) -> list[SampleImage]:
    if len(items) <= count:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _rounded(values: np.ndarray, digits: int = 5) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _iso(unix_time: float | None) -> str | None:
    return None if unix_time is None else datetime.fromtimestamp(unix_time, UTC).isoformat(timespec="seconds")
