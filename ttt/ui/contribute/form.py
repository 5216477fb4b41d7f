"""What a volunteer fills in, checked, as an order for the launcher. Knows no gradio and starts nothing."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from ttt.errors import InvalidInput
from ttt.swarm.process.control_files import MAX_HOURS, DesiredState
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.ui.contribute.host import Place, Reach, reach

MAX_TEXT = 1000
MAX_PEERS = 16


@dataclass(frozen=True)
class Asked:
    """The form as it is filled in; numbers of 0 leave the choice to us."""

    run: str = ""
    initial_peers: str = ""
    """Separated by spaces, commas or lines."""
    name: str = ""
    micro_batch: float | None = 0
    hours: float | None = 0
    """Stop after so many."""
    stop_at: str = ""
    """Stop then: "2026-12-24 18:00", in UTC unless it says otherwise."""
    gpu_gib: float | None = 0
    """Cap on the GPU's memory."""
    limit: float | None = 0
    """Samples per second not to exceed."""
    reachable: bool = False
    port: float | None = 0


FIELDS = tuple(field.name for field in fields(Asked))


def read(values: Sequence[object]) -> Asked:
    """The form from a request's values, in the order of FIELDS; they may be anything."""
    given = dict(zip(FIELDS, values, strict=False))
    texts = {name: str(given.get(name) or "") for name in ("run", "initial_peers", "name", "stop_at")}
    return Asked(**{**given, **texts, "reachable": given.get("reachable") is True})  # type: ignore[arg-type]


def addresses(text: str) -> list[str]:
    """Multiaddrs of a text; InvalidInput names the one that is none."""
    found = [part for part in re.split(r"[\s,]+", str(text or "")) if part and part != "--initial-peer"]
    for address in found:
        if not re.fullmatch(r"/(?:ip4|ip6|dns|dns4|dns6)/[^/\s]+/(?:tcp|udp)/\d{1,5}(?:/[\w.-]+)*/p2p/\w+", address):
            raise InvalidInput(
                f"{address[:120]!r} is not a peer's address; it looks like /ip4/203.0.113.5/tcp/8080/p2p/Qm..., as the "
                "coordinator prints it"
            )
    if len(found) > MAX_PEERS:
        raise InvalidInput(f"at most {MAX_PEERS} addresses are used, got {len(found)}")
    return list(dict.fromkeys(found))


def reach_of(asked: Asked, place: Place) -> Reach:
    return reach(place, addresses(asked.initial_peers), listen=True if asked.reachable else None)


def memory_of(asked: Asked, place: Place) -> int:
    """Bytes that a peer may plan for: the GPU's free ones under the cap, else RAM."""
    from ttt.hardware import MEMORY_SHARE  # imports torch; the peer plans with the same share

    if place.gpu is None:
        return int(MEMORY_SHARE["cpu"] * place.ram)
    cap = _number("the cap on GPU memory", asked.gpu_gib, 0, 10_000)
    return min(int(MEMORY_SHARE["cuda"] * place.gpu.free), int(cap * 2**30) if cap else place.gpu.total)


def order_of(asked: Asked, place: Place, demand: ResourceEstimate, *, exit_with_pid: int = 0) -> DesiredState:
    """The order; InvalidInput says which field is wrong and what is allowed."""
    if not place.linux:
        raise InvalidInput("a peer needs Linux; on other systems use WSL 2, a container, or a Space")
    if place.zero_gpu:
        raise InvalidInput(
            "ZeroGPU lends a GPU for a minute at a time, and a peer needs one for hours: duplicate this Space to "
            "hardware of your own"
        )
    peers = addresses(asked.initial_peers)
    if not peers:
        raise InvalidInput(
            "the address of the run is missing: the line that its coordinator prints, /ip4/... or /dns4/..."
        )
    way = reach_of(asked, place)
    if way.hopeless:
        raise InvalidInput(
            "a Space can only connect to the ports 80, 443 and 8080, and this run listens on none of them; ask the "
            "organiser for an address on one"
        )
    return DesiredState(
        run=_text("the run", asked.run),
        initial_peers=list(way.open) or peers,
        name=_text("the name", asked.name, 100),
        micro_batch=_micro_batch(asked, place, demand),
        limit=_number("samples per second", asked.limit, 0, 1e6),
        client=way.client,
        host=way.host or "0.0.0.0",
        port=0 if way.client else int(_number("the port", asked.port, 0, 65_535)),
        gpu_fraction=_gpu_fraction(asked, place),
        stop_at=_stop_at(asked),
        exit_with_pid=exit_with_pid,
    )


def _micro_batch(asked: Asked, place: Place, demand: ResourceEstimate) -> int:
    """The user's choice; 0 if there is none: the peer chooses by the memory that is free when it starts."""
    chosen = int(_number("the micro-batch", asked.micro_batch, 0, 4096))
    if demand.known and not demand.micro_batch:
        have = memory_of(asked, place) / 2**30
        raise InvalidInput(
            f"this run needs {demand.memory / 2**30:.1f} GiB here and {have:.1f} GiB can be used; free some memory, "
            "raise the cap, or choose larger hardware"
        )
    return chosen


def _gpu_fraction(asked: Asked, place: Place) -> float:
    cap = _number("the cap on GPU memory", asked.gpu_gib, 0, 10_000)
    if place.gpu is None or not cap:
        return 1.0
    return max(0.001, min(1.0, cap * 2**30 / place.gpu.total))


def _stop_at(asked: Asked) -> float | None:
    """The earlier of both limits, as Unix time."""
    hours = _number("the hours", asked.hours, 0, MAX_HOURS)
    times = [time.time() + 3600 * hours] if hours else []
    if text := str(asked.stop_at or "").strip():
        try:
            moment = datetime.fromisoformat(text.removesuffix("UTC").strip())
        except ValueError:
            raise InvalidInput(f"the time to stop looks like 2026-12-24 18:00 (UTC), got {text[:40]!r}") from None
        then = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if then <= time.time():
            raise InvalidInput(f"the time to stop, {text[:40]} (UTC), has passed already")
        times.append(then)
    return min(times, default=None)


def _text(what: str, value: object, longest: int = MAX_TEXT) -> str:
    text = str(value or "").strip()
    if len(text) > longest or not text.isprintable():
        raise InvalidInput(f"{what} must be one line of at most {longest:,} characters")
    if what == "the run" and not text:
        raise InvalidInput("the run is missing: its file, or the URL of its file")
    return text


def _number(what: str, value: object, low: float, high: float) -> float:
    if value in (None, ""):
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidInput(f"{what} must be a number from {low:g} to {high:g}, got {value!r}")
    if not low <= value <= high:
        raise InvalidInput(f"{what} must be a number from {low:g} to {high:g}, got {value:g}")
    return float(value)
