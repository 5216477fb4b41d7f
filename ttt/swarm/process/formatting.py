"""A peer's state and counts as text, the same for the page and the terminal. Pure functions."""

from __future__ import annotations

from ttt.swarm.process.control_files import Contribution
from ttt.swarm.process.status import PeerStatus, State
from ttt.text import format_bytes, format_duration

STATE_LABELS: dict[State, str] = {
    "starting": "Starting",
    "connecting": "Connecting to the swarm",
    "waiting for a donor": "Waiting for a peer to download the model from",
    "downloading": "Downloading the state from other peers",
    "computing": "Computing gradients",
    "averaging": "Averaging with other peers",
    "assisting": "Averaging for other peers",
    "watching": "Waiting for the next step of the run",
    "restoring": "Restoring the state from the swarm",
    "stopping": "Leaving the swarm",
    "stopped": "Stopped",
    "failed": "Failed",
}
STATE_DETAILS: dict[State, str] = {
    "computing": "This peer trains on its own share of the data, at its own pace.",
    "averaging": "Peers exchange gradients; then all of them take the same step.",
    "assisting": "It averages for peers that cannot reach each other, and does not train.",
}
"""Shown in states that last, if the peer has no message of its own."""
WORKING_STATES: tuple[State, ...] = ("computing", "averaging", "assisting")
UNKNOWN = "–"


def status_rows(
    contribution: Contribution, running: PeerStatus | None, *, gpu: str = "", share: float | None = None
) -> list[tuple[str, str, str]]:
    """Return (name, label, value) of each number; an unknown value is a dash.

    running: status of the running process, if any. gpu: memory in use, for a peer that does not report it. share: this
    peer's share of the last step, 0 to 1.
    """
    speed = running.samples_per_second if running else 0.0
    loss = running.loss if running else None
    return [
        ("samples", "Samples contributed", f"{contribution.samples:,}"),
        ("steps", "Steps contributed to", f"{contribution.steps:,}"),
        ("time", "Training time", format_duration(contribution.seconds)),
        ("pace", "Samples/s", f"{speed:.2f}" if speed else UNKNOWN),
        ("loss", "Loss", UNKNOWN if loss is None else f"{loss:.3f}"),
        ("share", "Share of the last step", f"{share:.0%}" if share is not None and running else UNKNOWN),
        ("step", "Step of the run", _step(running)),
        ("peers", "Peers training", f"{running.peers:,}" if running and running.peers else UNKNOWN),
        ("averaged", "Last averaged with", _last_group(running)),
        ("sent", "Sent", format_bytes(contribution.sent_bytes)),
        ("received", "Received", format_bytes(contribution.received_bytes)),
        ("gpu", "GPU memory", _gpu_memory(running) or gpu or UNKNOWN),
    ]


def step_progress(status: PeerStatus | None) -> tuple[float, str] | None:
    """Progress of the swarm towards its next step, as a fraction and as text; None for a peer outside the swarm."""
    if status is None or not status.global_batch or status.state not in WORKING_STATES:
        return None
    # A peer starts to average when it hears that the batch is full; the number that it last heard lags behind.
    samples = status.global_batch if status.state == "averaging" else min(status.swarm_samples, status.global_batch)
    return (
        samples / status.global_batch,
        f"{samples:,} of {status.global_batch:,} samples towards step {status.step + 1:,}",
    )


def _step(running: PeerStatus | None) -> str:
    return f"{running.step:,}" if running and running.state not in ("starting", "connecting") else UNKNOWN


def _last_group(running: PeerStatus | None) -> str:
    if running is None or not running.group_size:
        return UNKNOWN
    partial = running.results_received is not None and running.results_received < 1
    return f"{running.group_size} peers" + (f", {running.results_received:.0%}" if partial else "")


def _gpu_memory(running: PeerStatus | None) -> str:
    if running is None or not running.gpu_total:
        return ""
    return f"{format_bytes(running.gpu_bytes)} of {format_bytes(running.gpu_total)}"
