"""Every way to press the buttons of the Contribute tab, for those who are allowed to and for those who are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.conftest import Server
from tests.support.raw import Raw

APP = str(Path(__file__).parent / "slow_app.py")
BUTTONS = ("peer-start", "peer-pause", "peer-stop")
FORWARDED = {"x-forwarded-for": "203.0.113.7"}
NOTHING = ["", "", "", 0, 0, "", 0, 0, False, 0, ""]
"""Values of /start_peer that leave all to the app."""
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUv"
"""In the environment of the app; it must not be shown to anyone."""


def open_tab(context: Any, server: Server) -> Any:
    page = context.new_page()
    page.goto(server.url + "?tab=contribute")
    page.locator("#peer-status .ttt-peer").wait_for()
    return page


def interfere(raw: Raw) -> list[str]:
    """All ways to the buttons; what the server answered to each."""
    answers = [raw.call("start_peer", *NOTHING), raw.call("stop_peer", ""), raw.call_v2("stop_peer", password="")]
    for name, data in (("start_peer", NOTHING), ("stop_peer", [""])):
        answers += [raw.post(f"{way}/{name}", {"data": data}).text for way in ("run", "api")]
    for button in BUTTONS:
        events = list(raw.events_on(button))
        assert events, f"nothing happens at a press of {button}"
        for number, inputs in events:
            answers.append(raw.queue(number, *[""] * inputs))
            answers.append(raw.post("run/predict", {"data": [""] * inputs, "fn_index": number}).text)
    return answers
