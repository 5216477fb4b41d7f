"""The Contribute tab before a peer runs: costs, this machine, duplication, ownership. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Literal
from urllib.parse import quote

from ttt.swarm.process.lifecycle import shm_size_option
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.text import format_bytes, format_duration
from ttt.ui.contribute.auth import AuthDecision
from ttt.ui.contribute.host import SPACE_PORTS, Connectivity, HostInfo
from ttt.ui.contribute.redact import redact
from ttt.ui.contribute.status_view import format_pace

HUB = "https://huggingface.co"
Level = Literal["good", "note", "bad"]
SIGNS = {"good": "✓", "note": "!", "bad": "✕"}
SIGN_LABELS = {"good": "fine", "note": "note", "bad": "problem"}
REASON_FOR_OWNER = "The owner can see the reason."
"""Takes the place of an error that only the owner may read."""


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str


def about(space: str) -> str:
    """What happens, what it costs and what is shared, in five points."""
    cost = (
        "<b>A Space with a GPU is billed by the hour while it runs</b>, whether the peer works or not: "
        f'<a href="{HUB}/pricing#spaces" target="_blank" rel="noopener">prices</a>. Stop ends the peer; pause the '
        "Space in its settings to stop the billing."
        if space
        else "It costs electricity and bandwidth: each step sends and receives about as many bytes as the model has "
        "parameters."
    )
    points = (
        "A program on this machine joins the run and downloads the current model.",
        "It trains on its share of the run's data, at its own speed, and averages its gradients with everyone else's.",
        cost,
        "You share gradients, weights, a display name and how much you contributed. <b>Never code or files.</b> Other "
        "peers see your IP address.",
        "It keeps running when you close this page. Pause and Stop take effect after the current round, and your "
        "contribution is kept.",
    )
    items = "".join(f"<li>{point}</li>" for point in points)
    return f'<div class="ttt-about"><h2>Help train this model</h2><ol>{items}</ol></div>'


def findings(
    host: HostInfo, estimate: ResourceEstimate | str, connectivity: Connectivity | None, pace: float = 0.0
) -> list[Finding]:
    """The facts about this machine that matter for a run, most important first. pace: samples per second on its CPU."""
    result = [_about_host(host), _about_gpu(host)]
    if isinstance(estimate, ResourceEstimate) and estimate.known:
        result += _about_model(host, estimate, pace)
    elif isinstance(estimate, ResourceEstimate):
        result.append(
            Finding(
                "note",
                f"“{estimate.title}”: its model is not on this machine yet. The peer can check whether it fits "
                "once the model is downloaded.",
            )
        )
    elif estimate:
        separator = "." if estimate == REASON_FOR_OWNER else ":"
        result.append(Finding("bad", f"Cannot use the run{separator} {estimate}"))
    if connectivity is not None:
        result.append(Finding("bad" if connectivity.unreachable else "good", _about_connectivity(host, connectivity)))
    return result


def _about_host(host: HostInfo) -> Finding:
    if not host.linux:
        return Finding("bad", "Not Linux, which a peer needs: use WSL 2, a container, or a Space.")
    if host.zero_gpu:
        return Finding(
            "bad",
            f"The Space {host.space} runs on ZeroGPU, which provides a GPU for a minute at a time; a peer needs hours. "
            "Duplicate it onto paid hardware.",
        )
    if host.space:
        return Finding("good", f"The Space {host.space}.")
    return Finding("good", f"{host.cores} CPU cores, {format_bytes(host.ram)} of RAM free.")


def _about_gpu(host: HostInfo) -> Finding:
    if host.zero_gpu:
        return Finding("note", "No dedicated GPU.")
    if host.gpu is None:
        return Finding("note", "No GPU found. Training works on the CPU too, but slowly.")
    first = f" The first of {host.gpus} is used." if host.gpus > 1 else ""
    return Finding(
        "good", f"{host.gpu.name}: {format_bytes(host.gpu.free)} of {format_bytes(host.gpu.total)} free.{first}"
    )


def _about_model(host: HostInfo, estimate: ResourceEstimate, pace: float) -> list[Finding]:
    millions = estimate.parameters / 1e6
    count = f"{millions:,.1f} M" if millions >= 0.1 else f"{estimate.parameters:,}"
    model = f"“{estimate.title}” ({count} parameters)"
    memory = f"{format_bytes(estimate.memory)} of {'GPU memory' if host.gpu else 'RAM'}"
    if estimate.micro_batch:
        result = [Finding("good", f"{model} fits: about {memory} for micro-batches of {estimate.micro_batch}.")]
    else:
        result = [Finding("bad", f"{model} does not fit: one sample at a time already needs {memory}.")]
    if host.gpu is None and pace > 0:
        alone = format_duration(max(1.0, estimate.global_batch / pace))
        text = f"Expect about {format_pace(pace)} on this CPU. On its own, it would take {alone} per step"
        result.append(Finding("note", f"{text} ({estimate.global_batch:,} samples)."))
    if host.shared_memory is not None and host.shared_memory < estimate.shared_memory:
        result.append(
            Finding(
                "bad",
                f"/dev/shm has {format_bytes(host.shared_memory)} free, and the peer needs "
                f"{format_bytes(estimate.shared_memory)}. In Docker: {shm_size_option(estimate.shared_memory)}",
            )
        )
    return result


def _about_connectivity(host: HostInfo, connectivity: Connectivity) -> str:
    ports = ", ".join(map(str, SPACE_PORTS))
    if connectivity.unreachable:
        return (
            f"A Space can only connect to ports {ports}, and this run listens on none of them "
            f"({', '.join(connectivity.blocked_addresses)}). Ask its organiser for another address."
        )
    return f"{connectivity.summary} It can only use ports {ports}." if host.space else connectivity.summary


def host_html(found: Iterable[Finding], *, owner: bool) -> str:
    """Visitors of somebody's server must not mistake it for their own machine."""
    items = "".join(
        f'<li data-level="{finding.level}"><span class="ttt-sign" role="img" aria-label="{SIGN_LABELS[finding.level]}">'
        f"{SIGNS[finding.level]}</span><span>{escape(redact(finding.text))}</span></li>"
        for finding in found
    )
    return f'<div class="ttt-host"><h3>{"This machine" if owner else "This server"}</h3><ul>{items}</ul></div>'


