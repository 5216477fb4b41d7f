"""Averaging between real peers on loopback, one of which lies: the others' tensors stay what they should be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import hivemind
import hivemind.averaging.averager as hivemind_averager
import torch
from hivemind.averaging import DecentralizedAverager
from hivemind.averaging.allreduce import AllReduceRunner

from ttt.swarm.averaging import allreduce as reducer
from ttt.swarm.averaging.allreduce import AllReduceReport

SIZE, MAX_WEIGHT = 50_000, 64.0
HONEST = {"a": (1.0, 8.0), "b": (2.0, 16.0), "c": (3.0, 8.0)}
"""name -> (value of all its elements, weight)"""
MEAN = sum(value * weight for value, weight in HONEST.values()) / sum(weight for _, weight in HONEST.values())


class LyingRunner(AllReduceRunner):
    """Answers every part that it should average with a tensor of NaN."""

    async def _accumulate_parts_streaming(self, stream: Any, sender_index: int) -> Any:
        from hivemind.compression import serialize_torch_tensor

        async for message in super()._accumulate_parts_streaming(stream, sender_index):
            shape = tuple(message.tensor_part.size)
            message.tensor_part.CopyFrom(serialize_torch_tensor(torch.full(shape, float("nan"))))
            yield message


class MisshapenRunner(AllReduceRunner):
    """Sends parts that are one element short."""

    async def _generate_input_for_peer(self, peer_index: int) -> Any:
        from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor

        async for message in super()._generate_input_for_peer(peer_index):
            short = deserialize_torch_tensor(message.tensor_part)[:-1]
            message.tensor_part.CopyFrom(serialize_torch_tensor(short))
            yield message


class Liar(DecentralizedAverager):
    runner: type[AllReduceRunner] = AllReduceRunner

    def run(self) -> None:
        hivemind_averager.AllReduceRunner = type(self).runner
        super().run()


class Watched(DecentralizedAverager):
    """Keeps what its last round found where the test can read it."""

    async def _run_allreduce_inplace_(self, tensors: Any, group_info: Any, group_id: Any = None, **kwargs: Any) -> None:
        future = self._running_groups[group_info.group_id]
        await super()._run_allreduce_inplace_(tensors, group_info, group_id, max_weight=MAX_WEIGHT, **kwargs)
        self.found_by.send(future.result().report)


for one in (Liar, Watched):  # a peer calls others by the name of its class
    one.__name__ = "DecentralizedAverager"


def make(cls: type[DecentralizedAverager], dht: hivemind.DHT, value: float) -> DecentralizedAverager:
    averager = cls(
        [torch.full((SIZE,), value), torch.full((3,), value)],
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
    averager.received, averager.found_by = torch.multiprocessing.get_context("fork").Pipe(duplex=False)
    averager.run_in_background(await_ready=True)
    return averager


@contextmanager
def swarm(
    monkeypatch: pytest.MonkeyPatch, liar: type[AllReduceRunner] = reducer.CheckedAllReduce, *, client: bool = False
) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(hivemind_averager, "AllReduceRunner", reducer.CheckedAllReduce)
    first = hivemind.DHT(start=True)
    dhts, averagers = [first], {}
    addresses = first.get_visible_maddrs()
    try:
        dhts += [hivemind.DHT(initial_peers=addresses, start=True) for _ in range(2)]
        dhts.append(hivemind.DHT(initial_peers=addresses, start=True, client_mode=client))
        for dht, (name, (value, _)) in zip(dhts, HONEST.items(), strict=False):
            averagers[name] = make(Watched, dht, value)
        monkeypatch.setattr(Liar, "runner", liar)
        averagers["liar"] = make(Liar, dhts[3], 5.0)
        yield averagers
    finally:
        for averager in averagers.values():
            averager.shutdown()
        for dht in dhts:
            dht.shutdown()


def average(averagers: dict[str, Any], weight_of_liar: float) -> dict[str, AllReduceReport]:
    weights = {name: weight for name, (_, weight) in HONEST.items()} | {"liar": weight_of_liar}
    steps = {name: one.step(weight=weights[name], wait=False, timeout=40) for name, one in averagers.items()}
    for name in HONEST:
        assert len(steps[name].result(60)) == 4
    steps["liar"].cancel()
    findings = {}
    for name in HONEST:
        assert averagers[name].received.poll(10)
        findings[name] = averagers[name].received.recv()
    return findings


def tensors_of(averager: DecentralizedAverager) -> torch.Tensor:
    with averager.get_tensors() as tensors:
        return torch.cat([tensor.clone() for tensor in tensors])


@pytest.mark.parametrize(
    ("value", "weight", "reason"),
    [
        (float("nan"), 8.0, "it holds NaN or infinity"),
        (5.0, 1e9, "its weight is above 64, the most that one peer can have computed"),
    ],
)
def test_a_lying_sender_is_left_out(value: float, weight: float, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with swarm(monkeypatch, client=True) as averagers:  # it averages nothing itself: no part of the result is its own
        with averagers["liar"].get_tensors() as tensors:
            for tensor in tensors:
                tensor.fill_(value)
        findings = average(averagers, weight)
        for name in HONEST:
            assert torch.allclose(tensors_of(averagers[name]), torch.tensor(MEAN), atol=1e-5)
            assert_left_out(averagers, findings[name], reason)


def test_parts_of_the_wrong_shape_stall_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with swarm(monkeypatch, MisshapenRunner, client=True) as averagers:
        findings = average(averagers, 8.0)
        for name in HONEST:
            assert torch.allclose(tensors_of(averagers[name]), torch.tensor(MEAN), atol=1e-5)
            assert {why.partition("[")[0] for _, why in findings[name].rejected_parts} == {"its shape is not "}


def test_averages_that_do_not_fit_are_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that should average a quarter answers NaN: there the others keep what they had."""
    with swarm(monkeypatch, LyingRunner) as averagers:
        liar = str(averagers["liar"].peer_id)
        total = sum(weight for _, weight in HONEST.values()) + 8.0
        mean = (MEAN * (total - 8.0) + 5.0 * 8.0) / total  # what it sends is fine
        findings = average(averagers, 8.0)
        for name, (value, _) in HONEST.items():
            found = tensors_of(averagers[name])
            averaged, kept = (found - mean).abs() < 1e-5, found == value
            assert bool((averaged | kept).all())
            assert 0 < int(kept.sum()) < 0.5 * SIZE
            assert list(findings[name].rejected_averages) == [(liar, "it holds NaN or infinity")]


def assert_left_out(averagers: dict[str, Any], findings: AllReduceReport, reason: str) -> None:
    assert list(findings.rejected_parts) == [(str(averagers["liar"].peer_id), reason)]
    assert findings.weights == {str(averagers[n].peer_id): w for n, (_, w) in HONEST.items()}
