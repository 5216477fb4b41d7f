"""PowerSGD between two real peers: the mean, the error feedback, and factors for newcomers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

import hivemind
import torch
from hivemind.averaging.group_info import GroupInfo
from hivemind.averaging.matchmaking import MatchmakingException
from hivemind.utils import MSGPackSerializer

from tests.support.waiting import run_async, wait_for
from ttt.swarm.averaging.averagers import SwarmPowerSGDAverager
from ttt.swarm.dht.node import get_record

RANK, SHAPE = 2, (40, 30)


def make(dht: hivemind.DHT, seed: int) -> SwarmPowerSGDAverager:
    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.zeros(SHAPE)), torch.nn.Parameter(torch.zeros(7))]
    return SwarmPowerSGDAverager(
        parameters, RANK, dht=dht, prefix="sgd_grad_averager", start=True, min_matchmaking_time=3.0,
        request_timeout=1.0, next_chunk_timeout=4.0, allreduce_timeout=15.0, max_weight=64.0, allow_state_sharing=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def peers() -> Iterator[list[SwarmPowerSGDAverager]]:
    with ExitStack() as stack:
        made, addresses = [], []
        for seed in (0, 0):
            dht = hivemind.DHT(initial_peers=addresses, start=True)
            stack.callback(dht.shutdown)
            addresses = addresses or dht.get_visible_maddrs()
            made.append(make(dht, seed))
            stack.callback(made[-1].shutdown)
        yield made


def average(peers: list[SwarmPowerSGDAverager], gradients: list[torch.Tensor], samples: list[int]) -> None:
    for peer, gradient, count in zip(peers, gradients, samples, strict=True):
        large, small = peer.parameters
        large.grad, small.grad = gradient.clone(), torch.full((7,), float(count))
        peer.accumulate_grads_(batch_size=count)
    steps = [peer.step(wait=False, timeout=40) for peer in peers]
    for step in steps:
        assert len(step.result(60)) == 2


def test_the_mean_of_matrices_of_low_rank_is_exact(peers: list[SwarmPowerSGDAverager]) -> None:
    gradients = [torch.outer(torch.randn(40), torch.randn(30)) for _ in peers]
    average(peers, gradients, [4, 12])
    expected = gradients[0] * 0.25 + gradients[1] * 0.75
    for peer in peers:
        with peer.get_tensors() as (large, small):
            assert torch.allclose(large, expected, atol=1e-4)
            assert torch.allclose(small, torch.full((7,), 4 * 0.25 + 12 * 0.75))
    reports = [peer.take_reports()[-1] for peer in peers]
    assert all(report.complete for report in reports)
    assert 0 < reports[0].sent_bytes < 0.5 * 4 * SHAPE[0] * SHAPE[1]


def test_a_failed_round_leaves_the_feedback_unchanged_and_nan_is_cleared(peers: list[SwarmPowerSGDAverager]) -> None:
    alone = peers[0]
    (feedback,) = alone._ms
    feedback.fill_(0.5)
    with alone.get_tensors() as (large, _):
        large.fill_(1.0)
    gathered = MSGPackSerializer.dumps([None, 0, MSGPackSerializer.dumps(0)])
    group = GroupInfo(b"never registered", (alone.peer_id,), (gathered,))
    options = {"min_vector_size": 0, "weight": 1.0, **alone.allreduce_kwargs}
    with pytest.raises(MatchmakingException):
        run_async(alone._aggregate_with_group(group, **options))
    assert bool((feedback == 0.5).all())
    feedback[0, 0] = float("nan")
    with pytest.raises(MatchmakingException):
        run_async(alone._aggregate_with_group(group, **options))
    assert bool((feedback == 0).all())
    assert alone.take_reports()[-1].failed


def test_a_newcomer_gets_the_factors_unless_they_are_invalid(peers: list[SwarmPowerSGDAverager]) -> None:
    donor, newcomer = peers
    (theirs,), (ours,) = donor._qs, newcomer._qs
    theirs.copy_(torch.rand_like(theirs))
    donor.allow_state_sharing = True
    assert wait_for(lambda: bool(get_record(newcomer.dht, "sgd_grad_averager.all_averagers")), 20)
    assert newcomer.load_state_from_peers(timeout=8, credible=0)
    assert torch.equal(ours, theirs)
    before = ours.clone()
    theirs[0, 0] = float("inf")
    assert not newcomer.load_state_from_peers(timeout=8, credible=0)
    assert torch.equal(ours, before)
