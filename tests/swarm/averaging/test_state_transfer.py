"""Taking the state from donors one of which lies, with real peers on loopback: a newcomer gets the honest one's."""

from __future__ import annotations

import asyncio
import ctypes
import math
import sys
from collections.abc import Iterator
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
from hivemind.utils.streaming import split_for_streaming

from tests.support.waiting import run_async, wait_for
from ttt.errors import Cancelled, CheckpointError
from ttt.swarm.averaging.hivemind_options import make_state_server
from ttt.swarm.averaging.state_averager import SwarmStateAverager
from ttt.swarm.averaging.state_transfer import STATE_FORMAT, IncomingState, rank_donors
from ttt.swarm.averaging.training_state import OptimizerSpec, parameter_names, snapshot
from ttt.swarm.config.run_config import AveragingSection
from ttt.swarm.dht.access import AllowAll
from ttt.swarm.dht.node import find_donors, parse_donors
from ttt.train.optimizer import Lamb, linear_schedule

RUN, EPOCH, NEWEST = "donors-g0", 3, 5
SETTINGS = AveragingSection(matchmaking_time=2, request_timeout=1, chunk_timeout=1, averaging_timeout=8)
Message = averaging_pb2.DownloadData


def about(state: dict[str, Any], **changes: Any) -> bytes:
    tensors = [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    scalars = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
    return MSGPackSerializer.dumps(
        {"format": STATE_FORMAT, "epoch": NEWEST, "names": tensors, "scalars": scalars, **changes}
    )


def messages(state: dict[str, Any], compress: Any = serialize_torch_tensor, **changes: Any) -> Iterator[Message]:
    metadata = about(state, **changes)
    for tensor in state.values():
        if isinstance(tensor, torch.Tensor):
            for part in split_for_streaming(compress(tensor.detach())):
                yield Message(tensor_part=part, metadata=metadata)
                metadata = b""


def altered(state: dict[str, Any], change: Any) -> dict[str, Any]:
    return {name: change(value) if name == "parameters/1.weight" else value for name, value in state.items()}


def forever(state: dict[str, Any]) -> Iterator[Message]:
    first = next(messages(state))
    yield first
    more = runtime_pb2.Tensor(buffer=first.tensor_part.buffer or b"0" * 100)
    while True:
        yield Message(tensor_part=more)


LIES: dict[str, Any] = {
    "shape": lambda state: messages(altered(state, lambda t: t.reshape(-1))),
    "size": lambda state: messages(altered(state, lambda t: t[:-1])),
    "NaN": lambda state: messages(altered(state, lambda t: torch.full_like(t, math.nan))),
    "type": lambda state: messages(altered(state, lambda t: t.double())),
    "far ahead": lambda state: messages(state, epoch=10**9),
    "a little ahead": lambda state: messages(state, epoch=NEWEST + 2),
    "behind": lambda state: messages(state, epoch=EPOCH - 2),
    "no step": lambda state: messages(state, epoch="5"),
    "names": lambda state: messages({f"x{name}": value for name, value in state.items()}),
    "names that are none": lambda state: messages(state, names=[[]]),
    "no names": lambda state: messages(state, names=None),
    "numbers": lambda state: messages(state, scalars={"optimizer/0.weight/step": math.inf}),
    "numbers that are none": lambda state: messages(state, scalars=7),
    "fewer": lambda state: list(messages(state))[:-1],
    "more": lambda state: [*messages(state), *messages(state)],
    "compressed": lambda state: messages(
        state, lambda t: serialize_torch_tensor(t, Float16Compression.compression_type)
    ),
    "broken bytes": lambda state: [Message(metadata=b"\xc1\xff" * 9, tensor_part=runtime_pb2.Tensor(dtype="float32"))],
    "code": lambda state: [Message(metadata=b"cos\nsystem\n(S'false'\ntR.")],
    "nothing": lambda state: [],
    "endless": forever,
    "endless nothing": lambda state: [next(messages(state)), *[Message()] * 100_000],
    "silence": lambda state: [60.0],
}
SLOWLY = [lambda state: [part for message in messages(state) for part in (0.5, message)]]
"""Honest, with seconds of silence before each message."""


def optimizer_spec() -> OptimizerSpec:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 60), torch.nn.Linear(60, 5))
    groups = [{"params": list(model.parameters())}]
    return OptimizerSpec(
        groups, parameter_names(groups, model), lambda params: Lamb(params, lr=0.1),
        lambda made: linear_schedule(made, total_steps=100, warmup_steps=1),
    )  # fmt: skip


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
        for message in [*LIES.values(), *SLOWLY][self.lie.value](self.expected_state()):
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
def swarm() -> Iterator[Swarm]:
    with ExitStack() as stack:
        keepers, addresses = [], []
        for kind in (SwarmStateAverager, SwarmStateAverager, Liar):
            dht = hivemind.DHT(initial_peers=addresses, start=True)
            stack.callback(dht.shutdown)
            addresses = addresses or dht.get_visible_maddrs()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("ttt.swarm.averaging.hivemind_options.SwarmStateAverager", kind)
                keepers.append(make_state_server(dht, RUN, optimizer_spec(), SETTINGS, AllowAll()))
            stack.callback(keepers[-1].shutdown)
        newcomer, honest, liar = keepers
        honest.local_epoch = EPOCH
        with torch.no_grad():
            for parameter in honest.optimizer.param_groups[0]["params"]:
                parameter.fill_(0.25)
        for donor, priority in ((honest, EPOCH), (liar, 10**7)):
            donor.state_sharing_priority = priority
            donor.allow_state_sharing = True
        assert wait_for(lambda: len(find_donors(newcomer.dht, RUN)) == 2, 20)
        yield Swarm(newcomer, honest, liar)


