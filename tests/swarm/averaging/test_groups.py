"""Finding a group among strangers: hostile messages as bytes, and real peers on loopback of which one lies."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from ttt.swarm.averaging.group_messages import (
    Gathered,
    check_group,
    check_join_request,
    check_members,
    group_key,
    parse_gathered,
)
from ttt.swarm.averaging.matchmaking import EpochMatchmaking
from ttt.swarm.dht.access import AccessPolicy, Action, Decision
from ttt.swarm.dht.node import get_record
from ttt.swarm.dht.validation import ProgressRecord

PREFIX, STEP, SIZE = "groups", 7, 2000
TIMES = {
    "min_matchmaking_time": 2.0, "request_timeout": 0.7, "next_chunk_timeout": 2.0, "sender_timeout": 1.5,
    "reducer_timeout": 2.0, "allreduce_timeout": 15.0,
}  # fmt: skip
Code = averaging_pb2.MessageCode
NOT_YET = (Code.NOT_LOOKING_FOR_GROUP, Code.BAD_GROUP_KEY, Code.NOT_DECLARED)


def gathered(step: Any = STEP, mode: Any = 0, bandwidth: Any = None) -> bytes:
    return MSGPackSerializer.dumps([bandwidth, mode, MSGPackSerializer.dumps(step)])


CONTRADICTION = "a client that is not one"
HOSTILE = {
    "nothing": b"",
    "garbage": b"\xc1\xff\x00" * 5,
    "code": b"cos\nsystem\n(S'false'\ntR.",
    "not a list": MSGPackSerializer.dumps(7),
    "too short": MSGPackSerializer.dumps([None, 0]),
    "too long": MSGPackSerializer.dumps([None, 0, MSGPackSerializer.dumps(STEP), 1]),
    "step unpacked": MSGPackSerializer.dumps([None, 0, STEP]),
    "step as text": gathered("7"),
    "step is true": gathered(True),
    "step below zero": gathered(-1),
    "step out of range": gathered(10**12),
    "another step": gathered(STEP + 1),
    "unknown mode": gathered(mode=9),
    "mode as text": gathered(mode="0"),
    "highest bandwidth": gathered(bandwidth=1e30),
    "bandwidth is NaN": gathered(bandwidth=float("nan")),
    CONTRADICTION: gathered(mode=AveragingMode.CLIENT.value),
    "huge": gathered() + b"0" * 10_000,
    "nested": b"\x91" * 200 + b"\x00",
}


# Messages as bytes


def test_hostile_data_of_a_member_is_invalid() -> None:
    valid = {name for name, data in HOSTILE.items() if parse_gathered(data) is not None}
    assert valid == {"another step", CONTRADICTION}  # these two contradict the request or the group
    assert parse_gathered(gathered()) == Gathered(AveragingMode.NODE, STEP)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_to_join_is_refused(name: str) -> None:
    assert check_join_request(averaging_pb2.JoinRequest(gather=HOSTILE[name], client_mode=False), STEP)


@pytest.mark.parametrize("mode", AveragingMode)
def test_an_honest_request_to_join_is_accepted(mode: AveragingMode) -> None:
    request = averaging_pb2.JoinRequest(gather=gathered(mode=mode.value), client_mode=mode == AveragingMode.CLIENT)
    assert check_join_request(request, STEP) == ""


def fake_id(number: int) -> PeerID:
    return PeerID(b"\x12\x20" + bytes([number]) * 32)


def announcements(leader: PeerID, follower: PeerID, data: bytes) -> list[averaging_pb2.MessageFromLeader]:
    """Every lie of a leader."""
    us = [leader.to_bytes(), follower.to_bytes()]

    def begin(members: list[bytes], data: list[bytes], group: bytes = b"g" * 20) -> averaging_pb2.MessageFromLeader:
        return averaging_pb2.MessageFromLeader(
            code=Code.BEGIN_ALLREDUCE, group_id=group, ordered_peer_ids=members, gathered=data
        )

    return [
        *(begin(us, [bad, data]) for name, bad in HOSTILE.items() if name != CONTRADICTION),
        begin(us, [data, gathered(mode=1)]),  # the follower's own data, changed
        begin(us, [data]),
        begin([us[0], us[0], us[1]], [data] * 3),
        begin([us[0], b"x", us[1]], [data] * 3),
        begin(us[:1], [data]),
        begin([us[0], us[0][:-1] + b"x"], [data] * 2),  # without the follower
        begin([us[1], us[1][:-1] + b"x"], [data] * 2),  # without the leader
        begin(us, [data] * 2, group=b""),
        averaging_pb2.MessageFromLeader(code=Code.GROUP_DISBANDED, suggested_leader=b"an id of no peer"),
        averaging_pb2.MessageFromLeader(code=Code.GROUP_DISBANDED, suggested_leader=us[0]),  # in a circle
        averaging_pb2.MessageFromLeader(code=Code.ACCEPTED),
    ]


def test_no_lie_of_a_leader_passes_for_a_group() -> None:
    leader, follower = fake_id(1), fake_id(2)

    def check(message: averaging_pb2.MessageFromLeader, data: bytes = gathered()) -> str:
        return check_group(message, leader=leader, own=follower, own_data=data)

    lies = [m for m in announcements(leader, follower, gathered()) if m.code == Code.BEGIN_ALLREDUCE]
    assert len(lies) > 20 and all(map(check, lies))
    honest = averaging_pb2.MessageFromLeader(
        code=Code.BEGIN_ALLREDUCE, group_id=b"g" * 20, gathered=[gathered()] * 2,
        ordered_peer_ids=[leader.to_bytes(), follower.to_bytes()],
    )  # fmt: skip
    assert check(honest) == ""
    one_client, clients = averaging_pb2.MessageFromLeader(), averaging_pb2.MessageFromLeader()
    for message in (one_client, clients):
        message.CopyFrom(honest)
        message.gathered[1] = gathered(mode=1)
    clients.gathered[0] = gathered(mode=1)
    assert check(one_client, gathered(mode=1)) == ""
    assert "none can reduce" in check(clients, gathered(mode=1))


class RefuseOne(AccessPolicy):
    """Refuses one peer, and remembers every question."""

    def __init__(self, refused: PeerID) -> None:
        self.refused, self.questions = str(refused), list[tuple[str, Action]]()

    def allows(self, peer_id: str, action: Action) -> Decision:
        self.questions.append((peer_id, action))
        return Decision(peer_id != self.refused, "sent NaN 20 times")


def test_the_access_policy_is_asked_about_every_other_member_of_a_group() -> None:
    leader, own, other, banned = (fake_id(number) for number in range(1, 5))

    def check(*members: PeerID, access: AccessPolicy) -> str:
        ids = [member.to_bytes() for member in members]
        return check_members(averaging_pb2.MessageFromLeader(ordered_peer_ids=ids), own=own, access=access)

    access = RefuseOne(banned)
    assert check(leader, own, other, access=access) == ""
    assert access.questions == [(str(leader), Action.JOIN_GROUP), (str(other), Action.JOIN_GROUP)]
    reason = check(leader, own, other, banned, access=access)
    assert reason == f"{banned} may not join an averaging group: sent NaN 20 times"
    assert check(leader, own, access=RefuseOne(own)) == ""


# Real peers

LIES_TOLD = torch.multiprocessing.get_context("fork").Value(ctypes.c_int, 0)
"""By the lying leader, which runs in a process of its own."""


class LyingMatchmaking(EpochMatchmaking):
    """Accepts every follower, and announces an invalid group, each time another one. Never follows another leader."""

    async def _request_join_group(self, leader: PeerID) -> None:
        return None

    async def rpc_join_group(
        self, request: averaging_pb2.JoinRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.MessageFromLeader]:
        yield averaging_pb2.MessageFromLeader(code=Code.ACCEPTED)
        lies = announcements(self.peer_id, context.remote_id, request.gather)
        LIES_TOLD.value += 1
        yield lies[LIES_TOLD.value % len(lies)]


class Honest(GuardedAverager):
    """A class of its own: hivemind stores a class's RPC methods where subclasses find them, under the wrong name."""


