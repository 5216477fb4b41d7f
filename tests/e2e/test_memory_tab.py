"""The Memory tab as people use it: Chromium against the running app; and what can be measured of its looks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.looks import check_looks

Page = Any
pytestmark = pytest.mark.browser
LINK = "?model=gpt2-large&gpu=RTX+3060&optimizer=adam8bit&precision=mixed-fp16&gradient_checkpointing=true"


def open_tab(context: Any, server: Server, query: str = LINK) -> Page:
    page = context.new_page()
    page.goto(server.url + query)
    page.locator("#calc-verdict strong").wait_for()
    return page


def says(page: Page, words: str, where: str = "#calc-verdict") -> None:
    page.locator(where, has_text=words).wait_for()


def choose(page: Page, label: str, option: str) -> None:
    field = page.get_by_label(label, exact=True).filter(visible=True)
    field.click()
    page.get_by_role("option", name=option, exact=True).click()


def downloaded(page: Page, name: str) -> str:
    """The text of the file behind a button, which Gradio draws as a link."""
    button = page.get_by_role("button", name=name, exact=True).or_(page.get_by_role("link", name=name, exact=True))
    with page.expect_download() as started:
        button.click()
    return str(started.value.path().read_text())


def test_the_verdict_follows_the_gpu_and_the_techniques(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    says(page, "It fits")
    choose(page, "GPU", "RTX 3070")
    says(page, "RTX 3070")
    says(page, "It does not fit" if page.locator(".calc-not").count() else "It is tight")
    own = page.get_by_label("GiB of a GPU of your own", exact=True)
    own.fill("4")
    says(page, "It does not fit")
    own.fill("80")
    says(page, "on 80 GiB")
    says(page, "It fits")
    page.get_by_label("Micro-batch", exact=True).fill("0")
    page.get_by_role("alert").filter(has_text="batch_size must be a whole number from 1").wait_for()
    page.get_by_label("Micro-batch", exact=True).fill("2")
    says(page, "It fits")


def test_a_link_brings_the_setup_to_another_browser(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    choose(page, "Optimizer", "lion8bit")
    page.wait_for_function("document.querySelector('#calc-link textarea, #calc-link input').value.includes('lion8bit')")
    link = page.locator("#calc-link").locator("textarea, input").input_value()
    assert link.startswith(slow_server.url)
    said = page.locator("#calc-verdict strong").inner_text()
    other = context.new_page()
    other.goto(link)
    other.locator("#calc-verdict strong", has_text=said).wait_for()
    assert other.get_by_label("Optimizer", exact=True).input_value() == "lion8bit"
    assert other.get_by_label("Gradient checkpointing", exact=True).input_value() == "every layer"


def test_two_setups_side_by_side_and_in_files(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    keep = page.get_by_role("button", name="Keep this setup to compare")
    keep.click()
    says(page, "optimizer=adam8bit", "#calc-compare")
    choose(page, "Optimizer", "adamw")
    page.wait_for_function("!document.querySelector('#calc-link textarea, #calc-link input').value.includes('8bit')")
    keep.click()
    says(page, "GPU 2", "#calc-compare")
    page.get_by_role("button", name="Forget them").click()
    says(page, "Keep up to three", "#calc-compare")
    content = json.loads(downloaded(page, "JSON"))
    assert content["setup"].get("optimizer", "adamw") == "adamw"  # what is said differs from the defaults
    assert content["gpu_total"] > content["parameters"] > 0
    assert downloaded(page, "CSV").startswith("setup,model,where,phase,component,bytes")


def test_examples_dimensions_and_the_published_tables(context: Any, slow_server: Server) -> None:
    page = open_tab(context, slow_server)
    page.get_by_role("button", name="The swarm's DALL-E on a T4").click()
    says(page, "ttt-dalle")
    says(page, "It fits")
    choose(page, "Model", "custom dimensions")
    says(page, "custom gpt2")
    page.locator("#calc-dimensions").get_by_role("button").first.click()
    page.get_by_label("Vocabulary", exact=True).wait_for()
    choose(page, "Family", "vit")
    page.get_by_label("Patch size", exact=True).wait_for()
    page.get_by_label("Vocabulary", exact=True).wait_for(state="hidden")
    says(page, "custom vit")
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
    page.get_by_role("button", name="Keep this setup to compare").click()
    says(page, "optimizer=adam8bit", "#calc-compare")

    def check(moment: str) -> None:
        page.mouse.move(0, 0)
        check_looks(page, width, moment)

    check("closed")
    for name in (
        "More techniques",
        "Phases of a step",
        "The formula behind every number",
        "Predicted against measured",
    ):
        page.get_by_role("button", name=name).click()
    check("open")
    page.get_by_label("Micro-batch", exact=True).fill("0")
    page.get_by_role("alert").filter(has_text="batch_size").wait_for()
    check("refused")
    context.close()
