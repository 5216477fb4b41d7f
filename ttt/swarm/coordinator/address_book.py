"""Whom a coordinator knows: the addresses it remembers, and the line that brings in volunteers. Knows no tensors."""

from __future__ import annotations

import ipaddress
import json
import shlex
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from ttt.atomic import write_atomically
from ttt.swarm.dht.node import SwarmDHT, reconnect

PEERS_FILE = "peers.json"
MAX_KNOWN_PEERS = 50
MAX_FAILURES = 40
"""Calls in a row that a peer may leave unanswered, ten minutes or so, before it is forgotten."""


def keep_company(dht: SwarmDHT, folder: Path) -> None:
    """Call those we know and remember those we meet: after a restart, this is the way back to them.

    OSError where that cannot be written down.
    """
    known = _read(folder)
    now = remembered(known, answered=reconnect(dht, list(known)), present=connected(dht))
    if now != known:
        write_atomically(folder / PEERS_FILE, json.dumps(now).encode())


def remembered(known: Mapping[str, int], *, answered: Collection[str], present: Collection[str]) -> dict[str, int]:
    """Address -> calls in a row without an answer, one address a peer. Where nobody answers, the cut is on our side,
    and nobody is forgotten."""
    missed = int(bool(answered or present))
    kept = {a: 0 if a in answered or a in present else count + missed for a, count in known.items()}
    reached = {_peer(address) for address, count in kept.items() if count == 0}
    met = {_peer(address): address for address in present if _peer(address) not in reached}
    kept = {address: count for address, count in kept.items() if _peer(address) not in met and count <= MAX_FAILURES}
    return dict([*((address, 0) for address in met.values()), *kept.items()][:MAX_KNOWN_PEERS])


def known_peers(folder: Path) -> list[str]:
    """Addresses that were remembered; none where the file is missing or is not ours."""
    return list(_read(folder))


def _read(folder: Path) -> dict[str, int]:
    try:
        found = json.loads((folder / PEERS_FILE).read_text())
        return {address: int(count) for address, count in list(found.items())[:MAX_KNOWN_PEERS]}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _peer(address: str) -> str:
    return address.rpartition("/p2p/")[2]


def connected(dht: SwarmDHT) -> list[str]:
    """Addresses of the peers that this one talks to, as they appear from here."""
    future = dht.run_coroutine(_list_peers, return_future=True)
    try:
        return list(future.result(10.0))
    except Exception:
        return []


async def _list_peers(_dht: SwarmDHT, node: object) -> list[str]:
    peers = await node.p2p.list_peers()  # type: ignore[attr-defined]
    return [f"{address}/p2p/{peer.peer_id}" for peer in peers for address in peer.addrs[:1]]


def invitation(run: str, addresses: list[str], own: str | None = None) -> list[str]:
    """The line for volunteers: the address that most of them reach, public ones before those of this network.

    own: this machine's IP address on its way to the Internet, which goes before those of its virtual networks.
    """
    own = own or own_address()
    best = sorted(addresses, key=lambda address: (_is_local(address), own not in address.split("/"), len(address)))[:1]
    joined = " ".join(f"--initial-peer {shlex.quote(address)}" for address in best)
    return ["Volunteers take part with:", f"python -m ttt peer --run {shlex.quote(run)} {joined}"]


def own_address() -> str:
    """The IP address from which this machine speaks to the Internet; empty without a route there. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation; a datagram socket only looks up the route
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def _is_local(address: str) -> int:
    parts = address.split("/")
    if len(parts) < 3 or not parts[1].startswith("ip"):
        return 0  # a name was announced on purpose
    ip = ipaddress.ip_address(parts[2])
    return 2 if ip.is_loopback else int(not ip.is_global)
