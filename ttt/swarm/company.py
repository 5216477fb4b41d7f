"""Whom a coordinator knows: the addresses it remembers, and the line that brings in volunteers. Knows no tensors."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from ttt.swarm.dht import SwarmDHT, reconnect
from ttt.swarm.status import write_atomically

PEERS_FILE = "peers.json"
MAX_KNOWN_PEERS = 50


def keep_company(dht: SwarmDHT, folder: Path) -> None:
    """Call those we know and remember those we meet: after a restart, this is the way back to them."""
    known = known_peers(folder)
    reconnect(dht, known)
    now = [address for address in connected(dht) if address not in known]
    if now:
        write_atomically(folder / PEERS_FILE, json.dumps([*now, *known][:MAX_KNOWN_PEERS]).encode())


def known_peers(folder: Path) -> list[str]:
    """Addresses that were remembered; none where the file is missing or is not ours."""
    try:
        found = json.loads((folder / PEERS_FILE).read_text())
        return [address for address in found if isinstance(address, str)][:MAX_KNOWN_PEERS]
    except (OSError, ValueError, TypeError):
        return []


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


def invitation(run: str, addresses: list[str]) -> list[str]:
    """The line for volunteers: the address that most of them reach, public ones before those of this network."""
    best = sorted(addresses, key=lambda address: (_is_local(address), len(address)))[:1]
    joined = " ".join(f"--initial-peer {address}" for address in best)
    return ["Volunteers take part with:", f"python -m ttt peer --run {run} {joined}"]


def _is_local(address: str) -> int:
    parts = address.split("/")
    if len(parts) < 3 or not parts[1].startswith("ip"):
        return 0  # a name was announced on purpose
    ip = ipaddress.ip_address(parts[2])
    return 2 if ip.is_loopback else int(not ip.is_global)
