"""Loading the state from donors, of which some lie: a newcomer gets an honest one's.

Every lie is sent to a `StateDownloader` by a donor that is a Python generator; with real peers on loopback only what
depends on the network is tested.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, AsyncIterator  # noqa: UP035 (hivemind reads the annotations of rpc_* and knows these alone)

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import hivemind
import torch
from hivemind.compression import Float16Compression, serialize_torch_tensor
from hivemind.p2p import P2PContext
from hivemind.proto import averaging_pb2, runtime_pb2
from hivemind.utils import MSGPackSerializer
from hivemind.utils.asyncio import aiter_with_timeout
from hivemind.utils.streaming import split_for_streaming

from tests.support.waiting import run_async, wait_for
from ttt.errors import Cancelled, CheckpointError
from ttt.swarm.averaging.allreduce import Traffic
from ttt.swarm.averaging.hivemind_options import make_state_server
from ttt.swarm.averaging.state_averager import SwarmStateAverager
from ttt.swarm.averaging.state_transfer import STATE_FORMAT, IncomingState, StateDownloader, rank_donors
from ttt.swarm.averaging.training_state import OptimizerSpec, TrainingState, parameter_names, snapshot
from ttt.swarm.config.run_config import AveragingSection
from ttt.swarm.dht.access import AccessPolicy, Action, AllowAll, Decision
from ttt.swarm.dht.node import find_donors, parse_donors
from ttt.train.optimizer import Lamb, linear_schedule

RUN, STEP, CREDIBLE = "donors-g0", 3, 5
Message = averaging_pb2.DownloadData


def messages(state: dict[str, Any], compress: Any = serialize_torch_tensor, **changes: Any) -> Iterator[Message]:
    """What a donor sends. changes: of the metadata, which otherwise claims the credible step."""
    tensors = [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    scalars = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
    metadata = MSGPackSerializer.dumps(
        {"format": STATE_FORMAT, "epoch": CREDIBLE, "names": tensors, "scalars": scalars, **changes}
    )
    for tensor in state.values():
        if isinstance(tensor, torch.Tensor):
            for part in split_for_streaming(compress(tensor.detach())):
                yield Message(tensor_part=part, metadata=metadata)
                metadata = b""


def altered(state: dict[str, Any], change: Any) -> dict[str, Any]:
    return {name: change(value) if name == "parameters/1.weight" else value for name, value in state.items()}


def endless(state: dict[str, Any]) -> Iterator[Message]:
    first = next(messages(state))
    yield first
    more = runtime_pb2.Tensor(buffer=first.tensor_part.buffer or b"0" * 100)
    while True:
        yield Message(tensor_part=more)


SILENCE = 60.0
LIES: dict[str, Callable[[dict[str, Any]], Iterable[Message | float]]] = {
    # what a donor sends; numbers are seconds of silence
    "shape": lambda state: messages(altered(state, lambda t: t.reshape(-1))),
    "size": lambda state: messages(altered(state, lambda t: t[:-1])),
    "NaN": lambda state: messages(altered(state, lambda t: torch.full_like(t, math.nan))),
    "type": lambda state: messages(altered(state, lambda t: t.double())),
    "far ahead": lambda state: messages(state, epoch=10**9),
    "a little ahead": lambda state: messages(state, epoch=CREDIBLE + 2),
    "behind": lambda state: messages(state, epoch=STEP - 2),
    "step as text": lambda state: messages(state, epoch="5"),
    "other names": lambda state: messages({f"x{name}": value for name, value in state.items()}),
    "names of another type": lambda state: messages(state, names=[[]]),
    "no names": lambda state: messages(state, names=None),
    "infinite numbers": lambda state: messages(state, scalars={"optimizer/1.weight/step": math.inf}),
    "numbers of another type": lambda state: messages(state, scalars=7),
    "fewer tensors": lambda state: list(messages(state))[:-1],
    "more tensors": lambda state: [*messages(state), *messages(state)],
    "compressed": lambda state: messages(
        state, lambda t: serialize_torch_tensor(t, Float16Compression.compression_type)
    ),
    "broken bytes": lambda state: [Message(metadata=b"\xc1\xff" * 9, tensor_part=runtime_pb2.Tensor(dtype="float32"))],
    "code": lambda state: [Message(metadata=b"cos\nsystem\n(S'false'\ntR.")],
    "nothing": lambda state: [],
    "endless": endless,
    "endless empty messages": lambda state: [next(messages(state)), *[Message()] * 100_000],
    "silence": lambda state: [SILENCE],
}


# Without a network


def own_state() -> dict[str, Any]:
    return {
        "parameters/0.bias": torch.rand(7),
        "parameters/1.weight": torch.rand(300, 70),
        "optimizer/1.weight/step": 4,
    }


class OneAtATime:
    """Donors that answer with what the functions yield; remembers which were asked."""

    def __init__(self, **donors: Callable[[dict[str, Any]], Iterable[Message | float]]) -> None:
        self.donors, self.asked, self.state = donors, list[str](), own_state()
        self.traffic = Traffic()

    async def request(self, donor: Any) -> AsyncIterator[Message]:
        self.asked.append(donor)

        async def stream() -> AsyncIterator[Message]:
            for message in self.donors[donor](self.state):
                if isinstance(message, float):
                    await asyncio.sleep(message)
                else:
                    yield message

        return aiter_with_timeout(stream(), 0.2)

    def download(self, claims: dict[str, float], *, access: AccessPolicy | None = None, **limits: Any) -> Any:
        limits = {"min_epoch": STEP - 1, "credible": CREDIBLE, "timeout": 10.0, **limits}
        downloader = StateDownloader(self.request, access=access or AllowAll(), traffic=self.traffic)
        return run_async(downloader.download(claims, lambda: self.state, **limits))  # type: ignore[arg-type]


def honest(state: dict[str, Any]) -> Iterator[Message]:
    return messages({name: value * 0 + 1 for name, value in state.items()}, epoch=STEP)


@pytest.mark.parametrize("lie", LIES)
def test_after_a_lie_the_next_donor_is_asked(lie: str) -> None:
    swarm = OneAtATime(liar=LIES[lie], honest=honest)
    state = swarm.download({"liar": 10**7, "honest": STEP})
    assert swarm.asked == ["liar", "honest"]
    assert isinstance(state, TrainingState) and state.step == STEP and state.scalars == {"optimizer/1.weight/step": 1}
    assert state.tensors.keys() == {"parameters/0.bias", "parameters/1.weight"}
    assert all(bool((tensor == 1).all()) for tensor in state.tensors.values())


def test_an_honest_state_is_loaded_as_it_is_and_counted() -> None:
    swarm = OneAtATime(honest=messages)
    state = swarm.download({"honest": CREDIBLE})
    assert state.step == CREDIBLE and state.scalars == {"optimizer/1.weight/step": 4}
    assert all(torch.equal(tensor, swarm.state[name]) for name, tensor in state.tensors.items())
    assert swarm.traffic.total_received > 4 * (7 + 300 * 70) and swarm.traffic.total_sent == 0


def test_without_progress_of_peers_the_donors_vouch_for_each_other() -> None:
    """What one donor alone claims is not credible."""
    swarm = OneAtATime(liar=LIES["a little ahead"], honest=honest)
    assert swarm.download({"liar": 10**7, "honest": STEP}, credible=None).step == STEP


def test_a_donor_that_our_access_policy_refuses_is_not_asked() -> None:
    class NoLiar(AccessPolicy):
        def allows(self, peer_id: str, action: Action) -> Decision:
            assert action == Action.STATE_DOWNLOAD
            return Decision(peer_id != "liar", "banned")

    swarm = OneAtATime(liar=messages, honest=honest)
    assert swarm.download({"liar": 10**7, "honest": STEP}, access=NoLiar()).step == STEP
    assert swarm.asked == ["honest"]


def test_an_older_state_than_ours_is_not_accepted() -> None:
    swarm = OneAtATime(behind=LIES["behind"], honest=honest)
    assert swarm.download({"behind": CREDIBLE, "honest": STEP}, min_epoch=STEP + 1) is None
    assert len(swarm.asked) == 2


def test_donors_that_are_slow_on_purpose_do_not_hold_us_up_for_long() -> None:
    """Each sends a message just before the time for a message is over."""
    slow = {f"slow {number}": lambda state: [0.15, next(messages(state))] * 100 for number in range(10)}
    swarm, started = OneAtATime(**slow), time.monotonic()
    assert swarm.download(dict.fromkeys(slow, CREDIBLE), timeout=0.3) is None
    assert len(swarm.asked) < 10 and time.monotonic() - started < 5


def test_an_endless_tensor_is_noticed_at_its_length() -> None:
    own = {"parameters/1.weight": torch.rand(1000)}
    incoming, stream = IncomingState(own, 0, CREDIBLE), endless(own)
    incoming.add(next(stream))
    with pytest.raises(CheckpointError, match="more than"):
        incoming.add(next(stream))


def test_liars_do_not_always_come_first() -> None:
    donors = {"liar": 1e30, "ada": 7.0, "bob": 7.0, "old": 5.0, "broken": math.nan}
    orders = [rank_donors(donors, 7, {}) for _ in range(200)]
    assert {order[0] for order in orders} == {"liar", "ada", "bob"}
    assert all(order[3:] == ["old"] for order in orders)
    orders = [rank_donors(donors, 7, {"liar": 1}) for _ in range(50)]
    assert {order[0] for order in orders} == {"ada", "bob"} and {order[2] for order in orders} == {"liar"}


def test_malformed_records_of_donors_are_skipped() -> None:
    entries = {b"\x12 " + b"a" * 32: SimpleNamespace(value=3), b"x": SimpleNamespace(value="3"), 7: 8}
    assert list(parse_donors(entries).values()) == [3.0]
    assert parse_donors(None) == parse_donors([1]) == {}


# With real peers


def optimizer_spec() -> OptimizerSpec:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 60), torch.nn.Linear(60, 5))
    groups = [{"params": list(model.parameters())}]
    # 8-bit state would import bitsandbytes, which takes 20 s on a busy machine.
    return OptimizerSpec(
        groups, parameter_names(groups, model), lambda params: Lamb(params, lr=0.1, state_bits=32),
        lambda made: linear_schedule(made, total_steps=100, warmup_steps=1),
    )  # fmt: skip


SLOW = -1
"""Instead of the index of a lie: an honest state, with half a second of silence before each message."""


class Liar(SwarmStateAverager):
    """Offers what `lie` says, and counts how often it is asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        context = torch.multiprocessing.get_context("fork")
        self.lie, self.asked = context.Value(ctypes.c_int, 0), context.Value(ctypes.c_int, 0)
        super().__init__(*args, **kwargs)

    async def rpc_download_state(
        self, request: averaging_pb2.DownloadRequest, context: P2PContext
    ) -> AsyncIterator[averaging_pb2.DownloadData]:
        self.asked.value += 1
        state = self.expected_state()
        if self.lie.value == SLOW:
            answers: Iterable[Message | float] = [part for message in messages(state) for part in (0.2, message)]
        else:
            answers = [*LIES.values()][self.lie.value](state)
        for message in answers:
            if isinstance(message, float):
                await asyncio.sleep(message)
            else:
                yield message


