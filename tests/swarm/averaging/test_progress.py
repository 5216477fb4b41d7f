"""Credible epochs, and limits of what one peer may claim."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from ttt.swarm.averaging import progress as module
from ttt.swarm.averaging.progress import Claim, assess_claims, credible_epoch

NOW = 1_760_000_000.0


@pytest.mark.parametrize(
    ("epochs", "credible"),
    [
        ([], 0),
        ([7], 7),
        ([7, 7], 7),
        ([8, 7], 8),  # one peer is first
        ([7, 7, 7, 8], 8),
        ([10**6, 7, 7], 7),
        ([10**6, 8, 7, 7], 8),
        ([9, 7, 7], 7),  # alone two steps ahead: it has to wait
        ([9, 9, 7, 7], 9),  # a quarter, and two: the others fell behind
        ([500, 0, 0, 0, 500], 500),  # newcomers that have not loaded the state
        ([10**6] + [50] * 99, 50),
        ([10**6] * 24 + [50] * 76, 50),  # fewer than a quarter
        ([10**6] * 25 + [50] * 75, 10**6),  # a quarter: not protected
    ],
)
def test_a_claim_is_credible_if_others_are_near(epochs: list[int], credible: int) -> None:
    assert credible_epoch(epochs) == credible


def test_the_leading_one_of_two_peers_is_credible_as_far_as_time_allows() -> None:
    assert credible_epoch([12, 7]) == 7
    assert credible_epoch([12, 7], max_lead=3) == 7
    assert credible_epoch([12, 7], max_lead=4) == 12
    assert credible_epoch([10**6, 7], max_lead=3600) == 7
    assert credible_epoch([12, 7, 7], max_lead=4) == 7  # of three, two decide


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=30), st.integers(0, 10**8))
def test_one_liar_moves_the_swarm_by_one_step_at_most(honest: list[int], lie: int) -> None:
    assert credible_epoch([*honest, lie]) <= max(honest) + 1
    assert credible_epoch(honest) in honest


def claim(name: str, epoch: int, samples: int = 10, **more: Any) -> Claim:
    values = {"samples_per_second": 1.0, "time": NOW, "client_mode": False, **more}
    return Claim(name, epoch, samples, **values)


def test_samples_of_credible_peers_add_up_to_one_batch_at_most() -> None:
    claims = [claim("a", 7, 30), claim("b", 7, 20), claim("c", 6, 50), claim("eve", 10**6, 99)]
    progress, credible = assess_claims(claims, target_batch_size=64, now=NOW)
    assert (progress.step, progress.samples_accumulated, progress.peers, progress.refused) == (7, 50, 3, ("eve",))
    assert [claim.peer_id for claim in credible] == ["a", "b", "c"]
    progress, _ = assess_claims([*claims[:2], claim("eve", 7, 10**15)], target_batch_size=64, now=NOW)
    assert progress.samples_accumulated == 64


def test_clients_do_not_lead() -> None:
    claims = [claim("a", 7), claim("b", 7), *(claim(f"c{i}", 99, client_mode=True) for i in range(5))]
    progress, _ = assess_claims(claims, target_batch_size=64, now=NOW)
    assert (progress.step, progress.clients) == (7, 0)
    progress, _ = assess_claims([claim("c", 5, client_mode=True)], target_batch_size=64, now=NOW)
    assert progress.step == 5


def test_speeds_and_times_are_limited_to_what_is_possible() -> None:
    wild = claim("eve", 7, samples_per_second=1e9, time=0.0)
    _, (clamped,) = assess_claims([wild], target_batch_size=64, now=NOW)
    assert clamped.samples_per_second == 64 and NOW - clamped.time == module.MAX_AGE_SECONDS
