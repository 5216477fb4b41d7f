"""Contributing as people do it: the real app, coordinator and peer; and strangers who try to interfere."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.e2e.conftest import Server, serve, start, wait_until
from tests.e2e.looks import check_looks
from tests.support.raw import Raw, signed_in
from tests.support.swarm import LocalSwarm, processes_of, tiny_run
from ttt.swarm.launcher import Launcher, View, born

pytestmark = pytest.mark.browser
APP = str(Path(__file__).parent / "slow_app.py")
BUTTONS = ("peer-start", "peer-pause", "peer-stop")
FORWARDED = {"x-forwarded-for": "203.0.113.7"}
STRANGERS: dict[str, dict[str, str]] = {
    "through a proxy": FORWARDED,
    "a proxy that claims loopback": {"x-forwarded-for": "127.0.0.1"},
    "from the page of another site": {"origin": "https://evil.example"},
    "by a name that leads here": {"host": "evil.example"},
}
NOTHING = ["", "", "", 0, 0, "", 0, 0, False, 0, ""]
"""Values of /start_peer that leave all to the app."""
PACE = 8
"""Samples a second: a peer that is held back leaves the processor to the app and the browser."""
ADDRESS = "/ip4/127.0.0.1/tcp/8080/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
TOKEN, PASSWORD = "hf_AbCdEfGhIjKlMnOpQrStUv", "a password of the owner"


@dataclass
class Place:
    """An app that may be killed and started again, and its peer's folder."""

    server: Server
    folder: Path
    options: list[str]
    launcher: Launcher

    @property
    def view(self) -> View:
        return self.launcher.view()

    def restart(self) -> None:
        """After `kill -9`."""
        self.server.process.kill()
        self.server.process.wait()
        self.server = start(self.folder, [APP, str(self.folder / "diary")], *self.options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("contribute")
    launcher = Launcher(folder / "peer")
    settings = tiny_run(folder)
    with LocalSwarm(folder / "swarm", settings) as swarm:
        address = swarm.coordinator().status.addresses[0]
        options = ["--run", str(swarm.run_file), "--initial-peer", address, "--peer-folder", str(launcher.folder),
                   "--runs", str(swarm.folder)]  # fmt: skip
        place = Place(start(folder, [APP, str(folder / "diary")], *options, HF_TOKEN=TOKEN), folder, options, launcher)
        try:
            yield place
        finally:
            launcher.stop()
            gone = launcher.wait_until_off(60)
            place.server.process.kill()
            place.server.process.wait()
            assert gone, f"the peer is still {launcher.view().phase}: {launcher.view().reason}"


def open_tab(context: Any, server: Server) -> Any:
    page = context.new_page()
    page.goto(server.url + "?tab=contribute")
    page.locator("#peer-status .ttt-peer").wait_for()
    return page


def shown(page: Any, field: str) -> str:
    return str(page.locator(f"#peer-status [data-field={field}]").inner_text())


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


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_starts_nothing(place: Place, stranger: str) -> None:
    answers = interfere(Raw(place.server.url, STRANGERS[stranger]))
    refused = [text for text in answers if "Only the owner may do this" in text or "of another site" in text]
    assert len(refused) >= 3 + len(BUTTONS)  # by name and through the queue; the other ways are closed or ask too
    assert not (place.launcher.folder / "order.json").exists()
    assert place.view.phase == "off"


def test_no_other_site_may_frame_the_page(place: Place, context: Any) -> None:
    """Or it could lay something else over the owner's buttons. Another port is another site."""

    class Framing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<iframe src='{place.server.url}'></iframe>".encode())

    other = ThreadingHTTPServer(("127.0.0.1", 0), Framing)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    page = context.new_page()
    with page.expect_event("requestfailed", lambda request: request.url == place.server.url) as blocked:
        page.goto(f"http://127.0.0.1:{other.server_port}/")
    assert blocked.value.failure == "net::ERR_BLOCKED_BY_RESPONSE"
    assert not any(frame.locator("#masthead").count() for frame in page.frames)
    page.close()
    other.shutdown()


@pytest.mark.timeout(600)  # four starts of real processes: on a busy machine each takes a minute
def test_the_owner_lends_this_machine_and_takes_it_back(place: Place, context: Any, browser: Any) -> None:
    """Start, samples rise, strangers change nothing, the app dies and comes back, Pause, Go on, Stop; and the
    leaderboard keeps what was given."""
    page = open_tab(context, place.server)
    page.get_by_text("You are at the machine itself").wait_for()
    page.locator("#place", has_text="its peers reach this one").wait_for()
    page.locator("#peer-more > button").click()
    page.locator("#peer-limit input").fill(str(PACE))
    page.get_by_role("button", name="Start", exact=True).click()
    wait_until(lambda: place.view.work.samples > 0, 120, "the first sample")
    page.locator("#peer-status", has_text="Computing").or_(
        page.locator("#peer-status", has_text="Averaging")
    ).wait_for()
    first = int(shown(page, "samples").replace(",", ""))
    wait_until(lambda: int(shown(page, "samples").replace(",", "")) > first, 60, "more samples on the page")
    assert place.view.order is not None and place.view.order.host == "127.0.0.1" and place.view.order.limit == PACE
    peer, supervisor = place.view.peer, json.loads((place.launcher.folder / "supervision.json").read_text())["pid"]
    assert os.getsid(peer) == peer != os.getsid(place.server.process.pid)

    for headers in STRANGERS.values():
        interfere(Raw(place.server.url, headers))
    time.sleep(1.0)
    assert place.view.phase == "running" and place.view.peer == peer
    stranger = browser.new_context(extra_http_headers=FORWARDED)
    stranger.set_default_timeout(40_000)
    other = open_tab(stranger, place.server)
    other.get_by_text("Only the owner may do this").wait_for()
    assert int(shown(other, "samples").replace(",", "")) > 0
    assert not other.get_by_role("button", name="Stop", exact=True).and_(other.locator("#peer-stop")).is_visible()
    assert not other.locator("#peer-log").is_visible()
    assert "/ip4/127.0.0.1" not in other.content()
    assert str(place.folder) not in other.locator("#contribute").inner_text()
    stranger.close()

    before = place.view.work.samples
    page.close()
    place.restart()
    wait_until(lambda: place.view.work.samples > before, 60, "samples while there was no app")
    assert place.view.peer == peer
    page = open_tab(context, place.server)
    wait_until(lambda: int(shown(page, "samples").replace(",", "")) > before, 60, "the new app finds the peer")

    page.locator("#peer-pause").click()
    wait_until(lambda: place.view.phase == "paused", 90, "paused")
    assert born(peer) is None
    given = place.view.work.samples
    assert given > before
    page.locator("#peer-pause", has_text="Go on").click()
    wait_until(lambda: place.view.peer not in (0, peer) and place.view.work.samples > given, 120, "it goes on")

    board = open_leaderboard(context, place.server)
    wait_until(lambda: credited(board) > given, 120, "credit for what was given after the pause")
    confirmed, peer = credited(board), place.view.peer
    page.locator("#peer-stop").click()
    assert place.launcher.wait_until_off(90)
    view = place.view
    assert view.phase == "off" and "owner" in view.reason
    assert view.status is not None and view.status.state == "stopped"
    page.locator("#peer-status", has_text="Off").wait_for()
    assert shown(page, "samples") == f"{view.work.samples:,}" and view.work.samples > given
    assert not processes_of(peer) and not processes_of(supervisor)

    board.locator("#run-head", has_text="nobody trains just now").wait_for()
    assert board.locator("#leaderboard .ttt-here").count() == 0, "it is still called active"
    assert confirmed <= credited(board) <= view.work.samples
    board.close()
    board = open_leaderboard(context, place.server)
    assert confirmed <= credited(board) <= view.work.samples
    assert f'"samples": {credited(board)}' in Raw(place.server.url).call("leaderboard", "", "samples", 5)


def open_leaderboard(context: Any, server: Server) -> Any:
    page = context.new_page()
    page.goto(server.url + "?tab=dashboard")
    page.locator("#run-head h2").wait_for()
    return page


def credited(page: Any) -> int:
    """Samples of the one contributor on the leaderboard; 0 while nobody is on it."""
    cells = page.locator("#leaderboard tbody td:nth-child(4)").all_inner_texts()
    assert len(cells) <= 1
    return int(cells[0].replace(",", "")) if cells else 0


def test_the_owner_may_by_name_too_and_a_killed_supervisor_takes_its_peer_along(place: Place) -> None:
    raw = Raw(place.server.url)
    before = place.view.work.samples
    assert '"phase": "off"' not in (said := raw.call("start_peer", *NOTHING[:7], PACE, *NOTHING[8:])), said
    assert "runs already" in raw.call("start_peer", *NOTHING)
    wait_until(lambda: place.view.work.samples > before, 120, "samples")
    given, peer = place.view.work.samples, place.view.peer
    os.kill(json.loads((place.launcher.folder / "supervision.json").read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: not processes_of(peer), 90, "the peer leaves")
    assert place.view.phase == "off" and "supervisor was killed" in place.view.reason
    assert place.view.work.samples >= given


def test_tokens_are_nowhere(place: Place) -> None:
    """Of the environment, in no file of the peer, in no log and on no page."""
    raw = Raw(place.server.url)
    texts = [path.read_bytes() for path in place.launcher.folder.rglob("*") if path.is_file()]
    texts += [path.read_bytes() for path in (place.folder / "swarm").rglob("*.json")]
    texts += [place.server.log.read_bytes(), json.dumps(raw.config()).encode()]
    texts += [raw.queue(number, *[""] * inputs).encode() for number, inputs in raw.events_on("peer-stop")]
    assert len(texts) > 8
    assert not any(TOKEN.encode() in text for text in texts)


# -- a Space ----------------------------------------------------------------------------------------------------------

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
    assert httpx.get(space.url).headers["content-security-policy"] == ("frame-ancestors 'self' https://huggingface.co")


def test_the_owner_of_a_space_may(space: Server) -> None:
    raw = as_user(space, ANNA)
    assert "the address of the run is missing" in raw.call("start_peer", *NOTHING)
    numbers = list(raw.events_on("peer-start"))
    answers = [raw.queue(number, *[""] * inputs) for number, inputs in numbers]
    assert any("the address of the run is missing" in text for text in answers), answers


@pytest.mark.parametrize(
    ("who", "raw"),
    [
        ("anonymous", lambda server: as_user(server, None)),
        ("another user", lambda server: as_user(server, BERT)),
        ("a forged session", lambda server: as_user(server, ANNA, secret="guessed")),
        ("a session that ran out", lambda server: as_user(server, ANNA, hours=-1)),
    ],
)  # fmt: skip
def test_nobody_else_may_in_a_space(space: Server, who: str, raw: Any) -> None:
    answers = interfere(raw(space))
    assert not any("of the run is missing" in text for text in answers), who
    refused = [text for text in answers if "Only the owner of this Space" in text or "belongs to anna" in text]
    assert len(refused) >= 3 + len(BUTTONS)
    assert not (space.log.parent / "peer").exists()


def test_a_stranger_in_the_owners_session_stays_a_stranger(space: Server) -> None:
    """The session of a page is a name that its browser chose; who calls is read from each request itself."""
    owner, session = as_user(space, ANNA), secrets.token_hex(8)
    number, inputs = next(owner.events_on("peer-start"))
    assert "the address of the run is missing" in owner.queue(number, *[""] * inputs, session=session)
    answer = as_user(space, BERT).queue(number, *[""] * inputs, session=session)
    assert "belongs to anna" in answer and "of the run is missing" not in answer


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
    assert "the address of the run is missing" in as_user(space, None).call("start_peer", *NOTHING[:-1], PASSWORD)
    assert "not the owner's password" in as_user(space, None).call("start_peer", *NOTHING[:-1], PASSWORD[:-1])


def test_a_space_tells_its_secrets_to_nobody(space: Server) -> None:
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
            page.get_by_label("Owner's password").press_sequentially(PASSWORD, delay=100)  # not as a machine types
            page.get_by_label("Owner's password").press("Enter")
            page.locator("#peer-more > button").click()
            page.locator("#peer-log > button").click()
            page.locator("#peer-start").click()
            page.get_by_role("alert").filter(has_text="the address of the run is missing").wait_for()
        check_looks(page, width, moment)
    context.close()
