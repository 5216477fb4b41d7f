"""pick against the plain definition of top-k and top-p, and its distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt.sampling.decode import pick, uniforms
from ttt.sampling.params import SamplingParams


def kept_probabilities(logits: list[float], top_k: int | None, top_p: float | None, temperature: float) -> list[float]:
    """The definition in plain Python: top-k, then the smallest set that reaches p, renormalised."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
    top = max(logits)
    weights = {i: math.exp((logits[i] - top) / temperature) for i in order}
    whole = sum(weights.values())
    chosen, reached = [], 0.0
    for i in order:
        chosen.append(i)
        reached += weights[i] / whole
        if top_p is not None and reached >= top_p:
            break
    total = sum(weights[i] for i in chosen)
    return [weights[i] / total if i in chosen else 0.0 for i in range(len(logits))]


def distribution(logits: list[float], params: SamplingParams, draws: int = 20_000) -> torch.Tensor:
    """Exact up to 1 / draws: the inverse of an evenly spaced ladder of uniforms."""
    ladder = (torch.arange(draws) + 0.5) / draws
    codes = pick(torch.tensor([logits]).expand(draws, -1), ladder, params)
    return torch.bincount(codes, minlength=len(logits)) / draws


@settings(max_examples=60)
@given(
    st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True),
    st.one_of(st.none(), st.integers(1, 14)),
    st.one_of(st.none(), st.floats(0.01, 1.0)),
    st.sampled_from([0.3, 1.0, 2.5]),
)
def test_pick_follows_the_definition(steps: list[int], top_k: int | None, top_p: float | None, temperature: float):
    logits = [step / 10 for step in steps]
    # Where a sum meets top_p to within rounding, the definition itself is undecided.
    around = [
        kept_probabilities(logits, top_k, p, temperature) for p in (top_p, (top_p or 1) - 1e-5, (top_p or 1) + 1e-5)
    ]
    if top_p is not None and top_p < 1 and not (around[0] == around[1] == around[2]):
        return
    got = distribution(logits, SamplingParams(top_k=top_k, top_p=top_p, temperature=temperature))
    torch.testing.assert_close(got, torch.tensor(around[0]), atol=3e-4, rtol=0)


def test_top_k_comes_first_and_top_p_counts_within_it():
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    # Of the two most likely, the first alone has 4/7 = 0.57. Over all four it would have 0.4 and need company.
    assert distribution(logits, SamplingParams(top_k=2, top_p=0.5)).tolist() == [1, 0, 0, 0]
    assert (distribution(logits, SamplingParams(top_k=None, top_p=0.5)) > 0).tolist() == [True, True, False, False]
    assert (distribution(logits, SamplingParams(top_k=2, top_p=0.6)) > 0).tolist() == [True, True, False, False]


def test_random_draws_have_the_right_frequencies():
    logits = [1.0, 0.0, 2.0, -1.0, 0.5, 1.5]
    params = SamplingParams(top_k=5, top_p=0.9, temperature=1.3)
    n = 50_000
    codes = pick(torch.tensor([logits]).expand(n, -1), uniforms(7, range(n), 1)[:, 0], params)
    expected = torch.tensor(kept_probabilities(logits, 5, 0.9, 1.3)) * n
    seen = torch.bincount(codes, minlength=6).float()
    assert (seen[expected == 0] == 0).all()
    live = expected > 0
    chi_square = ((seen - expected)[live] ** 2 / expected[live]).sum()
    assert chi_square < 25  # 4 degrees of freedom: p < 1e-4


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 100.0])
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_extremes_stay_within_the_code_book(temperature: float, u: float):
    logits = torch.tensor([[0.0, 1e4, -1e4, 9e3], [5.0, 5.0, 5.0, 5.0]])
    for top_k, top_p in ((None, None), (1, None), (3, 0.75), (None, 1e-9), (10**6, 1.0)):
        codes = pick(logits, torch.full((2,), u), SamplingParams(top_k=top_k, top_p=top_p, temperature=temperature))
        assert codes.dtype == torch.int64
        assert ((codes >= 0) & (codes < 4)).all()
        if temperature < 1:
            assert codes[0] == 1


def test_uniforms_depend_on_seed_and_candidate_alone():
    everyone = uniforms(3, range(10), 50)
    assert torch.equal(uniforms(3, range(4, 7), 50), everyone[4:7])
    assert torch.equal(uniforms(3, range(10), 20), everyone[:, :20])
    assert len({tuple(row) for row in everyone.tolist()}) == 10
    assert not torch.equal(uniforms(0, range(10), 50), everyone)
    assert not torch.equal(uniforms(2**62, range(1), 9), uniforms(0, range(1), 9))
    assert everyone.min() >= 0
    assert everyone.max() < 1
    assert abs(uniforms(0, range(200), 256).mean() - 0.5) < 0.005
