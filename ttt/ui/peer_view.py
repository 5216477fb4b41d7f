"""The peer just now, in words and HTML: pure functions. Everything that came from outside is escaped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from ttt.swarm.launcher import View
from ttt.swarm.status import STALE_SECONDS, PeerStatus
from ttt.ui.contribute_errors import explained, mask, redact
from ttt.ui.place import Place

STATES = {
    "starting": "Starting",
    "connecting": "Connecting to the swarm",
    "waiting for a donor": "Waiting for someone who gives the model's state",
    "downloading": "Downloading the state from other peers",
    "computing": "Computing gradients",
    "averaging": "Averaging with other peers",
    "helping": "Helping others to average",
    "watching": "Watching the run",
    "restoring": "Restoring the state of the swarm",
    "stopping": "Leaving the swarm",
    "stopped": "Off",
    "failed": "Off",
}


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
        return "Off", view.reason
    if view.phase == "stopping":
        return "Leaving the swarm", f"It finishes its round first, which may take two minutes ({view.reason})."
    if status is None or status.pid != view.peer:
        return "Starting", "The program loads; that takes 10 to 20 seconds."
    if now - status.time > STALE_SECONDS:
        return "No word from the peer", f"Its last report is {span(now - status.time)} old. It may hang; try Stop."
    return STATES[status.state], status.message


def status_html(view: View, now: float, *, gpu: str = "", share: float | None = None, owner: bool = False) -> str:
    """What everybody may see; addresses are for the owner."""
    left, right = headline(view, now)
    tiles = "".join(
        f'<div><dt>{label}</dt><dd data-field="{name}">{escape(value)}</dd></div>'
        for name, label, value in figures(view, gpu=gpu, share=share)
    )
    restarts = f" Restarted {view.restarts} {'time' if view.restarts == 1 else 'times'}." if view.restarts else ""
    because = f" Last failure: {view.reason}" if view.restarts and view.phase == "running" and view.reason else ""
    say = redact(right + restarts + because)
    return (
        f'<div class="ttt-peer" data-phase="{view.phase}"><p class="ttt-peer-state" data-state="{_light(view, left)}">'
        f'<span class="ttt-dot"></span><strong>{escape(left)}</strong></p>'
        f'<p class="ttt-peer-say">{escape(say if owner else mask(say))}</p>{_bar(view.status, view)}'
        f"<dl>{tiles}</dl></div>"
    )


def _light(view: View, words: str) -> str:
    """Colour of the dot: grey for off, green while it computes, red for trouble, amber else."""
    if view.phase in ("off", "finished"):
        return "off"
    if view.phase == "waiting" or words == "No word from the peer":
        return "failed"
    working = view.status is not None and view.status.state in ("computing", "averaging", "helping")
    return "ready" if view.phase == "running" and working else "loading"


def figures(view: View, *, gpu: str = "", share: float | None = None) -> list[tuple[str, str, str]]:
    """(name, label, value) of the numbers; those that are not known yet are a dash."""
    live = view.status if view.status is not None and view.peer and view.status.pid == view.peer else None
    averaged = "–"
    if live is not None and live.group_size:
        partly = live.received is not None and live.received < 1
        averaged = f"{live.group_size} peers" + (f", {live.received:.0%}" if partly else "")
    return [
        ("samples", "Samples contributed", f"{view.work.samples:,}"),
        ("epochs", "Steps taken part in", f"{view.work.epochs:,}"),
        ("time", "Time given", span(view.work.seconds)),
        ("pace", "Samples a second", f"{live.samples_per_second:.2f}" if live and live.samples_per_second else "–"),
        ("loss", "Loss", f"{live.loss:.3f}" if live and live.loss is not None else "–"),
        ("share", "Share of the last step", f"{share:.0%}" if share is not None and live else "–"),
        (
            "step",
            "Step of the run",
            f"{live.epoch:,}" if live and live.state not in ("starting", "connecting") else "–",
        ),
        ("peers", "Peers training", f"{live.peers:,}" if live and live.peers else "–"),
        ("averaged", "Averaged last with", averaged),
        ("sent", "Sent", size(view.work.sent_bytes)),
        ("received", "Received", size(view.work.received_bytes)),
        ("gpu", "GPU memory", gpu or "–"),
    ]


def _bar(status: PeerStatus | None, view: View) -> str:
    """Towards the next step, where the peer says how far the swarm is."""
    if status is None or view.phase != "running" or not status.global_batch or not status.swarm_samples:
        return ""
    percent = min(100, round(100 * status.swarm_samples / status.global_batch))
    return (
        f'<div class="ttt-bar" role="progressbar" aria-label="The swarm towards its next step" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><span style="width:{percent}%"></span></div>'
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
    parts = [f"micro-batches of {order.micro_batch}"]
    if order.limit:
        parts.append(f"at most {order.limit:g} samples a second")
    if order.gpu_fraction < 1:
        parts.append(f"at most {order.gpu_fraction:.0%} of the GPU's memory")
    parts.append(f"stops at {moment(order.stop_at)}" if order.stop_at else "no end set")
    parts.append("connects to others only" if order.client else "others can connect to it")
    return ", ".join(parts)


def limits_html(line: str) -> str:
    return f'<p class="ttt-model">{escape(line)}</p>' if line else ""


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
        "steps": view.work.epochs,
        "seconds": round(view.work.seconds, 1),
        "sent_bytes": view.work.sent_bytes,
        "received_bytes": view.work.received_bytes,
    }


def size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}" if unit != "B" and amount < 10 else f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def pace_words(pace: float) -> str:
    if pace >= 10:
        return f"{pace:,.0f} samples a second"
    return f"{pace:.1f} samples a second" if pace >= 0.1 else f"one sample in {1 / pace:.0f} s"


def span(seconds: float) -> str:
    """A time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    parts: Sequence[tuple[int, str]] = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    words: list[str] = []
    for length, unit in parts:
        if whole >= length and len(words) < 2:
            words.append(f"{whole // length} {unit}")
            whole %= length
        elif words:
            break
    return " ".join(words)
