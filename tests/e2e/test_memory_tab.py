"""The Memory tab in Chromium against the running app, and what can be measured of its looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.looks import check_looks

Page = Any
pytestmark = pytest.mark.browser
LINK = "?model=gpt2-large&gpu=RTX+3060&optimizer=adam8bit&precision=mixed-fp16&gradient_checkpointing=true"
CONFIG = json.dumps({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100})


def open_tab(context: Any, server: Server, query: str = LINK) -> Page:
    page = context.new_page()
    page.goto(server.url + query)
    page.locator("#calc-verdict strong").wait_for()
    return page


def shows(page: Page, words: str, where: str = "#calc-verdict") -> None:
    page.locator(where, has_text=words).first.wait_for()


def choose(page: Page, label: str, option: str) -> None:
    field = page.get_by_label(label, exact=True).filter(visible=True)
    field.click()
    page.get_by_role("option", name=option, exact=True).click()


def search(page: Page, label: str, text: str, option: str) -> None:
    """Choose an option by typing a part of it."""
    field = page.get_by_label(label, exact=True).filter(visible=True)
    field.click()
    # The page selects the present text shortly after the focus; text typed before that would be replaced.
    page.wait_for_function(
        "() => { const field = document.activeElement;"
        " return field.value && field.selectionEnd - field.selectionStart === field.value.length }"
    )
    page.keyboard.type(text)
    page.wait_for_function("most => document.querySelectorAll('[role=option]').length <= most", arg=12)
    page.get_by_role("option", name=option, exact=True).click()


def method(page: Page, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).click()


def link_of(page: Page, part: str) -> str:
    """The link of the page, once it contains this part."""
    field = page.locator("#calc-link").locator("textarea, input")
    page.wait_for_function(
        "part => document.querySelector('#calc-link textarea, #calc-link input').value.includes(part)", arg=part
    )
    return str(field.input_value())


def downloaded(page: Page, name: str) -> str:
    """The text of the file behind a button, which Gradio draws as a link."""
    button = page.get_by_role("button", name=name, exact=True).or_(page.get_by_role("link", name=name, exact=True))
    with page.expect_download() as started:
        button.click()
    return str(started.value.path().read_text())


def test_the_verdict_follows_the_gpu_and_the_techniques(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    shows(page, "Fits: needs")
    search(page, "GPU", "3070", "8 GB: RTX 3070")
    shows(page, "RTX 3070 has 7.8 GiB")
    gpu = page.get_by_label("GPU", exact=True).filter(visible=True)
    gpu.fill("NVIDIA RTX A6000")
    gpu.press("Enter")
    shows(page, "RTX A6000 has 47.4 GiB")
    page.get_by_role("button", name="More techniques").click()
    own = page.get_by_label("Or GPU memory (GiB)", exact=True)
    own.fill("4")
    shows(page, "Does not fit")
    own.fill("80")
    shows(page, "80 GiB has 80.0 GiB")
    batch = page.get_by_label("Batch size per GPU", exact=True)
    for wrong in ("0", "1.5"):
        batch.fill(wrong)
        page.get_by_role("alert").filter(has_text="Batch size per GPU must be a whole number from 1").wait_for()
        page.locator("#calc-bars table").wait_for(state="detached")  # nothing stale below the message
    batch.fill("2")
    shows(page, "Fits: needs")


def test_a_link_restores_the_setup_in_another_browser(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    choose(page, "Optimizer", "lion8bit")
    link = link_of(page, "lion8bit")
    assert link.startswith(slow_server.url)
    verdict = page.locator("#calc-verdict strong").inner_text()
    other = context.new_page()
    other.goto(link)
    other.locator("#calc-verdict strong", has_text=verdict).wait_for()
    assert other.get_by_label("Optimizer", exact=True).input_value() == "lion8bit"
    assert other.get_by_label("Gradient checkpointing", exact=True).input_value() == "every layer"


def test_llama_with_lora_on_24_gb_takes_three_choices(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server, "?model=gpt2-large")
    search(page, "Model", "llama-3.1", "LLM: llama-3.1-8b (8.0 B)")
    method(page, "LoRA")
    search(page, "GPU", "3090", "24 GB: RTX 3090")
    shows(page, "Fits: needs 18.9 GiB")
    method(page, "QLoRA")
    shows(page, "Fits: needs 9.2 GiB")
    method(page, "Full")
    shows(page, "Does not fit")
    page.get_by_role("button", name="Apply: LoRA with 16-bit weights").click()
    shows(page, "Fits: needs 18.9 GiB")
    assert page.get_by_role("radio", name="LoRA", exact=True).is_checked()


def test_a_config_that_is_pasted_or_dropped_is_chosen(context: Any, slow_server: Server, tmp_path: Path) -> None:
    page = open_tab(context, slow_server)
    page.locator("#calc-own textarea").fill(CONFIG)
    shows(page, "gpt2: 0.2 M parameters")
    link = link_of(page, "config=")
    other = context.new_page()
    other.goto(link)
    other.locator("#calc-verdict", has_text="gpt2: 0.2 M parameters").wait_for()
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + CONFIG.replace("100", "9999").encode())
    page.locator("#calc-drop input[type=file]").set_input_files(str(file))
    shows(page, "gpt2: 0.8 M parameters")


def test_a_failed_download_is_reported_beside_its_field_and_blocks_nothing(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    own = page.locator("#calc-own textarea")
    own.fill("not a hub id")
    own.press("Enter")
    page.locator("#calc-own-message [role=alert]", has_text="not a Hub model id").wait_for()
    shows(page, "gpt2-large")
    search(page, "Model", "t5-small", "Text: t5-small (61 M)")
    shows(page, "t5-small: 60.5 M parameters")


def test_the_verdict_stays_in_sight(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    page.get_by_role("button", name="Add to comparison").scroll_into_view_if_needed()
    box = page.locator("#calc-verdict strong").bounding_box()
    assert 0 <= box["y"] < 200
    choose(page, "Optimizer", "adamw")
    shows(page, "Does not fit")
    box = page.locator("#calc-verdict strong").bounding_box()
    assert 0 <= box["y"] < 900


def test_two_setups_side_by_side_and_in_files(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    add = page.get_by_role("button", name="Add to comparison")
    add.click()
    shows(page, "Optimizer: adam8bit", "#calc-compare")
    choose(page, "Optimizer", "adamw")
    page.wait_for_function("!document.querySelector('#calc-link textarea, #calc-link input').value.includes('8bit')")
    add.click()
    shows(page, "Setup 2", "#calc-compare")
    assert downloaded(page, "CSV of the comparison").count("\n2,") > 10
    page.get_by_role("button", name="Clear comparison").click()
    shows(page, "Add up to three", "#calc-compare")
    content = json.loads(downloaded(page, "JSON"))
    assert content["setup"].get("optimizer", "adamw") == "adamw"  # only values that differ from the defaults are listed
    assert content["gpu_total"] > content["parameters"] > 0
    assert downloaded(page, "CSV").startswith("setup,model,where,phase,component,bytes")


def test_examples_dimensions_and_the_published_tables(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    page.get_by_role("button", name="The 2021 run's DALL-E on a T4").click()
    shows(page, "ttt-dalle")
    shows(page, "Fits: needs")
    search(page, "Model", "dimensions", "Your own dimensions")
    shows(page, "custom gpt2")
    page.get_by_label("Vocabulary", exact=True).wait_for()
    choose(page, "Family", "vit")
    page.get_by_label("Patch size", exact=True).wait_for()
    page.get_by_label("Vocabulary", exact=True).wait_for(state="hidden")
    shows(page, "custom vit")
    page.locator("#calc-validation").get_by_role("button").first.click()
    page.locator("#calc-validation th", has_text="gpt2-large gradient_checkpointing=True").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_width_contrast_and_labels(browser: Any, slow_server: Server, scheme: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(40_000)
    page = open_tab(context, slow_server)
    page.get_by_role("button", name="Add to comparison").click()
    shows(page, "Optimizer: adam8bit", "#calc-compare")
    columns = [page.locator(where).bounding_box() for where in ("#calc-batch", "#calc-bars")]
    assert (columns[0]["width"] > 280) == (columns[1]["width"] > 280) is True

    def check(moment: str) -> None:
        page.mouse.move(0, 0)
        check_looks(page, width, moment)

    check("closed")
    for name in ("More techniques", "The formula behind every number", "How accurate is this?"):
        page.get_by_role("button", name=name).click()
    check("open")
    method(page, "QLoRA")
    shows(page, "Also set")
    check("implied")
    page.get_by_label("Batch size per GPU", exact=True).fill("0")
    page.get_by_role("alert").filter(has_text="Batch size per GPU").wait_for()
    check("refused")
    context.close()