class Liar(GuardedAverager):
    matchmaking = LyingMatchmaking


Liar.__name__ = "Honest"  # a peer calls others by the name of its class


def average_of(averager: GuardedAverager) -> float:
    with averager.get_tensors() as (tensor,):
        assert bool((tensor == tensor[0]).all())
        return float(tensor[0])


@contextmanager
def peer(kind: type[GuardedAverager], addresses: list[Any], value: float = 0.0, **options: Any) -> Iterator[Any]:
    dht = hivemind.DHT(initial_peers=addresses, start=True)
    try:
        averager = kind([torch.full((SIZE,), value)], dht, start=True, prefix=PREFIX, **TIMES, **options)
        try:
            yield averager
        finally:
            averager.shutdown()
    finally:
        dht.shutdown()


@pytest.fixture(scope="module")
def bans(tmp_path_factory: pytest.TempPathFactory) -> BanFile:
    """The access policy of the second honest peer."""
    return BanFile(tmp_path_factory.mktemp("access") / "bans")


@pytest.fixture(scope="module")
def averagers(bans: BanFile) -> Iterator[list[GuardedAverager]]:
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            "ttt.swarm.averaging.matchmaking.COUNT_SECONDS", 0.1
        )  # the averagers' processes are forked below and inherit it
        made, addresses = [], list[Any]()
        for kind, access in ((Honest, None), (Honest, bans), (Liar, None)):
            made.append(stack.enter_context(peer(kind, addresses, access=access)))
            addresses = addresses or made[0].dht.get_visible_maddrs()
        yield made