Liar.__name__ = "SwarmStateAverager"  # a peer calls others by the name of its class


@dataclass
class Swarm:
    newcomer: SwarmStateAverager
    honest: SwarmStateAverager
    liar: Liar


@pytest.fixture(scope="module")
def donors() -> Iterator[Swarm]:
    settings = AveragingSection(matchmaking_time=2, request_timeout=1, chunk_timeout=1, averaging_timeout=8)
    with ExitStack() as stack:
        servers, addresses = [], []
        for kind in (SwarmStateAverager, SwarmStateAverager, Liar):
            dht = hivemind.DHT(initial_peers=addresses, start=True)
            stack.callback(dht.shutdown)
            addresses = addresses or dht.get_visible_maddrs()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("ttt.swarm.averaging.hivemind_options.SwarmStateAverager", kind)
                servers.append(make_state_server(dht, RUN, optimizer_spec(), settings, AllowAll()))
            stack.callback(servers[-1].shutdown)
        newcomer, donor, liar = servers
        donor.local_epoch = STEP
        with torch.no_grad():
            for parameter in parameters(donor):
                parameter.fill_(0.25)
        for server, priority in ((donor, STEP), (liar, 10**7)):
            server.state_sharing_priority = priority
            server.allow_state_sharing = True
        assert wait_for(lambda: len(find_donors(newcomer.dht, RUN)) == 2, 20)
        yield Swarm(newcomer, donor, liar)


