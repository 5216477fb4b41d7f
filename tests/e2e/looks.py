"""What can be measured of a page's looks: its width, its contrast, its labels."""

from __future__ import annotations

from typing import Any


def check_looks(page: Any, width: int, moment: str) -> None:
    """Nothing wider than the window; no contrast failure, nothing serious that axe finds."""
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_timeout(300)  # colours fade
    assert page.evaluate("document.documentElement.scrollWidth") <= width, moment
    found = Axe().run(page).response["violations"]
    serious = {
        rule["id"]: [node["html"][:200] for node in rule["nodes"]][:5]
        for rule in found
        if rule["id"] == "color-contrast" or rule["impact"] in ("serious", "critical")
    }
    assert not serious, f"{moment}: {serious}"
