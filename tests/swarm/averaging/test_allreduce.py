"""The reducer by itself: which parts it leaves out, and that no sender waits for them."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import torch
from hivemind.averaging.partition import AllreduceException, BannedException
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.waiting import run_async
from ttt.swarm.averaging.allreduce import (
    Aggregator,
    AllReduceReport,
    CheckedPartContainer,
    PartReducer,
    WeightedMean,
    validate_tensor,
)

Sent = list[tuple[Tensor, float]]
GOOD = [(torch.tensor([1.0, 2.0]), 3.0), (torch.tensor([5.0, 4.0]), 1.0)]
AVERAGE = torch.tensor([2.0, 2.5])


def reduce(
    parts: Sequence[Sent], *, max_weight: float = 100.0, aggregator: Aggregator | None = None, shape: int = 2
) -> tuple[list[Tensor], AllReduceReport]:
    """parts: for each part, what each sender sends. Returns the averages as the first sender gets them."""
    report = AllReduceReport()

    async def all_senders() -> list[Tensor]:
        own = [torch.zeros(shape) for _ in parts]
        senders = [f"peer {index}" for index in range(len(parts[0]))]
        reducer = PartReducer(
            own, senders, max_weight=max_weight, aggregator=aggregator or WeightedMean(), report=report
        )

        async def send(index: int) -> list[Tensor]:
            return [
                await reducer.accumulate_part(index, number, part[index][0], weight=part[index][1])
                for number, part in enumerate(parts)
            ]

        answers = await asyncio.wait_for(asyncio.gather(*(send(i) for i in range(len(senders)))), 10)
        return answers[0]

    return run_async(all_senders()), report


def test_the_mean_is_weighted_by_samples() -> None:
    averages, report = reduce([GOOD, GOOD])
    assert all(torch.allclose(average, AVERAGE) for average in averages)
    assert report.weights == {"peer 0": 3.0, "peer 1": 1.0} and not report.rejected_parts


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ((torch.tensor([1.0, math.nan]), 1.0), "it holds NaN or infinity"),
        ((torch.tensor([1.0, math.inf]), 1.0), "it holds NaN or infinity"),
        ((torch.tensor([1.0]), 1.0), "its shape is not [2]"),
        ((torch.tensor([[1.0, 2.0]]), 1.0), "its shape is not [2]"),
        ((torch.tensor([1.0, 2.0], dtype=torch.float64), 1.0), "its type is not torch.float32"),
        ((torch.tensor([1, 2]), 1.0), "its type is not torch.float32"),
        ((torch.tensor([1.0, 2.0]), 1e9), "its weight is above 100, the most that one peer can have computed"),
        ((torch.tensor([1.0, 2.0]), -1.0), "its weight is not a finite number of at least 0"),
        ((torch.tensor([1.0, 2.0]), math.nan), "its weight is not a finite number of at least 0"),
        ((torch.tensor([1.0, 2.0]), math.inf), "its weight is not a finite number of at least 0"),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_invalid_part_is_left_out_and_reported(bad: tuple[Tensor, float], reason: str, position: int) -> None:
    part = [*GOOD]
    part.insert(position, bad)
    averages, report = reduce([part, part])
    assert all(torch.allclose(average, AVERAGE) for average in averages)
    assert dict(report.rejected_parts) == {(f"peer {position}", reason): 2}
    assert sorted(report.weights.values()) == [1.0, 3.0]


def test_one_invalid_part_does_not_affect_the_others_of_its_sender() -> None:
    bad = [GOOD[0], (torch.full((2,), math.nan), 1.0)]
    averages, report = reduce([GOOD, bad, GOOD])
    assert torch.allclose(averages[1], GOOD[0][0])
    assert torch.allclose(averages[0], AVERAGE) and torch.allclose(averages[2], AVERAGE)
    assert sum(report.rejected_parts.values()) == 1


def test_weights_of_zero_do_not_divide_by_zero() -> None:
    without_samples = [(part, 0.0) for part, _ in GOOD]
    averages, report = reduce([without_samples])
    assert torch.allclose(averages[0], torch.tensor([3.0, 3.0]))
    assert report.weights == {"peer 0": 0.0, "peer 1": 0.0}
    (average,), _ = reduce([[GOOD[0], (torch.tensor([9.0, 9.0]), 0.0)]])
    assert torch.allclose(average, GOOD[0][0])


def test_without_a_valid_part_the_average_is_zero() -> None:
    (average,), _ = reduce([[(torch.full((2,), math.nan), 1.0), (torch.zeros(3), 1.0)]])
    assert average.tolist() == [0.0, 0.0]


def test_a_sender_that_disconnects_is_not_waited_for() -> None:
    async def all_senders() -> Tensor:
        reducer = PartReducer(
            [torch.zeros(2)], ["a", "b"], max_weight=9.0, aggregator=WeightedMean(), report=AllReduceReport()
        )
        waiting = asyncio.create_task(reducer.accumulate_part(0, 0, GOOD[0][0], weight=3.0))
        await asyncio.sleep(0)
        reducer.on_sender_failed(1)
        with pytest.raises(BannedException):
            await reducer.accumulate_part(1, 0, GOOD[1][0], weight=1.0)
        return await asyncio.wait_for(waiting, 5)

    assert torch.allclose(run_async(all_senders()), GOOD[0][0])


def new_reducer(parts: int, *senders: str) -> PartReducer:
    own = [torch.zeros(2) for _ in range(parts)]
    return PartReducer(own, senders, max_weight=9.0, aggregator=WeightedMean(), report=AllReduceReport())


def test_a_sender_whose_call_is_cancelled_does_not_cancel_the_others() -> None:
    """Its connection broke after it had delivered the part. In hivemind all senders await the same future."""

    async def all_senders() -> list[Tensor]:
        reducer = new_reducer(1, "a", "b", "c")
        waiting, cancelled = (asyncio.create_task(reducer.accumulate_part(i, 0, *GOOD[i])) for i in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        last = reducer.accumulate_part(2, 0, *GOOD[1])
        return list(await asyncio.wait_for(asyncio.gather(waiting, last), 5))

    parts, weights = zip(*GOOD, GOOD[1], strict=True)
    expected = sum(part * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
    assert all(torch.allclose(average, expected) for average in run_async(all_senders()))


def test_a_part_that_is_not_the_next_one_is_an_error() -> None:
    async def one_sender() -> None:
        reducer = new_reducer(2, "a", "b")
        with pytest.raises(AllreduceException):
            await reducer.accumulate_part(0, 1, *GOOD[0])
        waiting = asyncio.create_task(reducer.accumulate_part(0, 0, *GOOD[0]))
        await asyncio.sleep(0)
        reducer.finalize()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(AllreduceException):
            await reducer.accumulate_part(1, 0, *GOOD[1])
        assert new_reducer(0, "a").finished.is_set(), "a client has no parts to average"

    run_async(one_sender())


def test_another_aggregator_can_be_used() -> None:
    class Median(Aggregator):
        def aggregate(self, parts: Sequence[Tensor], weights: Sequence[float], senders: Sequence[str]) -> Tensor:
            assert all(weight > 0 for weight in weights) and len(parts) == len(senders)
            return torch.stack(list(parts)).median(dim=0).values

    liar = (torch.tensor([1e30, -1e30]), 50.0)
    (average,), _ = reduce([[*GOOD, liar, GOOD[0], GOOD[0]]], aggregator=Median())
    assert average.tolist() == [1.0, 2.0]


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(width=32), min_size=1, max_size=3),
            st.floats(),
            st.sampled_from([torch.float32, torch.int8]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_average_of_any_parts_is_finite_and_of_the_right_shape(sent: list) -> None:
    parts = []
    for values, weight, dtype in sent:
        tensor = torch.tensor(values)
        parts.append((tensor if dtype == torch.float32 else tensor.nan_to_num(0, 1, 1).clamp(-9, 9).to(dtype), weight))
    (average,), report = reduce([parts])
    assert validate_tensor(average, [2], torch.float32) == ""
    good = [(t, w) for t, w in parts if not validate_tensor(t, [2], torch.float32) and 0 <= w <= 100]
    assert len(report.weights) == len(good)
    if good:
        stacked = torch.stack([t for t, _ in good])
        slack = 1e-5 * stacked.abs().max() + 1e-30
        assert bool((average >= stacked.min(dim=0).values - slack).all())
        assert bool((average <= stacked.max(dim=0).values + slack).all())


@pytest.mark.parametrize(
    "answer", [torch.full((4,), math.nan), torch.zeros(3), torch.zeros(4, dtype=torch.float64), torch.zeros(2, 2)]
)
def test_an_invalid_average_leaves_our_own_values(answer: Tensor) -> None:
    async def collect() -> tuple[list[Tensor], int, AllReduceReport]:
        report = AllReduceReport()
        container = CheckedPartContainer(
            [torch.arange(8.0)], (0.5, 0.5), part_size_bytes=16, return_deltas=True, peers=["me", "eve"],
            report=report,
        )  # fmt: skip
        container.register_processed_part(0, 0, torch.ones(4))
        container.register_processed_part(1, 0, answer)
        deltas = [delta async for delta in container.iterate_output_tensors()]
        return deltas, container.failed_size, report

    deltas, failed, report = run_async(collect())
    assert deltas[0].tolist() == [1.0] * 4 + [0.0] * 4
    assert failed == 4 and {peer for peer, _ in report.rejected_averages} == {"eve"}