def prepare(donors: Swarm, lie: str, *, step: int) -> int:
    """Give the newcomer a state of this step, and the liar its lie; returns how often the liar was asked before."""
    donors.newcomer.load(fresh(donors.newcomer, step))
    donors.newcomer.credible_epoch = lambda: CREDIBLE  # the liar claims more, so it is asked first
    donors.liar.lie.value = list(LIES).index(lie)
    return int(donors.liar.asked.value)


@pytest.mark.parametrize("lie", ["NaN", "silence"])
def test_a_newcomer_gets_the_honest_state(donors: Swarm, lie: str) -> None:
    before = prepare(donors, lie, step=STEP - 1)
    assert donors.newcomer.load_state_from_peers(timeout=8)
    assert donors.liar.asked.value == before + 1
    assert donors.newcomer.local_epoch == STEP
    assert all(bool((tensor == 0.25).all()) for tensor in parameters(donors.newcomer))


def test_a_donor_may_take_the_time_that_its_state_needs(donors: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare(donors, "nothing", step=STEP - 1)
    donors.liar.lie.value = SLOW
    monkeypatch.setattr("ttt.swarm.averaging.state_transfer.MIN_BYTES_PER_SECOND", 10_000)
    assert donors.newcomer.load_state_from_peers(timeout=0.5)
    assert donors.liar.asked.value == before + 1
    assert not any(bool((tensor == 0.25).all()) for tensor in parameters(donors.newcomer)), "it gave up too early"


def test_a_donor_serves_one_peer_only_once_at_a_time(donors: Swarm) -> None:
    """The peer calls the donor itself, while another download of it is under way."""
    newcomer, donor = donors.newcomer, donors.honest

    async def download_twice() -> tuple[int, int]:
        p2p = await newcomer.dht.replicate_p2p()
        stub = SwarmStateAverager.get_stub(p2p, donor.peer_id, namespace=donor.prefix)
        with donor.lock_averaged_tensors:  # its snapshot has to wait, and a download with it
            both = [asyncio.create_task(count_messages(stub)) for _ in range(2)]
            (refused,), (first,) = await asyncio.wait(both, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        return await asyncio.wait_for(first, 30), refused.result()

    async def count_messages(stub: Any) -> int:
        return len([message async for message in await stub.rpc_download_state(averaging_pb2.DownloadRequest())])

    complete, refused = run_async(download_twice())
    assert complete >= len(parameters(donor)) and refused == 0


def test_where_all_donors_are_older_our_state_stays(donors: Swarm) -> None:
    prepare(donors, "behind", step=STEP + 1)
    assert not donors.newcomer.load_state_from_peers(timeout=8)
    assert donors.newcomer.local_epoch == STEP + 1
    assert all(bool((tensor == 1).all()) for tensor in parameters(donors.newcomer))


def test_a_silent_donor_does_not_keep_a_peer_that_is_asked_to_leave(
    donors: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(donors, "silence", step=0)
    monkeypatch.setattr(donors.newcomer, "stop_requested", lambda: True)
    with pytest.raises(Cancelled):
        donors.newcomer.load_state_from_peers(timeout=8)


def parameters(averager: SwarmStateAverager) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = averager.optimizer.param_groups[0]["params"]
    return tensors


def fresh(averager: SwarmStateAverager, step: int) -> TrainingState:
    """The averager's state with all parameters 1."""
    state = snapshot(averager.optimizer, averager.names, step, copy=True)
    for name, tensor in state.tensors.items():
        if name.startswith("parameters/"):
            tensor.fill_(1.0)
    return state
