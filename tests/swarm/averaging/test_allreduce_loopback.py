"""Averaging between real peers on loopback, one of which lies: the others' tensors stay what they should be."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import hivemind
import hivemind.averaging.averager as hivemind_averager
import torch
from hivemind.averaging import DecentralizedAverager
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor

from ttt.swarm.averaging.allreduce import AllReduceReport, CheckedAllReduce

SIZE, MAX_WEIGHT = 50_000, 64.0
HONEST = {"a": (1.0, 8.0), "b": (2.0, 16.0), "c": (3.0, 8.0)}
"""name -> (value of all its elements, weight)"""
MEAN = sum(value * weight for value, weight in HONEST.values()) / sum(weight for _, weight in HONEST.values())
HONEST_RUN, SHORT_PARTS, NAN_ANSWERS = range(3)


class LyingRunner(AllReduceRunner):
    """Sends parts that are one element short, or answers every part that it should average with NaN."""

    lie = torch.multiprocessing.get_context("fork").Value(ctypes.c_int, HONEST_RUN)

    async def _generate_input_for_peer(self, peer_index: int) -> Any:
        async for message in super()._generate_input_for_peer(peer_index):
            if self.lie.value == SHORT_PARTS:
                short = deserialize_torch_tensor(message.tensor_part)[:-1]
                message.tensor_part.CopyFrom(serialize_torch_tensor(short))
            yield message

    async def _accumulate_parts_streaming(self, stream: Any, sender_index: int) -> Any:
        async for message in super()._accumulate_parts_streaming(stream, sender_index):
            if self.lie.value == NAN_ANSWERS:
                shape = tuple(message.tensor_part.size)
                message.tensor_part.CopyFrom(serialize_torch_tensor(torch.full(shape, float("nan"))))
            yield message


class Liar(DecentralizedAverager):
    def run(self) -> None:
        hivemind_averager.AllReduceRunner = LyingRunner  # in the averager's own process
        super().run()


class Watched(DecentralizedAverager):
    """Sends the report of each round to the test."""

    def run(self) -> None:
        hivemind_averager.AllReduceRunner = CheckedAllReduce
        super().run()

    async def _run_allreduce_inplace_(self, tensors: Any, group_info: Any, group_id: Any = None, **kwargs: Any) -> None:
        future = self._running_groups[group_info.group_id]
        await super()._run_allreduce_inplace_(tensors, group_info, group_id, max_weight=MAX_WEIGHT, **kwargs)
        self.report_sender.send(future.result().report)


for kind in (Liar, Watched):  # a peer calls others by the name of its class
    kind.__name__ = "DecentralizedAverager"


def make(kind: type[DecentralizedAverager], dht: hivemind.DHT) -> DecentralizedAverager:
    averager = kind(
        [torch.zeros(SIZE), torch.zeros(3)],
        dht,
        start=False,
        prefix="test",
        target_group_size=4,
        min_group_size=4,
        min_matchmaking_time=3.0,
        request_timeout=1.0,
        next_chunk_timeout=5.0,
        allreduce_timeout=20.0,
        part_size_bytes=20_000,
    )
    averager.reports, averager.report_sender = torch.multiprocessing.get_context("fork").Pipe(duplex=False)
    averager.run_in_background(await_ready=True)
    return averager


@pytest.fixture(scope="module")
def averagers() -> Iterator[dict[str, Any]]:
    """The honest peers, a liar that averages a share of the tensors, and a liar that is a client and averages none."""
    with ExitStack() as stack:
        made: dict[str, Any] = {}
        for name in (*HONEST, "liar", "client"):
            addresses = made["a"].dht.get_visible_maddrs() if made else []
            dht = hivemind.DHT(initial_peers=addresses, start=True, client_mode=name == "client")
            stack.callback(dht.shutdown)
            made[name] = make(Watched if name in HONEST else Liar, dht)
            stack.callback(made[name].shutdown)
        yield made


def average(
    averagers: dict[str, Any], liar: str, *, lie: int = HONEST_RUN, value: float = 5.0, weight: float = 8.0
) -> dict[str, AllReduceReport]:
    """One round of the honest peers with one of the liars. value, weight: of the liar."""
    LyingRunner.lie.value = lie
    values = {**HONEST, liar: (value, weight)}
    for name, (own, _) in values.items():
        with averagers[name].get_tensors() as tensors:
            for tensor in tensors:
                tensor.fill_(own)
    steps = {name: averagers[name].step(weight=weight, wait=False, timeout=60) for name, (_, weight) in values.items()}
    for name in HONEST:
        assert len(steps[name].result(90)) == 4
    steps[liar].cancel()
    reports = {}
    for name in HONEST:
        assert averagers[name].reports.poll(10)
        reports[name] = averagers[name].reports.recv()
    return reports


def tensors_of(averager: DecentralizedAverager) -> torch.Tensor:
    with averager.get_tensors() as tensors:
        return torch.cat([tensor.clone() for tensor in tensors])


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"value": float("nan")}, "it holds NaN or infinity"),
        ({"weight": 1e9}, "its weight is above 64, the most that one peer can have computed"),
        ({"lie": SHORT_PARTS}, "its shape is not ["),
    ],
    ids=["NaN", "weight", "shape"],
)
def test_a_lying_sender_is_left_out(averagers: dict[str, Any], lie: dict[str, Any], reason: str) -> None:
    """The liar is a client: it averages nothing itself, so no part of the result is its own."""
    reports = average(averagers, "client", **lie)
    liar = str(averagers["client"].peer_id)
    for name in HONEST:
        assert torch.allclose(tensors_of(averagers[name]), torch.tensor(MEAN), atol=1e-5)
        assert all(peer == liar and text.startswith(reason) for peer, text in reports[name].rejected_parts)
        assert reports[name].rejected_parts
        assert reports[name].weights == {str(averagers[n].peer_id): w for n, (_, w) in HONEST.items()}


def test_invalid_averages_are_discarded(averagers: dict[str, Any]) -> None:
    """A peer that should average a quarter answers NaN: there the others keep what they had."""
    reports = average(averagers, "liar", lie=NAN_ANSWERS)
    total = sum(weight for _, weight in HONEST.values()) + 8.0
    mean = (MEAN * (total - 8.0) + 5.0 * 8.0) / total  # the parts that it sends are valid
    for name, (value, _) in HONEST.items():
        result = tensors_of(averagers[name])
        averaged, unchanged = (result - mean).abs() < 1e-5, result == value
        assert bool((averaged | unchanged).all())
        assert 0 < int(unchanged.sum()) < 0.5 * SIZE
        assert list(reports[name].rejected_averages) == [(str(averagers["liar"].peer_id), "it holds NaN or infinity")]
