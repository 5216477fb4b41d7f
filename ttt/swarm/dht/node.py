"""The DHT of a run: joining it, finding the way back into it, and the coordinator's announcement. Knows no models."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import hivemind
from hivemind.dht.node import DHTNode
from hivemind.dht.schema import SchemaValidator
from hivemind.optim.progress_tracker import TrainingProgressSchema
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import raise_if_failed, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils import ValueWithExpiration, get_dht_time
from hivemind.utils.crypto import RSAPrivateKey
from hivemind.utils.multiaddr import Multiaddr
from pydantic import ValidationError

from ttt.errors import InvalidInput, SwarmError
from ttt.swarm.config.run_config import MOST_BATCHES
from ttt.swarm.dht.access import AccessPolicy
from ttt.swarm.dht.announcement import Announcement
from ttt.swarm.dht.records import owner_of
from ttt.swarm.dht.validation import RecordRules, StrictSignatures, drop_only_bad_entries
from ttt.swarm.process.lifecycle import become_child, tie_daemon

STARTUP_SECONDS = 60.0
JOIN_SECONDS = 30.0
"""For the way into the network once libp2p's daemon runs."""
CALL_SECONDS = 5.0
"""For connecting to one peer, and for its answer."""
ANNOUNCEMENT_SECONDS = 24 * 3600.0
"""How long the network remembers what the coordinator said, so that newcomers find the run without it."""


class SwarmDHT(hivemind.DHT):
    """A DHT whose processes die with this one."""

    signer: StrictSignatures
    """Signs this node's records."""

    def run(self) -> None:
        become_child(self._parent_pid)
        tie_daemon()
        super().run()


def prefix(name: str, generation: int) -> str:
    """Under which the peers of one generation of a run find each other."""
    return f"{name}-g{generation}"


def check_addresses(addresses: Sequence[str]) -> None:
    """InvalidInput where an address is not a complete multiaddr."""
    for address in addresses:
        try:
            Multiaddr(address)["p2p"]
        except Exception:
            raise InvalidInput(
                f"{address!r} is not a peer's address; it looks like /ip4/203.0.113.5/tcp/8080/p2p/Qm..., as the "
                "coordinator prints it"
            ) from None


def check_announced(addresses: Sequence[str]) -> None:
    """InvalidInput where nobody could connect to an address."""
    for address in addresses:
        try:
            parts = [(protocol.name, value) for protocol, value in Multiaddr(address).items()]
            ports = [int(value) for name, value in parts if name in ("tcp", "udp")]
            usable = parts[0][0] in ("ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr") and ports and all(ports)
        except Exception:
            usable = False
        if not usable or parts[-1][0] == "p2p":
            raise InvalidInput(
                f"{address!r} cannot be announced (--announce, or [network] announce in the run file): it must be an "
                "address with a port and without /p2p/..., such as /ip4/203.0.113.5/tcp/8080 or "
                "/dns4/example.org/tcp/8080"
            )


def check_ports(listen: Sequence[str]) -> None:
    """SwarmError where another program listens there already, which libp2p would not tell."""
    for address in listen:
        _, kind, host, _, port, *_ = address.split("/")
        if kind == "ip4" and port != "0":
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, int(port)))
                except OSError as error:
                    raise SwarmError(
                        f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --port"
                    ) from None


def start_dht(
    initial_peers: Sequence[str],
    *,
    identity: Path,
    key: RSAPrivateKey,
    listen: Sequence[str] = (),
    announce: Sequence[str] = (),
    client_mode: bool = False,
    use_relay: bool = True,
    required: bool = True,
) -> SwarmDHT:
    """Join the network; SwarmError says why that failed. `required`: without any initial peer it is a failure."""
    check_addresses(initial_peers)
    check_announced(announce)
    check_ports([] if client_mode else listen)
    drop_only_bad_entries()
    network: dict[str, Any] = {"use_auto_relay": use_relay and client_mode, "use_relay": use_relay}
    if client_mode:
        network |= {"host_maddrs": None, "no_listen": True}
    else:
        network |= {"host_maddrs": list(listen), "announce_maddrs": list(announce) or None}
    signer = StrictSignatures(key)
    try:
        dht = SwarmDHT(
            initial_peers=list(initial_peers),
            start=False,
            client_mode=client_mode,
            identity_path=str(identity),
            check_if_identity_free=False,  # the folder's lock sees to that, and the check takes seconds
            record_validators=[signer],
            startup_timeout=STARTUP_SECONDS,
            ensure_bootstrap_success=required,
            nat_port_map=False,
            **network,
        )
        dht.signer = signer
        _begin(dht, STARTUP_SECONDS + JOIN_SECONDS)
        return dht
    except Exception as error:
        raise SwarmError(_why_not(str(error), initial_peers)) from None


def _begin(dht: SwarmDHT, seconds: float) -> None:
    """Start its process and wait until it is ready, or raise why not.

    hivemind would wait without end, also for a process that died or whose error does not survive the way here.
    """
    deadline = time.monotonic() + seconds
    dht.run_in_background(await_ready=False)
    try:
        while True:
            alive = dht.is_alive()  # asked first, so that the last word of a process that ends is still heard
            try:
                return dht.wait_until_ready(1.0)
            except FutureTimeout:
                if not alive:
                    raise SwarmError(
                        "hivemind's process ended without a word; TTT_HIVEMIND_LOG=DEBUG tells more"
                    ) from None
                if time.monotonic() > deadline:
                    raise SwarmError(f"hivemind was not ready within {seconds:.0f} s; try again") from None
    except BaseException:
        dht.kill()
        dht.join(5.0)
        raise


