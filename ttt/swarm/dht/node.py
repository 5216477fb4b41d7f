"""The DHT node of a peer: joining the network, reconnecting to it, and the announcement of the run.

hivemind runs the node in a process of its own, over libp2p's daemon, which is a third process. All reads of the DHT
have a timeout: a node that cannot validate signed records otherwise waits for an answer forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence
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
from ttt.swarm.dht.records import LATE, owner_of, result_in_time
from ttt.swarm.dht.validation import RecordRules, StrictSignatures, patch_entry_validation
from ttt.swarm.process.lifecycle import init_child_process, kill_daemon_with_parent

STARTUP_SECONDS = 60.0
"""For libp2p's daemon to start; hivemind's default of 15 is too short on a busy machine."""
JOIN_SECONDS = 30.0
"""For joining the network once the daemon runs."""
CALL_SECONDS = 5.0
"""For connecting to one peer, and for its answer."""
ANNOUNCEMENT_SECONDS = 24 * 3600.0
"""Lifetime of the announcement: for so long newcomers find the run while the coordinator is away."""


class SwarmDHT(hivemind.DHT):
    """A DHT whose processes end with this one."""

    signer: StrictSignatures
    """Signs the records of this node."""

    def run(self) -> None:
        init_child_process(self._parent_pid)
        kill_daemon_with_parent()
        super().run()


def run_prefix(name: str, generation: int) -> str:
    """Return the prefix of all DHT keys of one generation of a run: peers of different generations never meet."""
    return f"{name}-g{generation}"


def check_addresses(addresses: Sequence[str]) -> None:
    """Raise InvalidInput unless every address is a complete multiaddr."""
    for address in addresses:
        try:
            Multiaddr(address)["p2p"]
        except Exception:  # the library raises many types of errors
            raise InvalidInput(
                f"{address!r} is not a peer's address; it looks like /ip4/203.0.113.5/tcp/8080/p2p/Qm..., as the "
                "coordinator prints it"
            ) from None


def check_announced(addresses: Sequence[str]) -> None:
    """Raise InvalidInput unless other peers could connect to every address."""
    for address in addresses:
        try:
            parts = [(protocol.name, value) for protocol, value in Multiaddr(address).items()]
            ports = [int(value) for name, value in parts if name in ("tcp", "udp")]
            usable = parts[0][0] in ("ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr") and ports and all(ports)
        except Exception:  # the library raises many types of errors
            usable = False
        if not usable or parts[-1][0] == "p2p":
            raise InvalidInput(
                f"{address!r} cannot be announced (--announce, or [network] announce in the run file): it must be an "
                "address with a port and without /p2p/..., such as /ip4/203.0.113.5/tcp/8080 or "
                "/dns4/example.org/tcp/8080"
            )


def check_ports(listen: Sequence[str]) -> None:
    """Raise SwarmError if another program already listens on a port: libp2p would not report it."""
    for address in listen:
        _, kind, host, _, port, *_ = address.split("/")
        if kind == "ip4" and port != "0":
            with socket.socket() as probe:
                # As libp2p does: a port in TIME_WAIT after a restart can be used.
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
    """Join the network. Raises SwarmError with the cause if that fails.

    required: fail if none of the initial peers answers.
    """
    check_addresses(initial_peers)
    check_announced(announce)
    check_ports([] if client_mode else listen)
    patch_entry_validation()
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
            check_if_identity_free=False,  # takes seconds, and the lock of the folder already ensures it
            record_validators=[signer],
            startup_timeout=STARTUP_SECONDS,
            ensure_bootstrap_success=required,
            nat_port_map=False,
            **network,
        )
        dht.signer = signer
        _start(dht, STARTUP_SECONDS + JOIN_SECONDS)
        return dht
    except Exception as error:
        raise SwarmError(_explain_failure(str(error), initial_peers)) from None


def _start(dht: SwarmDHT, seconds: float) -> None:
    """Start the process of the DHT and wait until it is ready.

    hivemind would wait forever if the process died, or if its error could not be pickled.
    """
    deadline = time.monotonic() + seconds
    dht.run_in_background(await_ready=False)
    try:
        while True:
            alive = dht.is_alive()  # read before waiting: a process that ends may still have reported an error
            try:
                return dht.wait_until_ready(1.0)
            except FutureTimeout:
                if not alive:
                    raise SwarmError(
                        "hivemind's process exited without an error; set TTT_HIVEMIND_LOG=DEBUG to see its log"
                    ) from None
                if time.monotonic() > deadline:
                    raise SwarmError(f"hivemind was not ready within {seconds:.0f} s; try again") from None
    except BaseException:
        dht.kill()
        dht.join(5.0)
        raise


def _explain_failure(error: str, initial_peers: Sequence[str]) -> str:
    if "bootstrap failed" in error or "bootstrap peers" in error:
        return (
            f"none of the initial peers answered ({', '.join(initial_peers)}): is the coordinator running, is its "
            "port open to the outside, and may this machine connect to it? Spaces reach only ports 80, 443 and 8080"
        )
    if "failed to start in" in error:
        return f"libp2p's daemon did not start within {STARTUP_SECONDS:.0f} s; the machine may be overloaded: try again"
    return f"the network could not be joined: {error}"


def get_record(dht: hivemind.DHT, key: str, timeout: float = 10.0) -> dict[Any, ValueWithExpiration] | None:
    """Return the newest subkeys of a key, or None. Never waits longer than `timeout` seconds."""
    answer = result_in_time(dht.get(key, latest=True, return_future=True), timeout)
    entries = getattr(answer, "value", None)
    return entries if isinstance(entries, dict) else None


def announce_run(dht: SwarmDHT, run: str, announcement: Announcement) -> bool:
    """Store the announcement under the key where peers look for it; return False if the network did not accept it."""
    future = dht.store(
        f"{run}_run",
        subkey=dht.signer.local_public_key,
        value=announcement.model_dump(),
        expiration_time=get_dht_time() + ANNOUNCEMENT_SECONDS,
        return_future=True,
    )
    stored = result_in_time(future, 10.0)
    return stored is not LATE and bool(stored)


def find_announcement(dht: hivemind.DHT, run: str, trusted: Sequence[str]) -> Announcement | None:
    """Return the newest announcement of a coordinator that is one of these libp2p ids, or that one of them names.

    The result names its coordinator. While the coordinator's own announcement cannot be found, the peer's counts.
    """
    entries: dict[str, Announcement] = {}
    for subkey, entry in (get_record(dht, f"{run}_run") or {}).items():
        with contextlib.suppress(ValidationError, ValueError):
            entries[owner_of(subkey)] = Announcement.model_validate(entry.value)
    announcements = []
    for peer_id in trusted:
        if (announcement := entries.get(peer_id)) is not None:
            coordinator = announcement.coordinator or peer_id
            own = entries.get(coordinator)
            newest = own if own is not None and not own.coordinator else announcement
            announcements.append(newest.model_copy(update={"coordinator": coordinator}))
    return max(announcements, key=lambda announcement: announcement.generation, default=None)


def add_record_rules(dht: hivemind.DHT, prefix: str, access: AccessPolicy, global_batch: int) -> None:
    """Make this node accept only well-formed records of the run, of peers that the access policy allows."""
    rules = RecordRules(prefix, access, max_samples=MOST_BATCHES * global_batch)
    dht.add_validators([SchemaValidator(TrainingProgressSchema, prefix=prefix), rules])


def find_donors(dht: hivemind.DHT, prefix: str) -> dict[str, float]:
    """Return the libp2p ids of other peers that offer the state of the run, with the step that each claims for it."""
    donors = parse_donors(get_record(dht, f"{prefix}_state_averager.all_averagers"))
    return {str(peer): step for peer, step in donors.items() if peer != dht.peer_id}


def parse_donors(entries: Any) -> dict[PeerID, float]:
    """Return peer -> the step that it claims for its state, from an unsigned record of the DHT."""
    donors = {}
    for peer, entry in entries.items() if isinstance(entries, dict) else ():
        value = getattr(entry, "value", None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with contextlib.suppress(Exception):  # the bytes of the id may be anything
                donors[PeerID(peer)] = float(value)
    return donors


def visible_addresses(dht: hivemind.DHT) -> list[str]:
    """Return the addresses at which other peers reach this one."""
    return [str(address) for address in dht.get_visible_maddrs()]


def reconnect(dht: hivemind.DHT, addresses: Sequence[str]) -> list[str]:
    """Call those of these peers that the routing table has lost, all at once; return the addresses that answered.

    hivemind never looks for lost peers again, so after a network outage, or a restart of the coordinator, two parts of
    a swarm would stay apart.
    """
    future = dht.run_coroutine(_Reconnect(tuple(addresses)), return_future=True)
    answered = result_in_time(future, 2 * CALL_SECONDS + 5)
    return [] if answered is LATE else list(answered)


class _Reconnect:
    """The coroutine of `reconnect`, as an object that can be pickled for the DHT's process."""

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
    except Exception:  # a malformed address, or a peer that does not answer
        return False


async def _connect(node: DHTNode, peer: PeerID, transport: Multiaddr) -> None:
    """Connect as hivemind's client does, with a timeout for the daemon, and always close the pipe to it.

    hivemind passes no timeout, so a peer that accepts the connection and never answers would take as long as libp2p's
    own; and cancelling the call would leak the pipe.
    """
    reader, writer = await node.p2p._client.control.daemon_connector.open_connection()
    try:
        connect = p2pd_pb2.ConnectRequest(peer=peer.to_bytes(), addrs=[transport.to_bytes()], timeout=int(CALL_SECONDS))
        await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect))
        answer = p2pd_pb2.Response()
        await read_pbmsg_safe(reader, answer)
        raise_if_failed(answer)
    finally:
        writer.close()
