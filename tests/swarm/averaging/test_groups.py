"""Finding a group among strangers: real peers on loopback, a follower and a leader that send anything at all."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import hivemind
import torch
from hivemind.averaging.allreduce import AveragingMode
from hivemind.averaging.matchmaking import MatchmakingException
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import averaging_pb2
from hivemind.utils import MPFuture, MSGPackSerializer, get_dht_time
from hivemind.utils.crypto import RSAPrivateKey

from tests.support.waiting import run_async, wait_for
from tests.swarm.peers import BanFile
from ttt.swarm.averaging.averagers import GuardedAverager
from ttt.swarm.averaging.group_messages import Gathered, check_group, check_members, group_key, parse_gathered
from ttt.swarm.averaging.matchmaking import EpochMatchmaking
from ttt.swarm.dht.access import AccessPolicy, Action, Decision
from ttt.swarm.dht.validation import ProgressRecord

PREFIX, EPOCH, SIZE = "groups", 7, 2000
Code = averaging_pb2.MessageCode
NOT_YET = (Code.NOT_LOOKING_FOR_GROUP, Code.BAD_GROUP_KEY, Code.NOT_DECLARED)


def gathered(epoch: Any = EPOCH, mode: Any = 0, bandwidth: Any = None) -> bytes:
    return MSGPackSerializer.dumps([bandwidth, mode, MSGPackSerializer.dumps(epoch)])


HOSTILE = {
    "nothing": b"",
    "garbage": b"\xc1\xff\x00" * 5,
    "code": b"cos\nsystem\n(S'false'\ntR.",
    "no list": MSGPackSerializer.dumps(7),
    "too short": MSGPackSerializer.dumps([None, 0]),
    "too long": MSGPackSerializer.dumps([None, 0, MSGPackSerializer.dumps(EPOCH), 1]),
    "epoch unpacked": MSGPackSerializer.dumps([None, 0, EPOCH]),
    "epoch is text": gathered("7"),
    "epoch is true": gathered(True),
    "epoch below zero": gathered(-1),
    "epoch beyond all": gathered(10**12),
    "another epoch": gathered(EPOCH + 1),
    "unknown mode": gathered(mode=9),
    "mode is text": gathered(mode="0"),
    "the fastest of all": gathered(bandwidth=1e30),
    "bandwidth is NaN": gathered(bandwidth=float("nan")),
    "a client that is none": gathered(mode=AveragingMode.CLIENT.value),
    "huge": gathered() + b"0" * 10_000,
    "nested": b"\x91" * 200 + b"\x00",
}


@pytest.mark.parametrize("data", [data for name, data in HOSTILE.items() if name not in ("another epoch",)])
def test_nonsense_is_no_member(data: bytes) -> None:
    parsed = parse_gathered(data)
    assert parsed is None or parsed.mode == AveragingMode.CLIENT  # which the request contradicts
    assert parse_gathered(gathered()) == Gathered(AveragingMode.NODE, EPOCH)


TOLD = torch.multiprocessing.get_context("fork").Value(ctypes.c_int, 0)
"""Lies of the leader so far; it tells them in a process of its own."""


class LyingMatchmaking(EpochMatchmaking):
    """Accepts everybody, and announces groups that are none, each time another."""

    async def rpc_join_group(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.MessageFromLeader]:
        yield averaging_pb2.MessageFromLeader(code=Code.ACCEPTED)
        announcements = lies(self.peer_id, context.remote_id, request.gather)
        TOLD.value += 1
        yield announcements[TOLD.value % len(announcements)]


def lies(leader: PeerID, follower: PeerID, data: bytes) -> list[averaging_pb2.MessageFromLeader]:
    us = [leader.to_bytes(), follower.to_bytes()]

    def begin(members: list[bytes], said: list[bytes], group: bytes = b"g" * 20) -> averaging_pb2.MessageFromLeader:
        return averaging_pb2.MessageFromLeader(
            code=Code.BEGIN_ALLREDUCE, group_id=group, ordered_peer_ids=members, gathered=said
        )

    found = [begin(us, [bad, data]) for name, bad in HOSTILE.items() if name != "a client that is none"]
    found += [
        begin(us, [data, gathered(mode=1)]),  # what the follower said of itself, changed
        begin(us, [data]),
        begin([us[0], us[0], us[1]], [data] * 3),
        begin([us[0], b"x", us[1]], [data] * 3),
        begin(us[:1], [data]),
        begin([us[0], us[0][:-1] + b"x"], [data] * 2),  # without the follower
        begin([us[1], us[1][:-1] + b"x"], [data] * 2),  # without the leader
        begin(us, [data] * 2, group=b""),
        averaging_pb2.MessageFromLeader(code=Code.GROUP_DISBANDED, suggested_leader=b"nobody"),
        averaging_pb2.MessageFromLeader(code=Code.GROUP_DISBANDED, suggested_leader=us[0]),  # round and round
        averaging_pb2.MessageFromLeader(code=Code.ACCEPTED),
    ]
    return found


def test_no_lie_of_a_leader_is_a_group() -> None:
    leader, follower = (PeerID(b"\x12\x20" + bytes([n]) * 32) for n in (1, 2))

    def judged(message: averaging_pb2.MessageFromLeader, data: bytes = gathered()) -> str:
        return check_group(message, leader=leader, own=follower, own_data=data)

    everything = lies(leader, follower, gathered())
    begun = [message for message in everything if message.code == Code.BEGIN_ALLREDUCE]
    assert len(begun) > 20 and all(map(judged, begun))
    honest = averaging_pb2.MessageFromLeader(
        code=Code.BEGIN_ALLREDUCE, group_id=b"g" * 20, gathered=[gathered()] * 2,
        ordered_peer_ids=[leader.to_bytes(), follower.to_bytes()],
    )  # fmt: skip
    assert judged(honest) == ""
    one_client, clients = averaging_pb2.MessageFromLeader(), averaging_pb2.MessageFromLeader()
    for message in (one_client, clients):
        message.CopyFrom(honest)
        message.gathered[1] = gathered(mode=1)
    clients.gathered[0] = gathered(mode=1)
    assert judged(one_client, gathered(mode=1)) == ""
    assert "none can reduce" in judged(clients, gathered(mode=1))


class Choosy(AccessPolicy):
    """Keeps one peer out of groups, and remembers who asked for what."""

    def __init__(self, banned: PeerID) -> None:
        self.banned, self.asked = str(banned), list[tuple[str, Action]]()

    def allows(self, peer_id: str, action: Action) -> Decision:
        self.asked.append((peer_id, action))
        return Decision(peer_id != self.banned, "sent NaN 20 times")


def test_the_gate_is_asked_about_every_other_member_of_a_group() -> None:
    leader, own, other, banned = (PeerID(b"\x12\x20" + bytes([n]) * 32) for n in range(1, 5))

    def judged(*members: PeerID, access: AccessPolicy) -> str:
        ids = [member.to_bytes() for member in members]
        return check_members(averaging_pb2.MessageFromLeader(ordered_peer_ids=ids), own=own, access=access)

    access = Choosy(banned)
    assert judged(leader, own, other, access=access) == ""
    assert access.asked == [(str(leader), Action.JOIN_GROUP), (str(other), Action.JOIN_GROUP)]
    why = judged(leader, own, other, banned, access=access)
    assert why == f"{banned} may not join an averaging group: sent NaN 20 times"
    assert judged(leader, own, access=Choosy(own)) == ""


class Honest(GuardedAverager):
    """Of its own: hivemind keeps what a class can be asked where its subclasses find it, under the wrong name."""


class Liar(GuardedAverager):
    matchmaking = LyingMatchmaking


Liar.__name__ = "Honest"  # a peer calls others by the name of its class


def average_of(averager: GuardedAverager) -> float:
    with averager.get_tensors() as (tensor,):
        assert bool((tensor == tensor[0]).all())
        return float(tensor[0])


@pytest.fixture
def peers(averagers: list[GuardedAverager]) -> list[GuardedAverager]:
    """Two honest ones and a liar, each with a value of its own."""
    for value, averager in enumerate(averagers):
        with averager.get_tensors() as (tensor,):
            tensor.fill_(float(value))
    return averagers


@pytest.fixture(scope="module")
def bans(tmp_path_factory: pytest.TempPathFactory) -> BanFile:
    """Of the second honest one."""
    return BanFile(tmp_path_factory.mktemp("access") / "bans")


@pytest.fixture(scope="module")
def averagers(bans: BanFile) -> Iterator[list[GuardedAverager]]:
    with ExitStack() as stack:
        found, addresses = [], list[Any]()
        for kind, access in ((Honest, None), (Honest, bans), (Liar, None)):
            dht = hivemind.DHT(initial_peers=addresses, start=True)
            stack.callback(dht.shutdown)
            addresses = addresses or dht.get_visible_maddrs()
            averager = kind(
                [torch.zeros(SIZE)], dht, start=True, prefix=PREFIX, min_matchmaking_time=3.0,
                request_timeout=1.0, next_chunk_timeout=4.0, allreduce_timeout=15.0, access=access,
            )  # fmt: skip
            stack.callback(averager.shutdown)
            found.append(averager)
        yield found


def test_a_leader_that_lies_holds_nobody_up(peers: list[GuardedAverager]) -> None:
    a, b, liar = peers
    told = []
    for _ in range(3):
        before = TOLD.value
        theirs = liar.step(gather=EPOCH, wait=False, timeout=60)
        time.sleep(1.0)
        ours = [one.step(gather=EPOCH, wait=False, timeout=60, weight=1.0) for one in (a, b)]
        for step in ours:
            assert len(step.result(70)) == 2
        theirs.cancel()
        told.append(TOLD.value - before)
        assert average_of(a) == average_of(b) == 0.5
    assert sum(told) >= 1, "the liar was not asked"
    assert told[2] == 0, "it was asked again after it had lied"
    assert average_of(liar) == 2.0


def test_a_malformed_request_is_refused_and_the_next_honest_one_accepted(peers: list[GuardedAverager]) -> None:
    a, b, _ = peers
    step = a.step(gather=EPOCH, wait=False, timeout=60, weight=1.0)
    codes = run_async(ask_all(b, a))
    assert codes == {name: [Code.PROTOCOL_VIOLATION] for name in HOSTILE}
    assert not step.done()
    assert len(b.step(gather=EPOCH, timeout=60, weight=1.0)) == len(step.result(70)) == 2
    assert average_of(a) == average_of(b) == 0.5


async def ask_all(asking: GuardedAverager, asked: GuardedAverager) -> dict[str, list[Any]]:
    """What `asked` answers to each hostile request to join its group."""
    p2p = await asking.dht.replicate_p2p()
    stub = type(asked).get_stub(p2p, asked.peer_id, namespace=PREFIX)
    answers = {}
    for name, data in HOSTILE.items():
        answers[name] = await ask(stub, asked, data)
    return answers


async def ask(stub: Any, asked: GuardedAverager, data: bytes) -> list[Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stream = await stub.rpc_join_group(
            averaging_pb2.JoinRequest(
                schema_hash=asked.schema_hash, expiration=get_dht_time() + 30, gather=data, client_mode=False,
                group_key=group_key(PREFIX, EPOCH),
            )
        )  # fmt: skip
        codes = [message.code async for message in stream]
        if codes[0] not in (
            Code.NOT_LOOKING_FOR_GROUP,
            Code.BAD_GROUP_KEY,
            Code.NOT_DECLARED,
        ):  # not yet, or between two
            return codes
        await asyncio.sleep(0.1)
    raise AssertionError(f"still {codes}")


def test_the_group_of_another_step_is_another(peers: list[GuardedAverager]) -> None:
    a, b, _ = peers
    steps = [one.step(gather=EPOCH + n, wait=False, timeout=5, weight=1.0) for n, one in enumerate((a, b))]
    assert wait_for(lambda: all(step.done() for step in steps), 30)
    assert average_of(a) == 0.0 and average_of(b) == 1.0


def test_a_cancelled_step_looks_no_further(peers: list[GuardedAverager]) -> None:
    """Also where the news of it comes before the mark: the next step would have to wait for it."""
    a, b, _ = peers
    step = a.step(gather=EPOCH, wait=False, timeout=300)
    time.sleep(1.0)
    step._cancel.set_result(None)
    time.sleep(1.0)
    assert MPFuture.cancel(step)
    steps = [one.step(gather=EPOCH + 1, wait=False, timeout=60, weight=1.0) for one in (a, b)]
    assert all(len(step.result(70)) == 2 for step in steps)


def test_a_helper_that_comes_late_looks_no_further(peers: list[GuardedAverager]) -> None:
    """The others are at a later step: nobody will come, and its timeout is far away."""
    a, b, _ = peers
    with ExitStack() as stack:
        dht = hivemind.DHT(initial_peers=a.dht.get_visible_maddrs(), start=True)
        stack.callback(dht.shutdown)
        helper = Honest(
            [torch.zeros(SIZE)], dht, start=True, prefix=PREFIX, min_matchmaking_time=3.0, request_timeout=1.0,
            next_chunk_timeout=4.0, allreduce_timeout=15.0, auxiliary=True,
        )  # fmt: skip
        stack.callback(helper.shutdown)
        step = helper.step(gather=EPOCH, wait=False, timeout=300)
        time.sleep(2.0)
        assert not step.done(), "nobody has gone on yet"
        for node, epoch in ((a.dht, EPOCH + 1), (b.dht, EPOCH)):
            report_progress(node, epoch)
        with pytest.raises(MatchmakingException, match="have moved on"):
            step.result(60)


def test_a_group_with_somebody_whom_our_gate_keeps_out_is_left(peers: list[GuardedAverager], bans: BanFile) -> None:
    """Its leader knows of no ban: it averages with the banned one, and without us."""
    a, b, _ = peers
    with ExitStack() as stack:
        dht = hivemind.DHT(initial_peers=a.dht.get_visible_maddrs(), start=True)
        stack.callback(dht.shutdown)
        banned = Honest(
            [torch.full((SIZE,), 8.0)], dht, start=True, prefix=PREFIX, min_matchmaking_time=3.0, request_timeout=1.0,
            next_chunk_timeout=4.0, allreduce_timeout=15.0,
        )  # fmt: skip
        stack.callback(banned.shutdown)
        bans.ban(str(dht.peer_id))
        stack.callback(bans.lift)
        for node in (a.dht, b.dht, dht):
            report_progress(node, EPOCH + 2)
        first = a.step(gather=EPOCH + 2, wait=False, timeout=60, weight=1.0)
        time.sleep(1.5)  # it leads
        with_ban, ours = (one.step(gather=EPOCH + 2, wait=False, timeout=60, weight=1.0) for one in (banned, b))
        assert len(first.result(70)) == len(with_ban.result(70)) == 3, "all were in one group"
        assert not ours.done()
        assert average_of(b) == 1.0
        ours.cancel()


def report_progress(dht: hivemind.DHT, epoch: int) -> None:
    """What a trainer says, signed as a trainer signs it."""
    public = RSASignatureValidator(RSAPrivateKey()).local_public_key
    value = ProgressRecord(
        peer_id=dht.peer_id.to_bytes(), epoch=epoch, samples_accumulated=0, samples_per_second=1.0,
        time=get_dht_time(), client_mode=False,
    )  # fmt: skip
    assert dht.store(f"{PREFIX}_progress", value.model_dump(), get_dht_time() + 60, subkey=public)