def _why_not(error: str, initial_peers: Sequence[str]) -> str:
    if "bootstrap failed" in error or "bootstrap peers" in error:
        return (
            f"none of the initial peers answered ({', '.join(initial_peers)}): is the coordinator running, is its "
            "port open to the outside, and may this machine connect to it? Spaces reach only ports 80, 443 and 8080"
        )
    if "failed to start in" in error:
        return f"libp2p's daemon did not start within {STARTUP_SECONDS:.0f} s; the machine may be overloaded: try again"
    return f"the network could not be joined: {error}"


def get_record(dht: hivemind.DHT, key: str, timeout: float = 10.0) -> dict[Any, ValueWithExpiration] | None:
    """Newest subkeys of a key, or None; never waits longer than `timeout`."""
    future: Future[Any] = dht.get(key, latest=True, return_future=True)
    try:
        found = future.result(timeout)
    except FutureTimeout:
        future.cancel()
        return None
    return found.value if found is not None and isinstance(found.value, dict) else None


def announce_run(dht: SwarmDHT, run: str, announcement: Announcement) -> bool:
    """Store it where every peer looks; False where the network did not take it."""
    future = dht.store(
        f"{run}_run",
        subkey=dht.signer.local_public_key,
        value=announcement.model_dump(),
        expiration_time=get_dht_time() + ANNOUNCEMENT_SECONDS,
        return_future=True,
    )
    try:
        return bool(future.result(10.0))
    except FutureTimeout:
        return False


def find_run(dht: hivemind.DHT, run: str, coordinators: Sequence[str]) -> Announcement | None:
    """The newest announcement by one of these libp2p ids."""
    found = []
    for subkey, entry in (get_record(dht, f"{run}_run") or {}).items():
        with contextlib.suppress(ValidationError, ValueError):
            if owner_of(subkey) in coordinators:
                found.append(Announcement.model_validate(entry.value))
    return max(found, key=lambda one: one.generation, default=None)


def guard(dht: hivemind.DHT, run_prefix: str, access: AccessPolicy, global_batch: int) -> None:
    """From now on this node accepts records of the run only where they are well-formed and their owner may speak."""
    rules = RecordRules(run_prefix, access, max_samples=MOST_BATCHES * global_batch)
    dht.add_validators([SchemaValidator(TrainingProgressSchema, prefix=run_prefix), rules])


def find_donors(dht: hivemind.DHT, run_prefix: str) -> dict[str, float]:
    """libp2p ids of peers that offer the state of the run, with the step that each says it is of."""
    donors = parse_donors(get_record(dht, f"{run_prefix}_state_averager.all_averagers"))
    return {str(peer): step for peer, step in donors.items() if peer != dht.peer_id}


def parse_donors(entries: Any) -> dict[PeerID, float]:
    """Peer -> how new it says its state is, from an unsigned record of the DHT."""
    donors = {}
    for peer, entry in entries.items() if isinstance(entries, dict) else ():
        value = getattr(entry, "value", None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with contextlib.suppress(Exception):
                donors[PeerID(peer)] = float(value)
    return donors


def visible_addresses(dht: hivemind.DHT) -> list[str]:
    return [str(address) for address in dht.get_visible_maddrs()]


def reconnect(dht: hivemind.DHT, addresses: Sequence[str]) -> list[str]:
    """Call these peers, all at once, where the routing table has lost them; returns the addresses that answered.

    After a cut of the network, or when the coordinator came back, nobody else would look for them again.
    """
    future = dht.run_coroutine(_Reconnect(tuple(addresses)), return_future=True)
    try:
        return list(future.result(2 * CALL_SECONDS + 5))
    except Exception:
        return []


class _Reconnect:
    """Runs in the DHT's process."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self.addresses = addresses

    async def __call__(self, _dht: hivemind.DHT, node: DHTNode) -> list[str]:
        reached = await asyncio.gather(*(_reaches(node, address) for address in self.addresses))
        return [address for address, answered in zip(self.addresses, reached, strict=True) if answered]


async def _reaches(node: DHTNode, address: str) -> bool:
    try:
        peer = PeerID.from_base58(Multiaddr(address)["p2p"])
        if peer == node.peer_id:
            return False
        if peer in node.protocol.routing_table.peer_id_to_uid:
            return True
        await asyncio.wait_for(_connect(node, peer, Multiaddr(address.partition("/p2p/")[0])), CALL_SECONDS)
        return await asyncio.wait_for(node.protocol.call_ping(peer, strict=False), CALL_SECONDS) is not None
    except Exception:
        return False


async def _connect(node: DHTNode, peer: PeerID, transport: Multiaddr) -> None:
    """As hivemind's `connect`, but the daemon gives up in time, and the pipe to it is closed whatever happens."""
    reader, writer = await node.p2p._client.control.daemon_connector.open_connection()
    try:
        wish = p2pd_pb2.ConnectRequest(peer=peer.to_bytes(), addrs=[transport.to_bytes()], timeout=int(CALL_SECONDS))
        await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=wish))
        answer = p2pd_pb2.Response()
        await read_pbmsg_safe(reader, answer)
        raise_if_failed(answer)
    finally:
        writer.close()