@pytest.mark.parametrize("lie", LIES)
def test_a_newcomer_gets_the_honest_state(swarm: Swarm, lie: str) -> None:
    newcomer = swarm.newcomer
    newcomer.load(fresh(newcomer, epoch=EPOCH - 1))
    newcomer.credible_epoch = lambda: NEWEST  # as the swarm's progress says: the liar is asked first, every time
    swarm.liar.lie.value, before = list(LIES).index(lie), swarm.liar.asked.value
    assert newcomer.load_state_from_peers(timeout=8)
    assert swarm.liar.asked.value == before + 1
    assert newcomer.local_epoch == EPOCH
    assert all(bool((tensor == 0.25).all()) for tensor in parameters(newcomer))


def test_where_nobody_trains_the_donors_vouch_for_each_other(swarm: Swarm) -> None:
    """No progress is reported: what one donor alone claims is not believed."""
    newcomer = swarm.newcomer
    newcomer.load(fresh(newcomer, epoch=0))
    newcomer.credible_epoch = lambda: None
    swarm.liar.lie.value = list(LIES).index("a little ahead")
    assert newcomer.load_state_from_peers(timeout=8)
    assert newcomer.local_epoch == EPOCH


def test_a_donor_may_take_the_time_that_its_state_needs(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer = swarm.newcomer
    newcomer.load(fresh(newcomer, epoch=EPOCH - 1))
    newcomer.credible_epoch = lambda: NEWEST
    swarm.liar.lie.value, before = len(LIES), swarm.liar.asked.value
    monkeypatch.setattr("ttt.swarm.averaging.state_transfer.MIN_BYTES_PER_SECOND", 10_000)
    assert newcomer.load_state_from_peers(timeout=1)
    assert swarm.liar.asked.value == before + 1
    assert not any(bool((tensor == 0.25).all()) for tensor in parameters(newcomer)), "it gave up too early"


def test_one_peer_takes_one_state_at_a_time(swarm: Swarm) -> None:
    """Asked by its own stub, while another download of the same peer is under way."""
    newcomer, honest = swarm.newcomer, swarm.honest

    async def taken() -> tuple[int, int]:
        p2p = await newcomer.dht.replicate_p2p()
        stub = SwarmStateAverager.get_stub(p2p, honest.peer_id, namespace=honest.prefix)
        with honest.lock_averaged_tensors:  # its state has to wait, and a download with it
            both = [asyncio.create_task(count_of(stub)) for _ in range(2)]
            (refused,), (first,) = await asyncio.wait(both, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        return await asyncio.wait_for(first, 30), refused.result()

    async def count_of(stub: Any) -> int:
        return len([message async for message in await stub.rpc_download_state(averaging_pb2.DownloadRequest())])

    whole, refused = run_async(taken())
    assert whole >= len(parameters(honest)) and refused == 0


def test_an_older_state_than_ours_is_not_taken(swarm: Swarm) -> None:
    newcomer = swarm.newcomer
    newcomer.load(fresh(newcomer, epoch=EPOCH + 1))
    swarm.liar.lie.value = list(LIES).index("behind")
    assert not newcomer.load_state_from_peers(timeout=8)
    assert newcomer.local_epoch == EPOCH + 1
    assert all(bool((tensor == 1).all()) for tensor in parameters(newcomer))


def test_a_silent_donor_does_not_keep_a_peer_that_is_asked_to_leave(swarm: Swarm) -> None:
    newcomer = swarm.newcomer
    newcomer.load(fresh(newcomer, epoch=0))
    newcomer.credible_epoch = lambda: NEWEST
    newcomer.stop_requested = lambda: True
    swarm.liar.lie.value = list(LIES).index("silence")
    try:
        with pytest.raises(Cancelled):
            newcomer.load_state_from_peers(timeout=8)
    finally:
        newcomer.stop_requested = lambda: False


def parameters(averager: SwarmStateAverager) -> list[torch.Tensor]:
    return averager.optimizer.param_groups[0]["params"]


def fresh(averager: SwarmStateAverager, epoch: int) -> Any:
    state = snapshot(averager.optimizer, averager.names, epoch, copy=True)
    for name, tensor in state.tensors.items():
        if name.startswith("parameters/"):
            tensor.fill_(1.0)
    return state


# By hand


def test_an_honest_state_passes_the_same_check() -> None:
    own = {"parameters/1.weight": torch.rand(300, 70), "optimizer/1.weight/step": 4}
    incoming = IncomingState(own, 0, NEWEST)
    for message in messages(own):
        incoming.add(message)
    state = incoming.finish()
    assert state.epoch == NEWEST and state.scalars == {"optimizer/1.weight/step": 4}
    assert torch.equal(state.tensors["parameters/1.weight"], own["parameters/1.weight"])


def test_an_endless_tensor_is_noticed_at_its_length() -> None:
    own = {"parameters/1.weight": torch.rand(1000)}
    incoming, stream = IncomingState(own, 0, NEWEST), forever(own)
    incoming.add(next(stream))
    with pytest.raises(CheckpointError, match="more than"):
        incoming.add(next(stream))


def test_liars_do_not_always_come_first() -> None:
    donors = {"liar": 1e30, "ada": 7.0, "bob": 7.0, "old": 5.0, "none": math.nan}
    orders = [rank_donors(donors, 7, {}) for _ in range(200)]
    assert {order[0] for order in orders} == {"liar", "ada", "bob"}
    assert all(order[3:] == ["old"] for order in orders)
    orders = [rank_donors(donors, 7, {"liar": 1}) for _ in range(50)]
    assert {order[0] for order in orders} == {"ada", "bob"} and {order[2] for order in orders} == {"liar"}


def test_donors_are_read_from_whatever_was_written() -> None:
    entries = {b"\x12 " + b"a" * 32: SimpleNamespace(value=3), b"x": SimpleNamespace(value="3"), 7: 8}
    assert list(parse_donors(entries).values()) == [3.0]
    assert parse_donors(None) == parse_donors([1]) == {}