def owner_html(decision: AuthDecision) -> str:
    kind = "yes" if decision else "no"
    return f'<p class="ttt-owner" data-owner="{kind}">{escape(decision.reason)}</p>'


def duplicate_html(space: str) -> str:
    """Duplication on the Hub's page, and what to choose there."""
    link = f"{HUB}/spaces/{quote(space)}?duplicate=true"
    return (
        f'<div class="ttt-duplicate"><a class="ttt-link-button" href="{link}" target="_blank" rel="noopener">Duplicate '
        "this Space</a><ul><li><b>Hardware:</b> any paid GPU (ZeroGPU will not work). It is billed by the hour.</li>"
        "<li><b>Sleep time:</b> choose one you can afford if you forget to stop the Space. Without visitors the "
        "Space goes to sleep, and its peer stops.</li><li><b>Secrets:</b> none needed "
        "(HF_TOKEN only for gated models). Variables are copied and public; secrets are not copied.</li></ul></div>"
    )


def duplicate_script(space: str) -> str:
    """Duplication with a script."""
    return (
        "from huggingface_hub import duplicate_repo, request_space_hardware\n\n"
        "# The token of `hf auth login` (or HF_TOKEN) pays; nothing is billed on free hardware.\n"
        f'mine = duplicate_repo("{space}", repo_type="space", space_sleep_time=3600)\n'
        'request_space_hardware(mine.repo_id, hardware="t4-small", sleep_time=3600)  # billed by the hour from here\n'
        'print(f"{mine}  open it, sign in, press Start")\n'
    )