@pytest.fixture
def peers(averagers: list[GuardedAverager]) -> list[GuardedAverager]:
    """Two honest ones and a liar, each with a value of its own: 0, 1 and 2."""
    for value, averager in enumerate(averagers):
        with averager.get_tensors() as (tensor,):
            tensor.fill_(float(value))
    return averagers


def looks_for_group(observer: GuardedAverager, averager: GuardedAverager, step: int) -> bool:
    """Whether an averager has declared that it looks for a group of this step."""
    declared = get_record(observer.dht, group_key(PREFIX, step)) or {}
    return averager.peer_id.to_bytes() in declared


def test_a_leader_that_lies_holds_up_no_peer(peers: list[GuardedAverager]) -> None:
    a, b, liar = peers

    def one_round() -> int:
        """Average with the liar at hand; returns the number of its lies."""
        before = LIES_TOLD.value
        theirs = liar.step(gather=STEP, wait=False, timeout=60)
        assert wait_for(lambda: looks_for_group(a, liar, STEP), 20, every=0.02)
        ours = [averager.step(gather=STEP, wait=False, timeout=60, weight=1.0) for averager in (a, b)]
        for step in ours:
            assert len(step.result(70)) == 2
        theirs.cancel()
        assert average_of(a) == average_of(b) == 0.5
        return int(LIES_TOLD.value - before)

    assert any(one_round() for _ in range(5)), "the liar was not asked"
    for _ in range(2):  # by now both peers may have been lied to
        one_round()
    assert one_round() == 0, "it was asked again after it had lied"
    assert average_of(liar) == 2.0


def test_a_hostile_request_is_refused_and_the_next_honest_one_accepted(peers: list[GuardedAverager]) -> None:
    a, b, _ = peers
    hostile = {name: HOSTILE[name] for name in ("garbage", CONTRADICTION)}
    step = a.step(gather=STEP, wait=False, timeout=60, weight=1.0)
    codes = run_async(ask_all(b, a, hostile))
    assert codes == {name: [Code.PROTOCOL_VIOLATION] for name in hostile}
    assert not step.done()
    assert len(b.step(gather=STEP, timeout=60, weight=1.0)) == len(step.result(70)) == 2
    assert average_of(a) == average_of(b) == 0.5


async def ask_all(
    follower: GuardedAverager, leader: GuardedAverager, requests: dict[str, bytes]
) -> dict[str, list[Any]]:
    """What a leader answers to requests to join its group."""
    p2p = await follower.dht.replicate_p2p()
    stub = type(leader).get_stub(p2p, leader.peer_id, namespace=PREFIX)
    return {name: await ask(stub, leader, data) for name, data in requests.items()}


