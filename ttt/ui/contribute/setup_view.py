"""What the Contribute tab says before anything runs: costs, this place, duplication, ownership. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Literal
from urllib.parse import quote

from ttt.swarm.process.lifecycle import shm_size_option
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.text import format_bytes, format_duration
from ttt.ui.contribute.auth import Verdict
from ttt.ui.contribute.host import SPACE_PORTS, Place, Reach
from ttt.ui.contribute.redact import redact
from ttt.ui.contribute.status_view import pace_words

HUB = "https://huggingface.co"
Level = Literal["good", "note", "bad"]
SIGNS = {"good": "✓", "note": "!", "bad": "✕"}
SPOKEN = {"good": "fine", "note": "note", "bad": "problem"}


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str


def about(space: str) -> str:
    """Five lines: what happens, what it costs, what is shared."""
    cost = (
        "<b>A Space with a GPU bills its owner by the hour from the moment it runs until you pause it or it falls "
        f'asleep</b>, whether the peer works or not: <a href="{HUB}/pricing#spaces" target="_blank" rel="noopener">'
        "prices</a>. Stop here ends the peer; pausing the Space in its settings ends the bill."
        if space
        else "It costs your electricity and your connection: each step of the run sends and receives about as many "
        "bytes as the model has parameters. (A Space with a GPU would bill you by the hour.)"
    )
    lines = (
        "A program starts on this machine beside the web page, joins the run and downloads the model's present state.",
        "It computes gradients on its own share of the data at its own pace, and averages them with everybody's.",
        cost,
        "Shared are tensors (gradients, parameters), your name on the leaderboard and your counts. <b>Never code, "
        "never your files</b>; others see your network address, as in any peer-to-peer program.",
        "It goes on when you close this page. Pause and Stop let it finish its round first, and what you contributed "
        "stays counted.",
    )
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<div class="ttt-about"><h2>Lend your GPU to the run</h2><ol>{items}</ol></div>'


def findings(place: Place, demand: ResourceEstimate | str, way: Reach | None, pace: float = 0.0) -> list[Finding]:
    """What was found out about this place, most important first."""
    found = [_of_place(place), _of_gpu(place)]
    if isinstance(demand, ResourceEstimate) and demand.known:
        found += _of_model(place, demand, pace)
    elif isinstance(demand, ResourceEstimate):
        found.append(Finding("note", f"The run {demand.title}: its model is not on this machine yet, so whether it "
                             "fits is known once the peer has fetched it."))  # fmt: skip
    elif demand:
        found.append(Finding("bad", f"The run cannot be used: {demand}"))
    if way is not None:
        found.append(Finding("bad" if way.hopeless else "good", _of_way(place, way)))
    return found


def _of_place(place: Place) -> Finding:
    if not place.linux:
        return Finding("bad", "This is not Linux. A peer needs it: use WSL 2, a container, or a Space.")
    if place.zero_gpu:
        return Finding(
            "bad",
            f"The Space {place.space} runs on ZeroGPU, which lends a GPU for a minute at a time: it cannot host a peer "
            "that works for hours. Duplicate it to hardware of your own.",
        )
    if place.space:
        return Finding("good", f"The Space {place.space}.")
    return Finding(
        "good", f"Your own machine: {place.cores} processor cores, {format_bytes(place.ram)} of free memory."
    )


def _of_gpu(place: Place) -> Finding:
    if place.zero_gpu:
        return Finding("note", "No GPU of its own.")
    if place.gpu is None:
        return Finding("note", "No GPU was found. A peer works on the processor as well, only slowly.")
    more = f" The first of {place.gpus} is used." if place.gpus > 1 else ""
    return Finding(
        "good", f"{place.gpu.name}: {format_bytes(place.gpu.free)} of {format_bytes(place.gpu.total)} free.{more}"
    )


def _of_model(place: Place, demand: ResourceEstimate, pace: float) -> list[Finding]:
    millions = demand.parameters / 1e6
    count = f"{millions:,.1f} M" if millions >= 0.1 else f"{demand.parameters:,}"
    model = f"The model of {demand.title} ({count} parameters)"
    where = "GPU" if place.gpu else "main"
    if demand.micro_batch:
        found = [Finding("good", f"{model} fits, with micro-batches of {demand.micro_batch}: "
                         f"{format_bytes(demand.memory)} of {where} memory by the calculator.")]  # fmt: skip
    else:
        found = [Finding("bad", f"{model} does not fit: even a micro-batch of 1 takes "
                         f"{format_bytes(demand.memory)} of {where} memory by the calculator.")]  # fmt: skip
    if place.gpu is None and pace > 0:
        alone = demand.global_batch / pace
        found.append(
            Finding(
                "note",
                f"Expect at most {pace_words(pace)} on this processor: alone, one step of the run "
                f"({demand.global_batch:,} samples) would take it {format_duration(max(1.0, alone))}.",
            )
        )
    if place.shared_memory is not None and place.shared_memory < demand.shared_memory:
        found.append(
            Finding(
                "bad",
                f"/dev/shm has {format_bytes(place.shared_memory)} free and the peer needs "
                f"{format_bytes(demand.shared_memory)}; in Docker: {shm_size_option(demand.shared_memory)}",
            )
        )
    return found


def _of_way(place: Place, way: Reach) -> str:
    ports = ", ".join(map(str, SPACE_PORTS))
    if way.hopeless:
        return (
            f"From a Space only the ports {ports} can be reached, and this run listens on none of them "
            f"({', '.join(way.blocked)}). Ask its organiser for another address."
        )
    return f"{way.why} Outbound, a Space may use the ports {ports} only." if place.space else way.why


def place_html(found: Iterable[Finding]) -> str:
    items = "".join(
        f'<li data-level="{one.level}"><span class="ttt-sign" role="img" aria-label="{SPOKEN[one.level]}">'
        f"{SIGNS[one.level]}</span><span>{escape(redact(one.text))}</span></li>"
        for one in found
    )
    return f'<div class="ttt-place"><h3>This place</h3><ul>{items}</ul></div>'


def owner_html(verdict: Verdict) -> str:
    kind = "yes" if verdict else "no"
    return f'<p class="ttt-owner" data-owner="{kind}">{escape(verdict.why)}</p>'


def duplicate_html(space: str) -> str:
    """For people: the Hub's own page, and what to choose there."""
    link = f"{HUB}/spaces/{quote(space)}?duplicate=true"
    return (
        f'<div class="ttt-duplicate"><a class="ttt-link-button" href="{link}" target="_blank" rel="noopener">Duplicate '
        "this Space</a><ul><li><b>Hardware:</b> any GPU of your own (ZeroGPU cannot host a peer). It is billed by the "
        "hour.</li><li><b>Sleep time:</b> set one you can afford to forget; a Space sleeps when nobody visits its "
        "page, and its peer with it.</li><li><b>Secrets:</b> none is needed; HF_TOKEN only for gated models. "
        "Duplication copies variables, which everybody can read, and no secrets.</li></ul></div>"
    )


def duplicate_script(space: str) -> str:
    """For scripts."""
    return (
        "from huggingface_hub import duplicate_repo, request_space_hardware\n\n"
        "# The token of `hf auth login` (or HF_TOKEN) pays; nothing is billed on free hardware.\n"
        f'mine = duplicate_repo("{space}", repo_type="space", space_sleep_time=3600)\n'
        'request_space_hardware(mine.repo_id, hardware="t4-small", sleep_time=3600)  # billed by the hour from here\n'
        'print(f"{mine}  open it, sign in, press Start")\n'
    )
