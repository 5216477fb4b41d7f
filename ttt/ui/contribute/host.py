"""What the place is in which this app runs: Space, GPU, memory, ports. Knows no runs and no pages."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SPACE_PORTS = (80, 443, 8080)
"""All that a Space may connect to outside (Spaces overview, "Networking")."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Gpu:
    name: str
    total: int
    """Bytes."""
    free: int

    @property
    def used(self) -> int:
        return self.total - self.free


@dataclass(frozen=True)
class Place:
    space: str = ""
    """Id of the Space (owner/name); empty on one's own machine."""
    zero_gpu: bool = False
    gpu: Gpu | None = None
    """The first one."""
    gpus: int = 0
    cores: int = 1
    ram: int = 0
    """Bytes that are free."""
    shared_memory: int | None = None
    """Free bytes of /dev/shm; None where there is none."""
    linux: bool = True

    @property
    def can_host(self) -> bool:
        """Whether a peer can live here at all."""
        return self.linux and not self.zero_gpu


@dataclass(frozen=True)
class Reach:
    """How a peer here and its swarm come together."""

    client: bool
    """Others cannot connect to this place, so that it connects to them."""
    why: str
    host: str = "0.0.0.0"
    blocked: tuple[str, ...] = ()
    """Addresses of the run that cannot be reached from here."""

    @property
    def hopeless(self) -> bool:
        return bool(self.blocked) and not self.open

    open: tuple[str, ...] = ()


def look(environment: Mapping[str, str] | None = None) -> Place:
    """Takes a few milliseconds, up to seconds where a GPU's driver is slow."""
    env = os.environ if environment is None else environment
    zero = env.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")
    gpus = [] if zero else read_gpus()
    return Place(
        space=env.get("SPACE_ID", ""),
        zero_gpu=zero,
        gpu=gpus[0] if gpus else None,
        gpus=len(gpus),
        cores=_cores(),
        ram=_free_ram(),
        shared_memory=_free_of(SHARED_MEMORY),
        linux=sys.platform == "linux",
    )


def read_gpus() -> list[Gpu]:
    """By nvidia-smi, which takes no memory of the GPU; none where it is missing or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(said)


def parse_gpus(said: str) -> list[Gpu]:
    """Lines such as "Tesla T4, 15360, 14923" (MiB)."""
    found = []
    for line in said.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            found.append(Gpu(parts[0], int(parts[1]) << 20, int(parts[2]) << 20))
    return found


def reach(place: Place, initial_peers: Sequence[str], *, listen: bool | None = None) -> Reach:
    """Whether a peer here can listen, and which of the run's addresses it can call.

    listen: what the owner says of their own machine; None: only where the run lies in the same network.
    """
    if place.space:
        blocked = tuple(address for address in initial_peers if port_of(address) not in SPACE_PORTS)
        fine = tuple(address for address in initial_peers if address not in blocked)
        return Reach(True, "A Space cannot be reached from outside, so its peer connects to others.", "", blocked, fine)
    near = [_is_near(address) for address in initial_peers]
    if near and all(one == "loopback" for one in near):
        return Reach(False, "The run is on this machine, and its peers reach this one.", "127.0.0.1", (), ())
    if listen or (listen is None and near and all(near)):
        return Reach(False, "Other peers connect to this machine as well as it to them.")
    return Reach(True, "This machine connects to others, and they need not reach it.", "")


def port_of(address: str) -> int | None:
    """TCP or UDP port of a multiaddr."""
    found = re.search(r"/(?:tcp|udp)/(\d{1,5})(?:/|$)", address)
    return int(found[1]) if found else None


def _is_near(address: str) -> str:
    """ "loopback", "network", or nothing for an address on the Internet."""
    found = re.match(r"/ip[46]/([0-9a-fA-F.:]+)/", address)
    try:
        ip = ipaddress.ip_address(found[1]) if found else None
    except ValueError:
        return ""
    if ip is None or ip.is_global:
        return ""
    return "loopback" if ip.is_loopback else "network"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_ram() -> int:
    import torch

    from ttt.hardware import free_memory

    return free_memory(torch.device("cpu"))


def _free_of(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
