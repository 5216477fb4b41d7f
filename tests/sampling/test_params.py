"""SamplingParams: what is refused, and that the message states the range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ttt.errors import InvalidInput
from ttt.fields import describe
from ttt.sampling.params import MAX_SEED, SamplingParams


def test_the_defaults_are_those_of_the_paper():
    assert SamplingParams() == SamplingParams(candidates=128, keep=4, top_k=256, top_p=0.75, temperature=1.0, seed=0)


@pytest.mark.parametrize(
    ("name", "value", "stated"),
    [
        ("candidates", 0, "from 1 to 1024"),
        ("candidates", 10**6, "from 1 to 1024"),
        ("candidates", True, "whole number"),
        ("candidates", "8", "whole number"),
        ("candidates", 8.5, "whole number"),
        ("candidates", math.nan, "whole number"),
        ("candidates", None, "whole number"),
        ("keep", 0, "from 1"),
        ("keep", 129, "the number of candidates (128)"),
        ("top_k", 0, "from 1"),
        ("top_k", -5, "from 1"),
        ("top_k", math.inf, "whole number"),
        ("top_p", 0, "above 0 and up to 1"),
        ("top_p", 1.0001, "above 0 and up to 1"),
        ("top_p", math.nan, "above 0 and up to 1"),
        ("top_p", False, "above 0 and up to 1"),
        ("top_p", "0.5", "above 0 and up to 1"),
        ("temperature", 0, "above 0 and up to 100"),
        ("temperature", -1, "above 0 and up to 100"),
        ("temperature", math.inf, "above 0 and up to 100"),
        ("temperature", None, "above 0 and up to 100"),
        ("temperature", [1], "above 0 and up to 100"),
        ("seed", -1, f"from 0 to {MAX_SEED}"),
        ("seed", 2**63, f"from 0 to {MAX_SEED}"),
        ("seed", 10**4000, f"from 0 to {MAX_SEED}"),
        ("seed", 0.5, f"from 0 to {MAX_SEED}"),
        ("candidates", np.array([1, 2]), "whole number"),
        ("candidates", torch.tensor(1.5), "whole number"),
        ("candidates", np.bool_(True), "whole number"),
        ("candidates", torch.tensor(True), "whole number"),
        ("seed", torch.tensor([1, 2]), f"from 0 to {MAX_SEED}"),
        ("temperature", np.bool_(True), "above 0 and up to 100"),
        ("temperature", torch.tensor([True]), "above 0 and up to 100"),
        ("temperature", torch.ones(1000, 3), "above 0 and up to 100"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(name: str, value: Any, stated: str):
    with pytest.raises(InvalidInput) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert stated in message
    assert len(message) < 250, "a hostile value must not make a long message"


def test_fewer_candidates_than_are_kept_by_default_are_all_kept():
    assert SamplingParams(candidates=2).keep == 2
    assert SamplingParams(candidates=100).keep == 4
    with pytest.raises(InvalidInput, match=r"keep must be from 1 to the number of candidates \(2\), got 4"):
        SamplingParams(candidates=2, keep=4)


def test_off_seed_zero_and_whole_floats_are_allowed():
    params = SamplingParams(candidates=8.0, keep=np.int64(2), top_k=None, top_p=None, temperature=np.float32(2), seed=0)  # type: ignore[arg-type]
    assert params == SamplingParams(candidates=8, keep=2, top_k=None, top_p=None, temperature=2.0, seed=0)
    assert [type(v) for v in params.to_dict().values()] == [int, int, type(None), type(None), float, int]


@given(
    st.one_of(st.integers(), st.floats(), st.none(), st.text(), st.booleans(), st.lists(st.integers())),
    st.sampled_from(list(SamplingParams.model_fields)),
)
def test_any_value_is_either_refused_or_lies_in_the_range_it_states(value: Any, name: str):
    try:
        params = SamplingParams(**{"candidates": 1024, name: value})
    except InvalidInput:
        return
    result = getattr(params, name)
    described = describe(SamplingParams, name)
    assert result is None or described.minimum <= result <= described.maximum
    assert result is not None or described.optional
    assert SamplingParams.from_dict(params.to_dict()) == params


def test_every_field_has_help_and_a_range():
    for name in SamplingParams.model_fields:
        assert describe(SamplingParams, name).help.endswith(".")
        assert "number" in describe(SamplingParams, name).allowed


def test_unknown_names_are_refused_and_instances_are_frozen():
    with pytest.raises(InvalidInput, match="temprature.*known: candidates"):
        SamplingParams.from_dict({"temprature": 1})
    with pytest.raises(ValidationError):
        SamplingParams().seed = 1  # type: ignore[misc]
    assert hash(SamplingParams(seed=1)) == hash(SamplingParams(seed=1)) != hash(SamplingParams(seed=2))
