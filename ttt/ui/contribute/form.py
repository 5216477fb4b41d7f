"""The form of a peer, validated, and the desired state that it becomes. Independent of Gradio; starts nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import Field, ValidationInfo, field_validator

from ttt.errors import InvalidInput
from ttt.fields import CheckedModel
from ttt.swarm.process.control_files import MAX_HOURS, DesiredState
from ttt.swarm.training.requirements import ResourceEstimate
from ttt.ui.contribute.host import Connectivity, HostInfo, check_connectivity

MAX_ADDRESSES = 16
LONGEST = {"run": 1000, "name": 100}
ADDRESS_PATTERN = r"/(?:ip4|ip6|dns|dns4|dns6)/[^/\s]+/(?:tcp|udp)/\d{1,5}(?:/[\w.-]+)*/p2p/\w+"


class PeerForm(CheckedModel):
    """The fields of the form and of `/start_peer`. 0 and empty leave the choice to the peer."""

    run: str = ""
    initial_peers: str = Field(default="", max_length=5000)
    """Addresses separated by spaces, commas or lines."""
    name: str = ""
    micro_batch: int = Field(default=0, ge=0, le=4096)
    hours: float = Field(default=0.0, ge=0, le=int(MAX_HOURS))
    """Stop after so many."""
    stop_at: str = Field(default="", max_length=40)
    """Stop then: "2026-12-24 18:00", in UTC unless it states another time zone."""
    gpu_gib: float = Field(default=0.0, ge=0, le=10_000)
    """Most GPU memory to use."""
    limit: float = Field(default=0.0, ge=0, le=1e6)
    """Most samples per second."""
    reachable: bool = False
    port: int = Field(default=0, ge=0, le=65_535)

    @field_validator("run", "name")
    @classmethod
    def _one_line(cls, text: str, info: ValidationInfo) -> str:
        limit = LONGEST[str(info.field_name)]
        if len(text) > limit or not text.strip().isprintable():
            raise ValueError(f"must be one line of at most {limit:,} characters")
        return text.strip()


FIELDS = tuple(PeerForm.model_fields)


def read(values: Sequence[object]) -> PeerForm:
    """The form from a request's values, in the order of FIELDS. InvalidInput says which value is wrong."""
    given = dict(zip(FIELDS, values, strict=False))
    given["reachable"] = given.get("reachable") is True
    return PeerForm(**{name: value for name, value in given.items() if value not in (None, "")})  # type: ignore[arg-type]


def addresses(text: str) -> list[str]:
    """The multiaddrs in a text; InvalidInput names the one that is invalid."""
    parts = [part for part in re.split(r"[\s,]+", text) if part and part != "--initial-peer"]
    for part in parts:
        if not re.fullmatch(ADDRESS_PATTERN, part):
            raise InvalidInput(
                f"{part[:120]!r} is not a peer's address; it looks like /ip4/203.0.113.5/tcp/8080/p2p/Qm..., as the "
                "coordinator prints it"
            )
    if len(parts) > MAX_ADDRESSES:
        raise InvalidInput(f"at most {MAX_ADDRESSES} addresses are used, got {len(parts)}")
    return list(dict.fromkeys(parts))


def connectivity_of(form: PeerForm, host: HostInfo) -> Connectivity:
    return check_connectivity(host, addresses(form.initial_peers), listen=True if form.reachable else None)


def usable_memory(form: PeerForm, host: HostInfo) -> int:
    """Bytes that a peer may plan for: a share of the free GPU memory, within the cap, or else of the free RAM."""
    from ttt.hardware import MEMORY_SHARE  # imports torch; the peer plans with the same share

    if host.gpu is None:
        return int(MEMORY_SHARE["cpu"] * host.ram)
    cap = int(form.gpu_gib * 2**30) if form.gpu_gib else host.gpu.total
    return min(int(MEMORY_SHARE["cuda"] * host.gpu.free), cap)


def desired_state_of(
    form: PeerForm, host: HostInfo, estimate: ResourceEstimate, *, exit_with_pid: int = 0
) -> DesiredState:
    """InvalidInput says which field is wrong and what is allowed."""
    if not host.linux:
        raise InvalidInput("a peer needs Linux; on other systems use WSL 2, a container, or a Space")
    if host.zero_gpu:
        raise InvalidInput(
            "ZeroGPU provides a GPU for a minute at a time, and a peer needs one for hours: duplicate this Space "
            "onto paid hardware"
        )
    if not form.run:
        raise InvalidInput("the run is missing: paste its run file's path or URL from your invitation")
    peers = addresses(form.initial_peers)
    if not peers:
        raise InvalidInput("the address is missing: paste the one from your invitation (/ip4/... or /dns4/...)")
    connectivity = connectivity_of(form, host)
    if connectivity.unreachable:
        raise InvalidInput(
            "a Space can only connect to ports 80, 443 and 8080, and this run listens on none of them; ask the "
            "organiser for an address with one of these ports"
        )
    _check_memory(form, host, estimate)
    return DesiredState(
        run=form.run,
        initial_peers=tuple(connectivity.reachable_addresses) or tuple(peers),
        name=form.name,
        # Only what the owner typed: the peer plans within the memory that is free when it starts, but takes a number
        # as an order, and would insist on it after running out of memory.
        micro_batch=form.micro_batch,
        limit=form.limit,
        client=connectivity.client,
        host=connectivity.host or "0.0.0.0",
        port=0 if connectivity.client else form.port,
        gpu_fraction=_gpu_fraction(form, host),
        stop_at=_stop_at(form),
        exit_with_pid=exit_with_pid,
    )


def _check_memory(form: PeerForm, host: HostInfo, estimate: ResourceEstimate) -> None:
    if estimate.known and not estimate.micro_batch:
        available = usable_memory(form, host) / 2**30
        raise InvalidInput(
            f"this run needs {estimate.memory / 2**30:.1f} GiB, but only {available:.1f} GiB can be used here; "
            "free some memory, raise the limit, or choose larger hardware"
        )


def _gpu_fraction(form: PeerForm, host: HostInfo) -> float:
    if host.gpu is None or not form.gpu_gib:
        return 1.0
    return max(0.001, min(1.0, form.gpu_gib * 2**30 / host.gpu.total))


def _stop_at(form: PeerForm) -> float | None:
    """The earlier of both limits, as Unix time."""
    times = [time.time() + 3600 * form.hours] if form.hours else []
    if text := form.stop_at.strip():
        try:
            moment = datetime.fromisoformat(text.removesuffix("UTC").strip())
        except ValueError:
            raise InvalidInput(f"“Stop at” must look like 2026-12-24 18:00 (UTC), got {text!r}") from None
        stop = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if stop <= time.time():
            raise InvalidInput(f"“Stop at”, {text} (UTC), is in the past")
        times.append(stop)
    return min(times, default=None)
