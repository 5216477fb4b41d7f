"""What can be measured of the looks: contrast and labels (axe), width on a phone, nothing fetched from outside."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.looks import check_looks
from tests.e2e.test_browser import ask, open_page, result_of

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_axe_width_and_requests(browser: Any, slow_server: Server, scheme: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce", ignore_https_errors=True
    )
    outside: list[str] = []
    context.on(
        "request",
        lambda request: (
            None if request.url.startswith((slow_server.url, "data:", "blob:")) else outside.append(request.url)
        ),
    )
    page = open_page(context, slow_server)
    page.locator("#model-state [data-state=ready]").wait_for()
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")

    def check(moment: str) -> None:
        check_looks(page, width, moment)

    check("idle")
    ask(page, f"very slow looks {scheme} {width}", 4)
    page.locator("#sheet img").wait_for()
    check("running")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.locator("#status", has_text="Stopped").wait_for()
    ask(page, "", None)
    page.get_by_role("alert").wait_for()
    check("an error")
    ask(page, f"looks {scheme} {width}", 12)
    result_of(page, f"looks {scheme} {width}").locator("summary").click()
    check("finished")
    assert not outside
    context.close()
