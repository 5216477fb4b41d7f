"""From a form to the HTML of the tab, without a browser and without Gradio."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from calculator import CalculatorError, form, page
from calculator.advice import advise
from calculator.custom import USED
from calculator.formulas import lines
from calculator.report import as_csv, as_dict
from calculator.validation import as_html, section


@pytest.mark.parametrize("name", form.EXAMPLES)
def test_every_example_has_an_answer(name: str) -> None:
    a = form.answer(form.EXAMPLES[name])
    found = advise(a.estimate, a.device)
    shown = page.verdict_html(a) + page.bars_html(a) + page.advice_html(a, found) + page.curves_html(a)
    assert "GiB" in shown
    assert " GB<" not in shown
    assert not found  # every example fits


def test_gpt2_large_fits_12_gb_with_its_techniques() -> None:
    a = form.answer(form.EXAMPLES["GPT-2 Large, 8-bit Adam, 12 GB"])
    assert "Tight fit: needs 9.9 GiB + 0.3 to 3.0 GiB overhead; RTX 3060 has 11.8 GiB" in page.verdict_html(a)
    assert a.plain.gpu_total > a.device.bytes > a.estimate.gpu_total


def test_a_link_restores_the_form() -> None:
    chosen = {**form.DEFAULTS, **form.EXAMPLES["The 2021 run's DALL-E on a T4"]}
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
        ({"model": form.CONFIG}, "paste or drop"),
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
    assert "up to three" in page.compare_html([])


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


LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip


def test_a_link_carries_a_config() -> None:
    labels = {str(i): f"LABEL_{i}" for i in range(1000)}
    config = {**LLAMA, "rope_theta": 500_000, "id2label": labels, "architectures": ["LlamaForSequenceClassification"]}
    chosen = {**form.DEFAULTS, "model": form.CONFIG, "config": json.dumps(config), "optimizer": "adam8bit"}
    address = page.link(chosen, "http://host/")
    assert len(address) < 1500
    restored = page.from_query(address.split("?")[1])
    assert restored is not None
    assert restored["optimizer"] == "adam8bit"
    expected, found = (form.answer(x).estimate for x in (chosen, restored))
    assert found.gpu_total == expected.gpu_total
    assert found.model.labels == 1000


BROKEN = ("model=config.json&config={", "model=config.json&batch_size=[", "model=gpt2&gpu=xyz")


@pytest.mark.parametrize("query", BROKEN)
def test_a_broken_link_is_an_ordinary_refusal(query: str) -> None:
    restored = page.from_query(query)
    assert restored is not None
    with pytest.raises(CalculatorError, match="config.json|unknown GPU"):
        form.answer(restored)


IMPLIED: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    # the control that changed, its value, other controls before; then the form must be accepted
    ("adapter", "QLoRA", {}),
    ("adapter", "LoRA", {}),
    ("adapter", "QLoRA", {"gpu": "T4"}),
    ("adapter", "LoRA", {"offload_optimizer": "hivemind"}),
    ("adapter", "Full", {"precision": "pure-bf16"}),
    ("precision", "float32", {"adapter": "QLoRA"}),
    ("precision", "pure-bf16", {"offload_optimizer": "hivemind"}),
    ("zero_stage", 3, {}),
    ("gpus", 4, {}),
    ("offload_optimizer", "zero-offload", {"optimizer": "lion"}),
    ("offload_optimizer", "hivemind", {"precision": "pure-bf16"}),
    ("offload_optimizer", "none", {"optimizer": "lamb8bit-cpu"}),
    ("optimizer", "lamb8bit-cpu", {}),
    ("optimizer", "lamb8bit-cpu", {"precision": "pure-bf16"}),
    ("delayed_updates", True, {}),
    ("reuse_grad_buffers", True, {}),
    ("swarm", True, {"zero_stage": 2, "gpus": 4}),
    ("swarm", False, {"delayed_updates": True}),
    ("embeddings_32bit", True, {}),
)


@pytest.mark.parametrize(("changed", "value", "others"), IMPLIED)
def test_a_choice_makes_the_choices_that_it_implies(changed: str, value: Any, others: dict[str, Any]) -> None:
    before = {**form.DEFAULTS, "model": "llama-3.2-1b", **others, changed: value}
    changes, note = form.implied(before, changed)
    assert changes
    assert note.startswith("Also set ")
    form.answer({**before, **changes})


def test_a_pasted_config_is_chosen_and_4_bit_weights_mean_qlora() -> None:
    before = {**form.DEFAULTS, "config": json.dumps(LLAMA)}
    assert form.implied(before, "config") == ({"model": form.CONFIG}, "")
    quantised = {**LLAMA, "quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}
    changes, note = form.implied({**form.DEFAULTS, "config": json.dumps(quantised)}, "config")
    assert changes["adapter"] == "QLoRA"
    assert "4-bit" in note
    a = form.answer({**form.DEFAULTS, "model": form.CONFIG, "config": json.dumps(quantised)})
    assert "quantised (bitsandbytes, 4-bit)" in page.verdict_html(a)


def test_the_practitioners_tasks_have_their_answers() -> None:
    eight = form.answer({"optimizer": "adam8bit"})
    assert "Tight fit" in page.verdict_html(eight)
    lora = {**form.DEFAULTS, "model": "llama-3.1-8b", "gpu": "RTX 3090", "adapter": "LoRA"}
    lora |= form.implied(lora, "adapter")[0]
    assert "Fits: needs 18.9 GiB" in page.verdict_html(form.answer(lora))
    pasted = {**form.DEFAULTS, "config": json.dumps(LLAMA)}
    pasted |= form.implied(pasted, "config")[0]
    assert form.answer(pasted).estimate.parameter_count == 8_030_261_248


def test_advice_for_lora_keeps_what_is_trained() -> None:
    a = form.answer({"model": "llama-3.1-8b", "gpu": "RTX 3090", "adapter": "lora"})
    found = advise(a.estimate, a.device)
    assert found[0].exact
    assert found[0].changes == ("16-bit frozen weights", "gradient checkpointing")
    assert "training stays the same except for rounding" in page.advice_html(a, found)
    full = form.answer({"model": "llama-3.1-8b", "gpu": "RTX 3090"})
    other = advise(full.estimate, full.device)
    assert [x.changes[0] for x in other] == ["LoRA with 16-bit weights", "QLoRA (4-bit weights)"]
    assert not any(x.exact for x in other)
    assert "Techniques that keep training the same are not enough on one RTX 3090" in page.advice_html(full, other)


def test_activations_are_shown_even_if_the_peak_is_the_optimizer_step() -> None:
    a = form.answer({})
    assert a.estimate.peak.name == "optimizer step"
    assert "5.019" in page.bars_html(a)  # activations of the forward pass, in GiB


def test_messages_name_the_controls_by_their_labels() -> None:
    with pytest.raises(CalculatorError) as refusal:
        form.answer({"batch_size": 0})
    assert "Batch size per GPU must be a whole number" in page.refused_html(str(refusal.value))
