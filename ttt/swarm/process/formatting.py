"""A peer's state and counts in words, alike for a page and a terminal. Pure functions; knows neither."""

from __future__ import annotations

from ttt.swarm.process.control_files import Contribution
from ttt.swarm.process.status import PeerStatus, State
from ttt.text import format_bytes, format_duration

STATE_LABELS: dict[State, str] = {
    "starting": "Starting",
    "connecting": "Connecting to the swarm",
    "waiting for a donor": "Waiting for someone who gives the model's state",
    "downloading": "Downloading the state from other peers",
    "computing": "Computing gradients",
    "averaging": "Averaging with other peers",
    "assisting": "Helping others to average",
    "watching": "Watching the run",
    "restoring": "Restoring the state of the swarm",
    "stopping": "Leaving the swarm",
    "stopped": "Off",
    "failed": "Off",
}
STATE_DETAILS: dict[State, str] = {
    "computing": "On its own share of the data, at its own pace.",
    "averaging": "Gradients go to and fro; then everybody takes the same step.",
    "assisting": "It averages for peers that cannot reach each other, and trains nothing itself.",
}
"""A sentence for the states that last, where the peer has nothing else to say."""
WORKING_STATES: tuple[State, ...] = ("computing", "averaging", "assisting")
UNKNOWN = "–"


def status_rows(
    work: Contribution, live: PeerStatus | None, *, gpu: str = "", share: float | None = None
) -> list[tuple[str, str, str]]:
    """(name, label, value) of the numbers; what is not known yet is a dash.

    live: of the running process; gpu: its memory, where the peer does not tell it itself.
    """
    return [
        ("samples", "Samples contributed", f"{work.samples:,}"),
        ("steps", "Steps taken part in", f"{work.steps:,}"),
        ("time", "Time given", format_duration(work.seconds)),
        ("pace", "Samples a second", f"{live.samples_per_second:.2f}" if live and live.samples_per_second else UNKNOWN),
        ("loss", "Loss", f"{live.loss:.3f}" if live and live.loss is not None else UNKNOWN),
        ("share", "Share of the last step", f"{share:.0%}" if share is not None and live else UNKNOWN),
        ("step", "Step of the run", _step(live)),
        ("peers", "Peers training", f"{live.peers:,}" if live and live.peers else UNKNOWN),
        ("averaged", "Averaged last with", _averaged(live)),
        ("sent", "Sent", format_bytes(work.sent_bytes)),
        ("received", "Received", format_bytes(work.received_bytes)),
        ("gpu", "GPU memory", _gpu(live) or gpu or UNKNOWN),
    ]


def step_progress(status: PeerStatus | None) -> tuple[float, str] | None:
    """(0 to 1, in words) of the swarm's work for its next step; None for a peer that is not in it."""
    if status is None or not status.global_batch or status.state not in WORKING_STATES:
        return None
    # A peer averages once it heard that there are enough; the number that it heard of lags behind.
    gathered = status.global_batch if status.state == "averaging" else min(status.swarm_samples, status.global_batch)
    return (
        gathered / status.global_batch,
        f"{gathered:,} of {status.global_batch:,} samples towards step {status.step + 1:,}",
    )


def _step(live: PeerStatus | None) -> str:
    return f"{live.step:,}" if live and live.state not in ("starting", "connecting") else UNKNOWN


def _averaged(live: PeerStatus | None) -> str:
    if live is None or not live.group_size:
        return UNKNOWN
    partly = live.results_received is not None and live.results_received < 1
    return f"{live.group_size} peers" + (f", {live.results_received:.0%}" if partly else "")


def _gpu(live: PeerStatus | None) -> str:
    return f"{format_bytes(live.gpu_bytes)} of {format_bytes(live.gpu_total)}" if live and live.gpu_total else ""
