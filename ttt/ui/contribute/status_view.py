"""The state of the peer as text and HTML: pure functions that escape whatever comes from outside."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from html import escape

from ttt.swarm.process.formatting import STATE_DETAILS, STATE_LABELS, WORKING_STATES, status_rows, step_progress
from ttt.swarm.process.launcher import PeerView
from ttt.swarm.process.log_hints import find_issue, recent_issues
from ttt.swarm.process.status import STALE_SECONDS
from ttt.text import format_bytes, format_duration, plural
from ttt.ui.contribute.host import HostInfo
from ttt.ui.contribute.redact import mask, redact
from ttt.ui.html import progress_bar, sentence

UNRESPONSIVE = "The peer does not respond"
MAX_PROBLEMS = 3
"""Of the peer's own problems that are shown at once."""


def headline(view: PeerView, now: float) -> tuple[str, str]:
    """The state, and a sentence about it."""
    status = view.status
    if view.phase == "paused":
        until = view.desired_state.pause_until if view.desired_state else None
        return "Paused", f"Resumes at {moment(until)}." if until else "Press Resume to continue."
    if view.phase == "waiting":
        wait = max(0.0, (view.next_attempt or now) - now)
        return f"Trying again in {format_duration(wait)}", view.reason
    if view.phase == "finished":
        return "Finished", view.reason
    if view.phase == "off":
        return "Off", view.reason or "Not running. Press Start to join."
    if view.phase == "stopping":
        pausing = view.desired_state is not None and view.desired_state.desired == "pause"
        return "Pausing" if pausing else "Stopping", "Finishing the current round, which can take up to two minutes."
    if status is None or status.pid != view.peer_pid:
        return "Starting", "Loading; usually under a minute."
    if now - status.time > STALE_SECONDS:
        age = format_duration(now - status.time)
        return UNRESPONSIVE, f"Last heard from {age} ago. If this continues, press Stop."
    return STATE_LABELS[status.state], status.message or STATE_DETAILS.get(status.state, "")


def status_html(view: PeerView, now: float, *, gpu: str = "", share: float | None = None, owner: bool = False) -> str:
    """The state as visitors may see it. Only the owner sees addresses."""
    left, right = headline(view, now)
    tiles = "".join(
        f'<div><dt>{label}</dt><dd data-field="{name}">{escape(value)}</dd></div>'
        for name, label, value in _figures(view, gpu, share)
    )
    restarts = f" Restarted {plural(view.restarts, 'time')}." if view.restarts else ""
    failure = f" Last failure: {view.reason}" if view.restarts and view.phase == "running" and view.reason else ""
    text = redact(_full_stop(sentence(right)) + restarts + failure)
    return (
        f'<div class="ttt-peer" data-phase="{view.phase}"><p class="ttt-peer-state" data-state="{_light(view, left)}">'
        f'<span class="ttt-dot"></span><strong>{escape(left)}</strong></p>'
        f'<p class="ttt-peer-say">{escape(text if owner else mask(text))}</p>{_bar(view)}'
        f"<dl>{tiles}</dl></div>"
    )


def _full_stop(text: str) -> str:
    return f"{text}." if text and text[-1] not in ".!?…)" else text


def _light(view: PeerView, label: str) -> str:
    """Colour of the dot: grey for off, green while it works, red for trouble, amber otherwise."""
    if view.phase in ("off", "finished"):
        return "off"
    if view.phase == "waiting" or label == UNRESPONSIVE:
        return "failed"
    working = view.status is not None and view.status.state in WORKING_STATES
    return "ready" if view.phase == "running" and working else "loading"


def _figures(view: PeerView, gpu: str, share: float | None) -> list[tuple[str, str, str]]:
    live = view.status if view.status is not None and view.peer_pid and view.status.pid == view.peer_pid else None
    return status_rows(view.contribution, live, gpu=gpu, share=share)


def _bar(view: PeerView) -> str:
    """Progress of the next step, if the peer knows it."""
    progress = step_progress(view.status) if view.phase == "running" else None
    if progress is None:
        return ""
    fraction, text = progress
    bar = progress_bar("The swarm's progress to its next step", round(100 * fraction), text)
    return f'<p class="ttt-towards">{escape(text)}</p>{bar}'


def trouble_html(view: PeerView) -> str:
    """Why the peer was restarted, its last problems, and known issues in its log, with remedies; for the owner."""
    problems = [(problem, "") for problem in reversed(view.status.problems[-MAX_PROBLEMS:])] if view.status else []
    if view.reason and (view.phase == "waiting" or view.restarts):
        problems.insert(0, (view.reason, view.hint))
    items = [
        # Our own problems say themselves what to do; those of other programs are explained below.
        f"<li>{escape(redact(text)[:1000])} {escape(hint)}</li>"
        for text, hint in dict.fromkeys(problems)
        if hint or find_issue(text) is None
    ]
    items += [
        f"<li><strong>{escape(issue.cause)}</strong> {escape(issue.remedy)}<br>"
        f"<code>{escape(redact(line)[:300])}</code></li>"
        for line, issue in recent_issues([*view.log, *(text for text, hint in reversed(problems) if not hint)])
    ]
    if not items:
        return ""
    return f'<div class="ttt-note ttt-trouble"><p>What happened, and what to do</p><ul>{"".join(items)}</ul></div>'


def log_text(view: PeerView) -> str:
    return redact("\n".join(view.log[-25:])) or "No log lines yet."


def moment(then: float | None) -> str:
    return "" if then is None else datetime.fromtimestamp(then, UTC).strftime("%Y-%m-%d %H:%M UTC")


def limits_line(view: PeerView) -> str:
    """The limits that were set, in one line, while a peer is running."""
    desired = view.desired_state
    if desired is None or not view.active:
        return ""
    micro_batch = desired.micro_batch or (view.status.micro_batch if view.status is not None else 0)
    parts = [f"{micro_batch} samples at once" if micro_batch else "as many samples at once as fit in memory"]
    if desired.limit:
        parts.append(f"at most {desired.limit:g} samples/s")
    if desired.gpu_fraction < 1:
        parts.append(f"at most {desired.gpu_fraction:.0%} of GPU memory")
    parts.append(f"stops at {moment(desired.stop_at)}" if desired.stop_at else "no time limit")
    parts.append("makes outgoing connections only" if desired.client else "accepts connections")
    return " · ".join(parts)


def limits_html(line: str) -> str:
    return f'<p class="ttt-model">{escape(sentence(line))}</p>' if line else ""


def gpu_line(host: HostInfo) -> str:
    return f"{format_bytes(host.gpu.used)} of {format_bytes(host.gpu.total)}" if host.gpu else ""


def summary(view: PeerView) -> dict[str, object]:
    """The state and the counts as JSON; nothing private."""
    left, right = headline(view, time.time())
    return {
        "phase": view.phase,
        "state": left,
        "message": redact(right),
        "samples": view.contribution.samples,
        "steps": view.contribution.steps,
        "seconds": round(view.contribution.seconds, 1),
        "sent_bytes": view.contribution.sent_bytes,
        "received_bytes": view.contribution.received_bytes,
    }


def format_pace(pace: float) -> str:
    if pace >= 10:
        return f"{pace:,.0f} samples/s"
    return f"{pace:.1f} samples/s" if pace >= 0.1 else f"one sample every {1 / pace:.0f} s"
