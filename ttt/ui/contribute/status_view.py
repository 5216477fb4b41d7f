"""The peer just now, in words and HTML: pure functions. Everything that came from outside is escaped."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from html import escape

from ttt.swarm.process.formatting import MEANINGS, STATES, WORKING, figures, size, span, towards_next_step
from ttt.swarm.process.launcher import View
from ttt.swarm.process.log_hints import explained
from ttt.swarm.process.status import STALE_SECONDS
from ttt.ui.contribute.host import Place
from ttt.ui.contribute.redact import mask, redact


def headline(view: View, now: float) -> tuple[str, str]:
    """The state in words, and a sentence more."""
    status = view.status
    if view.phase == "paused":
        until = view.order.pause_until if view.order else None
        return "Paused", f"It goes on at {moment(until)}." if until else "It goes on when you press Go on."
    if view.phase == "waiting":
        wait = max(0.0, (view.next_try or now) - now)
        return f"Trying again in {span(wait)}", view.reason
    if view.phase == "finished":
        return "Finished", view.reason
    if view.phase == "off":
        return "Off", view.reason or "No peer works here just now."
    if view.phase == "stopping":
        return "Leaving the swarm", f"It finishes its round first, which may take two minutes ({view.reason})."
    if status is None or status.pid != view.peer:
        return "Starting", "The program loads; that takes 10 to 20 seconds."
    if now - status.time > STALE_SECONDS:
        return "No word from the peer", f"Its last report is {span(now - status.time)} old. It may hang; try Stop."
    return STATES[status.state], status.message or MEANINGS.get(status.state, "")


def status_html(view: View, now: float, *, gpu: str = "", share: float | None = None, owner: bool = False) -> str:
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


def _light(view: View, words: str) -> str:
    """Colour of the dot: grey for off, green while it computes, red for trouble, amber else."""
    if view.phase in ("off", "finished"):
        return "off"
    if view.phase == "waiting" or words == "No word from the peer":
        return "failed"
    working = view.status is not None and view.status.state in WORKING
    return "ready" if view.phase == "running" and working else "loading"


def _figures(view: View, gpu: str, share: float | None) -> list[tuple[str, str, str]]:
    live = view.status if view.status is not None and view.peer and view.status.pid == view.peer else None
    return figures(view.work, live, gpu=gpu, share=share)


def _bar(view: View) -> str:
    """Towards the next step, where the peer says how far the swarm is."""
    towards = towards_next_step(view.status) if view.phase == "running" else None
    if towards is None:
        return ""
    percent, words = round(100 * towards[0]), escape(towards[1])
    return (
        f'<p class="ttt-towards">{words}</p><div class="ttt-bar" role="progressbar" aria-label="The swarm towards its '
        f'next step" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" aria-valuetext="{words}">'
        f'<span style="width:{percent}%"></span></div>'
    )


def trouble_html(view: View) -> str:
    """Complaints of the log and of the peer, each with what to try; for the owner."""
    status = view.status
    problems = status.problems if status is not None else []
    newest = [view.reason] if view.phase == "waiting" or view.restarts else []
    found = explained([*view.log, *problems, *newest])
    if not found:
        return ""
    items = "".join(
        f"<li><strong>{escape(one.meaning)}</strong> {escape(one.try_this)}<br>"
        f"<code>{escape(redact(line)[:300])}</code></li>"
        for line, one in found
    )
    return f'<div class="ttt-note ttt-trouble"><p>What the log means, and what to try:</p><ul>{items}</ul></div>'


def log_text(view: View) -> str:
    return redact("\n".join(view.log[-25:])) or "Nothing yet."


def moment(then: float | None) -> str:
    return "" if then is None else datetime.fromtimestamp(then, UTC).strftime("%Y-%m-%d %H:%M UTC")


def limits_line(view: View) -> str:
    """What was asked for, in one line, while a peer is there."""
    order = view.order
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
    return f"{size(place.gpu.used)} of {size(place.gpu.total)}" if place.gpu else ""


def summary(view: View) -> dict[str, object]:
    """For scripts: the state and the counts, nothing private."""
    left, right = headline(view, time.time())
    return {
        "phase": view.phase,
        "state": left,
        "message": redact(right),
        "samples": view.work.samples,
        "steps": view.work.steps,
        "seconds": round(view.work.seconds, 1),
        "sent_bytes": view.work.sent_bytes,
        "received_bytes": view.work.received_bytes,
    }


def pace_words(pace: float) -> str:
    if pace >= 10:
        return f"{pace:,.0f} samples a second"
    return f"{pace:.1f} samples a second" if pace >= 0.1 else f"one sample in {1 / pace:.0f} s"
