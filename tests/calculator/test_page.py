"""From a form to the HTML of the tab, without a browser and without Gradio."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from calculator import CalculatorError, form, page
from calculator.custom import USED
from calculator.formulas import lines
from calculator.report import as_csv, as_dict
from calculator.validation import as_html, section


@pytest.mark.parametrize("name", form.EXAMPLES)
def test_every_example_has_an_answer(name: str) -> None:
    a = form.answer(form.EXAMPLES[name])
    shown = page.verdict_html(a) + page.bars_html(a) + page.advice_html(a) + page.curves_html(a) + page.phases_html(a)
    assert "GiB" in shown
    assert " GB<" not in shown


def test_gpt2_large_fits_12_gb_with_its_techniques() -> None:
    a = form.answer(form.EXAMPLES["GPT-2 Large on 12 GB"])
    assert "It fits" in page.verdict_html(a)
    assert a.before.gpu_total > a.device.bytes > a.estimate.gpu_total


def test_a_link_restores_the_form() -> None:
    chosen = {**form.DEFAULTS, **form.EXAMPLES["The swarm's DALL-E on a T4"]}
    assert page.from_query(page.link({**chosen, "gradient_checkpointing": "off"}, "http://host/")[13:]) == chosen
    assert page.from_query("model=gpt2-large&optimizer=adam8bit")["optimizer"] == "adam8bit"  # type: ignore[index]


@pytest.mark.parametrize("query", ["", "model=demo", "prompt=a+red+circle&seed=3", "model=" + "x" * 10_000])
def test_links_of_other_tabs_are_ignored(query: str) -> None:
    assert page.from_query(query) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": -1}, "batch_size must be a whole number from 1"),
        ({"batch_size": float("nan")}, "batch_size must be a whole number"),
        ({"batch_size": None}, "batch_size must be a whole number"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"model": form.CUSTOM, "heads": 7}, "not divisible by 7 heads"),
        ({"model": form.CUSTOM, "layers": 0}, "layers must be"),
        ({"model": form.CONFIG}, "paste or upload"),
        ({"model": "gpt9"}, "unknown model"),
        ({"gpu": "toaster"}, "unknown GPU"),
        ({"gradient_checkpointing": "sometimes"}, "must be one of off"),
        ({"reversible": "perhaps"}, "True, False or None"),
    ],
)
def test_bad_forms_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CalculatorError, match=message):
        form.answer(changes)


def test_names_from_outside_are_escaped() -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 64}
    a = form.answer({"model": form.CONFIG, "config": json.dumps({**config, "_name_or_path": "<img src=x>"})})
    assert "<img" not in page.verdict_html(a)
    a = form.answer({"model": form.CONFIG, "config": json.dumps({**config, "_name_or_path": "=cmd()"})})
    assert ",'=cmd()," in as_csv([a.estimate])


def test_the_table_adds_up_and_the_files_carry_the_same_bytes() -> None:
    m = form.answer({"model": "gpt2"}).estimate
    rows = list(csv.DictReader(io.StringIO(as_csv([m]))))
    assert sum(int(r["bytes"]) for r in rows if r["phase"] == m.peak.name) == m.gpu_total
    assert json.loads(json.dumps(as_dict(m)))["gpu_total"] == m.gpu_total


def test_every_number_has_a_formula_and_a_source() -> None:
    for number, formula, source in lines(form.answer({"model": "gpt2", "swarm": True}).estimate):
        assert number
        assert formula
        assert source


def test_up_to_three_setups_are_compared() -> None:
    forms = [{**form.DEFAULTS, "model": name} for name in ("gpt2", "bert-base", "t5-small")]
    shown = page.compare_html(forms)
    assert all(name in shown for name in ("gpt2", "bert-base", "t5-small"))
    assert "Keep up to three" in page.compare_html([])


def test_every_measured_case_is_on_the_page() -> None:
    shown = as_html()
    cases = [line for line in section().splitlines() if line.startswith("|")]
    assert len(cases) > 60
    assert shown.count("<tr>") == sum("---" not in line for line in cases)
    assert '<th scope="row">gpt2-large gradient_checkpointing=True' in shown
    assert "is missing here" in section(Path("nowhere"))


def test_hostile_tables_are_escaped() -> None:
    assert "<img" not in as_html("### <img>\n\n| a<img> | b |\n|---|---:|\n| <img> | 1 |")


@pytest.mark.parametrize("family", USED)
def test_every_family_can_be_defined_by_its_dimensions(family: str) -> None:
    m = form.answer({"model": form.CUSTOM, "family": family}).estimate
    assert m.model.family == family
    assert m.parameter_count > 10**7
