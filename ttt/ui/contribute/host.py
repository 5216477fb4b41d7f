"""Facts about the host of this app: Space, GPU, memory, connectivity. Independent of runs and pages."""

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
"""The only ports that a Space may connect to (Spaces overview, "Networking")."""
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
class HostInfo:
    space: str = ""
    """Id of the Space (owner/name); empty outside one."""
    zero_gpu: bool = False
    gpu: Gpu | None = None
    """The first one."""
    gpus: int = 0
    cores: int = 1
    ram: int = 0
    """Free bytes."""
    shared_memory: int | None = None
    """Free bytes of /dev/shm; None if there is none."""
    linux: bool = True

    @property
    def supports_peer(self) -> bool:
        return self.linux and not self.zero_gpu


@dataclass(frozen=True)
class Connectivity:
    """How a peer on this host connects to its run."""

    client: bool
    """True if other peers cannot connect to this host, so that its peer only connects to them."""
    summary: str
    host: str = "0.0.0.0"
    """Address to listen on."""
    blocked_addresses: tuple[str, ...] = ()
    """Addresses of the run that cannot be reached from a Space."""
    reachable_addresses: tuple[str, ...] = ()
    """The others; empty if nothing is known about any."""

    @property
    def unreachable(self) -> bool:
        return bool(self.blocked_addresses) and not self.reachable_addresses


def detect_host(environment: Mapping[str, str] | None = None) -> HostInfo:
    """Takes milliseconds, or seconds if a GPU's driver is slow."""
    env = os.environ if environment is None else environment
    zero = env.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")
    gpus = [] if zero else read_gpus()
    return HostInfo(
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
    """From nvidia-smi, which takes no GPU memory; empty if it is missing or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(output)


def parse_gpus(output: str) -> list[Gpu]:
    """From lines such as "Tesla T4, 15360, 14923" (MiB)."""
    gpus = []
    for line in output.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            gpus.append(Gpu(parts[0], int(parts[1]) << 20, int(parts[2]) << 20))
    return gpus


def check_connectivity(host: HostInfo, initial_peers: Sequence[str], *, listen: bool | None = None) -> Connectivity:
    """Whether a peer here can accept connections, and which of the run's addresses it can connect to.

    listen: the owner's statement about their machine; None: only if the run is in the same network.
    """
    if host.space:
        blocked = tuple(address for address in initial_peers if port_of(address) not in SPACE_PORTS)
        reachable = tuple(address for address in initial_peers if address not in blocked)
        summary = "A Space cannot accept connections, so its peer connects to the others."
        return Connectivity(True, summary, "", blocked, reachable)
    networks = [_network_of(address) for address in initial_peers]
    if networks and all(network == "loopback" for network in networks):
        return Connectivity(False, "The run is on this machine.", "127.0.0.1")
    if listen or (listen is None and networks and all(networks)):
        return Connectivity(False, "Other peers can connect to this machine.")
    return Connectivity(True, "This machine connects to the other peers; they do not need to reach it.", "")


def port_of(address: str) -> int | None:
    """TCP or UDP port of a multiaddr."""
    match = re.search(r"/(?:tcp|udp)/(\d{1,5})(?:/|$)", address)
    return int(match[1]) if match else None


def _network_of(address: str) -> str:
    """ "loopback", "local", or empty for an address on the Internet."""
    match = re.match(r"/ip[46]/([0-9a-fA-F.:]+)/", address)
    try:
        ip = ipaddress.ip_address(match[1]) if match else None
    except ValueError:
        return ""
    if ip is None or ip.is_global:
        return ""
    return "loopback" if ip.is_loopback else "local"


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
