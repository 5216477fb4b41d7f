"""The coordinator's address book of peers, and the command line by which volunteers join. Independent of training."""

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
"""Consecutive calls without an answer, about ten minutes, after which a peer is removed."""


def refresh_known_peers(dht: SwarmDHT, folder: Path) -> None:
    """Call the known peers and save the connected ones: a restarted coordinator finds the swarm by these addresses.

    Raises OSError if the file cannot be written.
    """
    known = _read(folder)
    now = merge_contacts(known, answered=reconnect(dht, list(known)), connected=connected_addresses(dht))
    if now != known:
        write_atomically(folder / PEERS_FILE, json.dumps(now).encode())


def merge_contacts(
    known: Mapping[str, int], *, answered: Collection[str], connected: Collection[str]
) -> dict[str, int]:
    """Return the new address book: address -> consecutive calls without an answer, with one address per peer.

    If no peer at all answers, this machine is offline, and no peer is counted as absent.
    """
    failed_call = int(bool(answered or connected))
    counts = {a: 0 if a in answered or a in connected else count + failed_call for a, count in known.items()}
    reached = {_peer_id(address) for address, count in counts.items() if count == 0}
    new = {_peer_id(address): address for address in connected if _peer_id(address) not in reached}
    old = {a: count for a, count in counts.items() if _peer_id(a) not in new and count <= MAX_FAILURES}
    return dict([*((address, 0) for address in new.values()), *old.items()][:MAX_KNOWN_PEERS])


def read_address_book(folder: Path) -> list[str]:
    """Return the saved addresses; none if the file is missing or malformed."""
    return list(_read(folder))


def _read(folder: Path) -> dict[str, int]:
    try:
        counts = json.loads((folder / PEERS_FILE).read_text())
        return {address: int(count) for address, count in list(counts.items())[:MAX_KNOWN_PEERS]}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _peer_id(address: str) -> str:
    return address.rpartition("/p2p/")[2]


def connected_addresses(dht: SwarmDHT) -> list[str]:
    """Return the addresses of the peers with an open connection, as seen from this machine."""
    future = dht.run_coroutine(_list_peers, return_future=True)
    try:
        return list(future.result(10.0))
    except Exception:
        return []


async def _list_peers(_dht: SwarmDHT, node: object) -> list[str]:
    peers = await node.p2p.list_peers()  # type: ignore[attr-defined]
    return [f"{address}/p2p/{peer.peer_id}" for peer in peers for address in peer.addrs[:1]]


def invitation(run: str, addresses: list[str], own_ip: str | None = None) -> list[str]:
    """Return the command for volunteers, with the address that most of them can reach: public ones come first.

    own_ip: the address of this machine on its route to the Internet, preferred over those of virtual networks.
    """
    own_ip = own_ip or outgoing_ip()
    best = sorted(addresses, key=lambda address: (_locality(address), own_ip not in address.split("/"), len(address)))
    options = " ".join(f"--initial-peer {shlex.quote(address)}" for address in best[:1])
    return ["Volunteers join with:", f"ttt peer --run {shlex.quote(run)} {options}"]


def outgoing_ip() -> str:
    """Return the IP address of this machine on its route to the Internet; empty without a route. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation; a datagram socket only looks up the route
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def _locality(address: str) -> int:
    """0: public; 1: of this network; 2: of this machine."""
    parts = address.split("/")
    if len(parts) < 3 or not parts[1].startswith("ip"):
        return 0  # a domain name, announced by the user
    ip = ipaddress.ip_address(parts[2])
    return 2 if ip.is_loopback else int(not ip.is_global)