async def ask(stub: Any, leader: GuardedAverager, data: bytes) -> list[Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stream = await stub.rpc_join_group(
            averaging_pb2.JoinRequest(
                schema_hash=leader.schema_hash, expiration=get_dht_time() + 30, gather=data, client_mode=False,
                group_key=group_key(PREFIX, STEP),
            )
        )  # fmt: skip
        codes = [message.code async for message in stream]
        if codes[0] not in NOT_YET:  # it has just begun to look for a group, or is between two attempts
            return codes
        await asyncio.sleep(0.1)
    raise AssertionError(f"still {codes}")


def test_peers_of_different_steps_do_not_average(peers: list[GuardedAverager]) -> None:
    a, b, _ = peers
    steps = [peer.step(gather=STEP + n, wait=False, timeout=2.5, weight=1.0) for n, peer in enumerate((a, b))]
    assert wait_for(lambda: all(step.done() for step in steps), 30)
    assert average_of(a) == 0.0 and average_of(b) == 1.0


def test_the_search_of_a_cancelled_step_ends(peers: list[GuardedAverager]) -> None:
    """Even if the news of it arrives before the step is marked: the next step would have to wait for it."""
    a, b, _ = peers
    step = a.step(gather=STEP, wait=False, timeout=300)
    assert wait_for(lambda: looks_for_group(b, a, STEP), 20)
    step._cancel.set_result(None)
    time.sleep(0.5)
    assert MPFuture.cancel(step)
    steps = [averager.step(gather=STEP + 1, wait=False, timeout=60, weight=1.0) for averager in (a, b)]
    assert all(len(step.result(70)) == 2 for step in steps)


def test_an_auxiliary_peer_that_comes_late_gives_up(peers: list[GuardedAverager]) -> None:
    """The others are at a later step: no trainer will come, and its timeout is far away."""
    a, b, _ = peers
    with peer(Honest, a.dht.get_visible_maddrs(), auxiliary=True) as auxiliary:
        step = auxiliary.step(gather=STEP, wait=False, timeout=300)
        assert wait_for(lambda: looks_for_group(a, auxiliary, STEP), 20)
        assert not step.done(), "the others have not moved on yet"
        for node, reported in ((a.dht, STEP + 1), (b.dht, STEP)):
            report_progress(node, reported)
        with pytest.raises(MatchmakingException, match="have moved on"):
            step.result(60)


def test_a_group_with_a_member_that_our_access_policy_refuses_is_left(
    peers: list[GuardedAverager], bans: BanFile
) -> None:
    """Its leader knows of no ban: it averages with the banned peer, and without us."""
    a, b, _ = peers
    with peer(Honest, a.dht.get_visible_maddrs(), value=8.0) as banned, ExitStack() as stack:
        bans.ban(str(banned.peer_id))
        stack.callback(bans.lift)
        for node in (a.dht, b.dht, banned.dht):
            report_progress(node, STEP + 2)
        first = a.step(gather=STEP + 2, wait=False, timeout=60, weight=1.0)
        assert wait_for(lambda: looks_for_group(b, a, STEP + 2), 20, every=0.02)  # it leads
        theirs, ours = (peer.step(gather=STEP + 2, wait=False, timeout=60, weight=1.0) for peer in (banned, b))
        assert len(first.result(70)) == len(theirs.result(70)) == 3, "all were in one group"
        assert not ours.done()
        assert average_of(b) == 1.0
        ours.cancel()


def report_progress(dht: hivemind.DHT, step: int) -> None:
    """Publish the progress of a trainer, signed."""
    public = RSASignatureValidator(RSAPrivateKey()).local_public_key
    value = ProgressRecord(
        peer_id=dht.peer_id.to_bytes(), epoch=step, samples_accumulated=0, samples_per_second=1.0,
        time=get_dht_time(), client_mode=False,
    )  # fmt: skip
    assert dht.store(f"{PREFIX}_progress", value.model_dump(), get_dht_time() + 60, subkey=public)
