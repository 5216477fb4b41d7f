"""The Contribute tab on a Space: what the owner and other users see and may do."""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.e2e.conftest import Server, serve
from tests.e2e.looks import check_looks
from tests.e2e.strangers import APP, BUTTONS, FORWARDED, NOTHING, TOKEN, interfere, open_tab
from tests.support.raw import Raw, signed_in

pytestmark = pytest.mark.browser
ADDRESS = "/ip4/127.0.0.1/tcp/8080/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
PASSWORD = "a password of the owner"
SECRET = "client-secret-of-the-space"
SPACE = {
    "SYSTEM": "spaces", "SPACE_ID": "anna/demo", "SPACE_AUTHOR_NAME": "anna", "SPACE_CREATOR_USER_ID": "id-of-anna",
    "SPACE_HOST": "anna-demo.hf.space", "OAUTH_CLIENT_ID": "client", "OAUTH_CLIENT_SECRET": SECRET,
    "OAUTH_SCOPES": "openid profile", "OPENID_PROVIDER_URL": "https://huggingface.co", "HF_TOKEN": TOKEN,
    "TTT_OWNER_PASSWORD": PASSWORD,
}  # fmt: skip
ABOUT = {"name": "Somebody", "profile": "https://huggingface.co/somebody", "picture": "", "orgs": []}
ANNA = {**ABOUT, "preferred_username": "anna", "sub": "id-of-anna"}
BERT = {**ABOUT, "preferred_username": "bert", "sub": "id-of-bert"}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app as a Space runs it; no run is set up, so that the owner gets as far as the question for one."""
    folder = tmp_path_factory.mktemp("space")
    options = ["--host", "127.0.0.1", "--runs", str(folder / "runs"), "--peer-folder", str(folder / "peer")]
    with serve(folder, [APP, str(folder / "diary")], *options, **SPACE) as server:
        yield server


def as_user(server: Server, user: dict[str, Any] | None, *, secret: str = SECRET, hours: float = 1.0) -> Raw:
    cookie = signed_in(user, secret, expires_at=time.time() + 3600 * hours) if user else {}
    return Raw(server.url, {**FORWARDED, "host": "anna-demo.hf.space", **cookie})


def test_the_hub_shows_the_space_in_its_page(space: Server) -> None:
    assert httpx2.get(space.url).headers["content-security-policy"] == "frame-ancestors 'self' https://huggingface.co"


def test_the_owner_of_a_space_may(space: Server) -> None:
    raw = as_user(space, ANNA)
    assert "run is missing" in raw.call("start_peer", *NOTHING)
    numbers = list(raw.events_on("peer-start"))
    answers = [raw.queue(number, *[""] * inputs) for number, inputs in numbers]
    assert any("run is missing" in text for text in answers), answers


@pytest.mark.parametrize(
    ("who", "raw"),
    [
        ("anonymous", lambda server: as_user(server, None)),
        ("another user", lambda server: as_user(server, BERT)),
        ("a forged session", lambda server: as_user(server, ANNA, secret="guessed")),
        ("a session that ran out", lambda server: as_user(server, ANNA, hours=-1)),
    ],
)  # fmt: skip
def test_other_users_are_refused_in_a_space(space: Server, who: str, raw: Any) -> None:
    answers = interfere(raw(space))
    assert not any("run is missing" in text for text in answers), who
    refused = [text for text in answers if "Only the owner of this Space" in text or "belongs to anna" in text]
    assert len(refused) >= 3 + len(BUTTONS)
    assert not (space.log.parent / "peer").exists()


def test_a_stranger_in_the_owners_session_stays_a_stranger(space: Server) -> None:
    """The session of a page is a name that its browser chose; who calls is read from each request itself."""
    owner, session = as_user(space, ANNA), secrets.token_hex(8)
    number, inputs = next(owner.events_on("peer-start"))
    assert "run is missing" in owner.queue(number, *[""] * inputs, session=session)
    answer = as_user(space, BERT).queue(number, *[""] * inputs, session=session)
    assert "belongs to anna" in answer and "run is missing" not in answer


def test_no_handler_of_the_tab_follows_the_link_of_a_stranger(space: Server) -> None:
    """A run is read by its address, which is a request of this machine: for its owner alone."""
    asked: list[str] = []

    class Watched(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Watched) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        link = f"http://127.0.0.1:{server.server_address[1]}/run.toml"
        stranger, owner = as_user(space, BERT), as_user(space, ANNA)
        events = {*stranger.events_that_read("owner-password"), *stranger.events_that_read("run-file")}
        assert len(events) >= 9  # three buttons, the password, four fields, opening the page
        for number, inputs in events:
            assert '"success":true' in stranger.queue(number, "", *[link] * (inputs - 1)).replace(" ", "")
        assert "belongs to anna" in stranger.call("start_peer", link, ADDRESS, *NOTHING[2:])
        assert asked == []
        owner.call("start_peer", link, ADDRESS, *NOTHING[2:])
        assert asked == ["/run.toml"]
        server.shutdown()


def test_the_password_opens_a_space_for_scripts(space: Server) -> None:
    assert "run is missing" in as_user(space, None).call("start_peer", *NOTHING[:-1], PASSWORD)
    assert "Wrong password" in as_user(space, None).call("start_peer", *NOTHING[:-1], PASSWORD[:-1])


def test_a_space_shows_its_secrets_to_no_visitor(space: Server) -> None:
    raw = as_user(space, ANNA)
    texts = [space.log.read_text(), json.dumps(raw.config())]
    texts += [raw.queue(number, *[""] * inputs) for number, inputs in raw.events_on("peer-start")]
    for secret in (TOKEN, PASSWORD, SECRET, "hf_secretsecretsecret"):
        assert not any(secret in text for text in texts)


def test_a_visitor_of_a_space_can_duplicate_it(space: Server, context: Any) -> None:
    page = open_tab(context, space)
    link = page.get_by_role("link", name="Duplicate this Space")
    assert link.get_attribute("href") == "https://huggingface.co/spaces/anna/demo?duplicate=true"
    assert page.locator("#sign-in").is_visible()
    assert "by the hour" in page.locator("#lend").inner_text()
    assert not page.locator("#peer-start").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_axe_and_width(browser: Any, space: Server, scheme: str, width: int) -> None:
    """As a stranger, and as the owner with everything unfolded."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(40_000)
    page = open_tab(context, space)
    for moment in ("stranger", "owner"):
        if moment == "owner":
            page.get_by_label("Owner password").press_sequentially(PASSWORD, delay=100)  # not as a machine types
            page.get_by_label("Owner password").press("Enter")
            page.locator("#peer-more > button").click()
            page.locator("#peer-log > button").click()
            page.locator("#peer-start").click()
            page.get_by_role("alert").filter(has_text="run is missing").wait_for()
        check_looks(page, width, moment)
    context.close()
