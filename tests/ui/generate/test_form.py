"""Form values from links, the browser and saved images; limits of the app."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt.errors import InvalidInput
from ttt.sampling.params import SamplingParams
from ttt.ui.generate import form as forms
from ttt.ui.generate.form import Form

MODELS = ["demo", "published"]


def test_defaults_are_those_of_sampling_params() -> None:
    assert Form().params() == SamplingParams()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"candidates": 0}, "candidates must be a whole number from 4 to 128; got 0"),
        ({"candidates": 10**6}, "from 4 to 128; got 1000000"),
        ({"candidates": float("nan")}, "from 4 to 128; got nan"),
        ({"candidates": 4.5}, "from 4 to 128"),
        ({"candidates": None}, "from 4 to 128"),
        ({"candidates": True}, "from 4 to 128"),
        ({"candidates": 10**400}, "from 4 to 128"),
        ({"keep": 129}, "from 1 to the number of candidates"),
        ({"temperature": float("inf")}, "above 0"),
        ({"temperature": ""}, "above 0"),
        ({"top_p": 0}, "top_p must be"),
        ({"top_k": "many"}, "top_k must be"),
        ({"seed": -1}, "seed must be a whole number from 0"),
    ],
)
def test_out_of_range_states_the_range(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Form(**changed).params()
    assert message in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("prompt", "noted"),
    [
        ("a red circle", False), ("un círculo rojo", False), ("a red ● 42", False), ("42 !", False),
        ("красный круг", True), ("赤い丸", True), ("دائرة حمراء", True), ("a красный круг", True),
    ],
)  # fmt: skip
def test_a_prompt_in_another_script_gets_a_note(prompt: str, noted: bool) -> None:
    assert ("English" in forms.language_note(prompt)) == noted


def test_off_is_zero_for_top_k_and_one_for_top_p() -> None:
    params = Form(top_k=0, top_p=1).params()
    assert (params.top_k, params.top_p) == (None, None)


def test_a_link_fills_the_form_and_locks_a_given_seed() -> None:
    form, wrong = forms.from_query({"prompt": "a cat", "seed": "0", "__theme": "dark"}, MODELS)
    assert not wrong
    assert form == Form(prompt="a cat", seed="0", lock=True)
    assert forms.from_query({"__theme": "dark"}, MODELS) == (None, "")


def test_errors_in_a_link_are_reported_and_the_rest_is_used() -> None:
    form, wrong = forms.from_query(
        {"prompt": "a cat", "candidates": "9999", "temperature": "nan", "seed": "1e3", "model": "x", "keep": "2"},
        MODELS,
    )
    assert form == Form(prompt="a cat", keep=2, lock=True)
    for part in ("candidates must be a whole number from 4 to 128", "temperature must be", "seed must be", "demo"):
        assert part in wrong


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1])
def test_seeds_that_a_browser_would_round_stay_exact(seed: int) -> None:
    """On every way into the form and out of it they are text."""
    params = SamplingParams(seed=seed)
    query = dict(parse_qsl(forms.to_query("a cat", params.to_dict(), "demo").removeprefix("?")))
    linked, wrong = forms.from_query(query, MODELS)
    assert linked is not None and not wrong
    for form in (linked, forms.from_settings("a cat", params.to_dict(), "demo", MODELS, "demo")):
        assert form.seed == str(seed)
        assert form.params().seed == seed
        assert forms.from_saved(form.to_dict(), MODELS) == form


def test_a_link_to_settings_leads_back_to_them() -> None:
    form = Form("ä & <b>", 64, 8, 0, 1.0, 0.5, "12", True, "published")
    query = dict(parse_qsl(forms.to_query(form.prompt, form.params().to_dict(), form.model).removeprefix("?")))
    assert forms.from_query(query, MODELS) == (form, "")


def test_stored_settings_lead_back_to_their_form() -> None:
    params = SamplingParams(candidates=32, keep=2, top_k=None, top_p=None, temperature=0.5, seed=9)
    form = forms.from_settings("a cat", params.to_dict(), "not here", MODELS, "demo")
    assert form == Form("a cat", 32, 2, 0, 1.0, 0.5, "9", True, "demo")
    assert form.params() == params


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([*forms.FIELDS, "other"]), json_values))
def test_any_browser_memory_gives_a_form(memory: dict[str, Any]) -> None:
    form = forms.from_saved(memory, MODELS)
    if form is None:
        assert not memory
        return
    assert isinstance(form.prompt, str)
    assert form.model in MODELS
    assert isinstance(form.lock, bool)
    assert all(isinstance(getattr(form, name), (int, float)) for name in ("candidates", "keep", "top_p"))
    assert isinstance(form.seed, str)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(forms.FIELDS), st.text(max_size=50)))
def test_any_link_gives_a_usable_form(query: dict[str, str]) -> None:
    form, _ = forms.from_query(query, MODELS)
    if form is not None:
        form.params()
