"""The peer just now, in words and HTML: pure functions. Everything that came from outside is escaped."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from html import escape

from ttt.swarm.process.formatting import STATE_DETAILS, STATE_LABELS, WORKING_STATES, status_rows, step_progress
from ttt.swarm.process.launcher import PeerView
from ttt.swarm.process.log_hints import recent_issues
from ttt.swarm.process.status import STALE_SECONDS
from ttt.text import format_bytes, format_duration
from ttt.ui.contribute.host import Place
from ttt.ui.contribute.redact import mask, redact


def headline(view: PeerView, now: float) -> tuple[str, str]:
    """The state in words, and a sentence more."""
    status = view.status
    if view.phase == "paused":
        until = view.desired_state.pause_until if view.desired_state else None
        return "Paused", f"It goes on at {moment(until)}." if until else "It goes on when you press Go on."
    if view.phase == "waiting":
        wait = max(0.0, (view.next_attempt or now) - now)
        return f"Trying again in {format_duration(wait)}", view.reason
    if view.phase == "finished":
        return "Finished", view.reason
    if view.phase == "off":
        return "Off", view.reason or "No peer works here just now."
    if view.phase == "stopping":
        return "Leaving the swarm", f"It finishes its round first, which may take two minutes ({view.reason})."
    if status is None or status.pid != view.peer_pid:
        return "Starting", "The program loads; that takes 10 to 20 seconds."
    if now - status.time > STALE_SECONDS:
        return (
            "No word from the peer",
            f"Its last report is {format_duration(now - status.time)} old. It may hang; try Stop.",
        )
    return STATE_LABELS[status.state], status.message or STATE_DETAILS.get(status.state, "")


def status_html(view: PeerView, now: float, *, gpu: str = "", share: float | None = None, owner: bool = False) -> str:
    """What everybody may see; addresses are for the owner."""
    left, right = headline(view, now)
    tiles = "".join(
        f'<div><dt>{label}</dt><dd data-field="{name}">{escape(value)}</dd></div>'
        for name, label, value in _figures(view, gpu, share)
    )
    restarts = f" Restarted {view.restarts} {'time' if view.restarts == 1 else 'times'}." if view.restarts else ""
    because = f" Last failure: {view.reason}" if view.restarts and view.phase == "running" and view.reason else ""
    say = redact(right + restarts + because)
    return (
        f'<div class="ttt-peer" data-phase="{view.phase}"><p class="ttt-peer-state" data-state="{_light(view, left)}">'
        f'<span class="ttt-dot"></span><strong>{escape(left)}</strong></p>'
        f'<p class="ttt-peer-say">{escape(say if owner else mask(say))}</p>{_bar(view)}'
        f"<dl>{tiles}</dl></div>"
    )


def _light(view: PeerView, words: str) -> str:
    """Colour of the dot: grey for off, green while it computes, red for trouble, amber else."""
    if view.phase in ("off", "finished"):
        return "off"
    if view.phase == "waiting" or words == "No word from the peer":
        return "failed"
    working = view.status is not None and view.status.state in WORKING_STATES
    return "ready" if view.phase == "running" and working else "loading"


def _figures(view: PeerView, gpu: str, share: float | None) -> list[tuple[str, str, str]]:
    live = view.status if view.status is not None and view.peer_pid and view.status.pid == view.peer_pid else None
    return status_rows(view.contribution, live, gpu=gpu, share=share)


def _bar(view: PeerView) -> str:
    """Towards the next step, where the peer says how far the swarm is."""
    towards = step_progress(view.status) if view.phase == "running" else None
    if towards is None:
        return ""
    percent, words = round(100 * towards[0]), escape(towards[1])
    return (
        f'<p class="ttt-towards">{words}</p><div class="ttt-bar" role="progressbar" aria-label="The swarm towards its '
        f'next step" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" aria-valuetext="{words}">'
        f'<span style="width:{percent}%"></span></div>'
    )


def trouble_html(view: PeerView) -> str:
    """Complaints of the log and of the peer, each with what to try; for the owner."""
    status = view.status
    problems = status.problems if status is not None else []
    newest = [view.reason] if view.phase == "waiting" or view.restarts else []
    found = recent_issues([*view.log, *problems, *newest])
    if not found:
        return ""
    items = "".join(
        f"<li><strong>{escape(one.cause)}</strong> {escape(one.remedy)}<br>"
        f"<code>{escape(redact(line)[:300])}</code></li>"
        for line, one in found
    )
    return f'<div class="ttt-note ttt-trouble"><p>What the log means, and what to try:</p><ul>{items}</ul></div>'


def log_text(view: PeerView) -> str:
    return redact("\n".join(view.log[-25:])) or "Nothing yet."


def moment(then: float | None) -> str:
    return "" if then is None else datetime.fromtimestamp(then, UTC).strftime("%Y-%m-%d %H:%M UTC")


def limits_line(view: PeerView) -> str:
    """What was asked for, in one line, while a peer is there."""
    order = view.desired_state
    if order is None or not view.active:
        return ""
    micro_batch = order.micro_batch or (view.status.micro_batch if view.status is not None else 0)
    parts = [f"micro-batches of {micro_batch}" if micro_batch else "micro-batches as large as fit"]
    if order.limit:
        parts.append(f"at most {order.limit:g} samples a second")
    if order.gpu_fraction < 1:
        parts.append(f"at most {order.gpu_fraction:.0%} of the GPU's memory")
    parts.append(f"stops at {moment(order.stop_at)}" if order.stop_at else "no end set")
    parts.append("connects to others only" if order.client else "others can connect to it")
    return ", ".join(parts)


def limits_html(line: str) -> str:
    return f'<p class="ttt-model">{escape(line[0].upper() + line[1:])}.</p>' if line else ""


def gpu_line(place: Place) -> str:
    return f"{format_bytes(place.gpu.used)} of {format_bytes(place.gpu.total)}" if place.gpu else ""


def summary(view: PeerView) -> dict[str, object]:
    """For scripts: the state and the counts, nothing private."""
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


def pace_words(pace: float) -> str:
    if pace >= 10:
        return f"{pace:,.0f} samples a second"
    return f"{pace:.1f} samples a second" if pace >= 0.1 else f"one sample in {1 / pace:.0f} s"
