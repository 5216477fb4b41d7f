"""Contributing as people do it: the real app, coordinator and peer; and strangers who try to interfere."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.e2e.conftest import Server, start, wait_until
from tests.e2e.strangers import APP, BUTTONS, FORWARDED, NOTHING, TOKEN, interfere, open_tab
from tests.support.raw import Raw
from tests.support.swarm import LocalSwarm, processes_of, tiny_run
from ttt.swarm.process.launcher import Launcher, PeerView, start_ticks

pytestmark = pytest.mark.browser
STRANGERS: dict[str, dict[str, str]] = {
    "through a proxy": FORWARDED,
    "a proxy that claims loopback": {"x-forwarded-for": "127.0.0.1"},
    "from the page of another site": {"origin": "https://evil.example"},
    "by a name that leads here": {"host": "evil.example"},
}
PACE = 8
"""Samples per second: a peer that is held back leaves the processor to the app and the browser."""


@dataclass
class Place:
    """An app that may be killed and started again, and its peer's folder."""

    server: Server
    folder: Path
    options: list[str]
    launcher: Launcher

    @property
    def view(self) -> PeerView:
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


def shown(page: Any, field: str) -> str:
    return str(page.locator(f"#peer-status [data-field={field}]").inner_text())


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_starts_nothing(place: Place, stranger: str) -> None:
    answers = interfere(Raw(place.server.url, STRANGERS[stranger]))
    reasons = ("Only the owner can start a peer here", "sent by another site")
    refused = [text for text in answers if any(reason in text for reason in reasons)]
    assert len(refused) >= 3 + len(BUTTONS)  # by name and through the queue; the other ways are closed or ask too
    assert not (place.launcher.folder / "desired.json").exists()
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
    """Start, samples rise, strangers change nothing, the app dies and comes back, Pause, Resume, Stop; and the
    leaderboard keeps what was given."""
    page = open_tab(context, place.server)
    page.get_by_text("You are on this machine").wait_for()
    page.locator("#machine", has_text="The run is on this machine").wait_for()
    page.locator("#peer-more > button").click()
    page.locator("#peer-limit input").fill(str(PACE))
    page.get_by_role("button", name="Start", exact=True).click()
    wait_until(lambda: place.view.contribution.samples > 0, 120, "the first sample")
    page.locator("#peer-status", has_text="Computing").or_(
        page.locator("#peer-status", has_text="Averaging")
    ).wait_for()
    first = int(shown(page, "samples").replace(",", ""))
    wait_until(lambda: int(shown(page, "samples").replace(",", "")) > first, 60, "more samples on the page")
    assert (
        place.view.desired_state is not None
        and place.view.desired_state.host == "127.0.0.1"
        and place.view.desired_state.limit == PACE
    )
    peer, supervisor = place.view.peer_pid, json.loads((place.launcher.folder / "supervisor.json").read_text())["pid"]
    assert os.getsid(peer) == peer != os.getsid(place.server.process.pid)

    for headers in STRANGERS.values():
        interfere(Raw(place.server.url, headers))
    time.sleep(1.0)
    assert place.view.phase == "running" and place.view.peer_pid == peer
    stranger = browser.new_context(extra_http_headers=FORWARDED)
    stranger.set_default_timeout(40_000)
    other = open_tab(stranger, place.server)
    other.get_by_text("Only the owner can start a peer here").wait_for()
    assert int(shown(other, "samples").replace(",", "")) > 0
    assert not other.get_by_role("button", name="Stop", exact=True).and_(other.locator("#peer-stop")).is_visible()
    assert not other.locator("#peer-log").is_visible()
    assert "/ip4/127.0.0.1" not in other.content()
    assert str(place.folder) not in other.locator("#contribute").inner_text()
    stranger.close()

    before = place.view.contribution.samples
    page.close()
    place.restart()
    wait_until(lambda: place.view.contribution.samples > before, 60, "samples while there was no app")
    assert place.view.peer_pid == peer
    page = open_tab(context, place.server)
    wait_until(lambda: int(shown(page, "samples").replace(",", "")) > before, 60, "the new app finds the peer")

    page.locator("#peer-pause").click()
    wait_until(lambda: place.view.phase == "paused", 90, "paused")
    assert start_ticks(peer) is None
    given = place.view.contribution.samples
    assert given > before
    page.locator("#peer-pause", has_text="Resume").click()
    wait_until(
        lambda: place.view.peer_pid not in (0, peer) and place.view.contribution.samples > given, 120, "it resumes"
    )

    board = open_leaderboard(context, place.server)
    wait_until(lambda: credited(board) > given, 120, "credit for what was given after the pause")
    confirmed, peer = credited(board), place.view.peer_pid
    page.locator("#peer-stop").click()
    assert place.launcher.wait_until_off(90)
    view = place.view
    assert view.phase == "off" and "owner" in view.reason
    assert view.status is not None and view.status.state == "stopped"
    page.locator("#peer-status", has_text="Off").wait_for()
    assert shown(page, "samples") == f"{view.contribution.samples:,}" and view.contribution.samples > given
    assert not processes_of(peer) and not processes_of(supervisor)

    board.locator("#run-head", has_text="No peers are training right now").wait_for()
    assert board.locator("#leaderboard .ttt-here").count() == 0, "it is still called active"
    assert confirmed <= credited(board) <= view.contribution.samples
    board.close()
    board = open_leaderboard(context, place.server)
    assert confirmed <= credited(board) <= view.contribution.samples
    assert f'"samples": {credited(board)}' in Raw(place.server.url).call("leaderboard", "", "samples", 5)


def open_leaderboard(context: Any, server: Server) -> Any:
    page = context.new_page()
    page.goto(server.url + "?tab=dashboard")
    page.locator("#run-head h2").wait_for()
    return page


def credited(page: Any) -> int:
    """Samples of the one contributor on the leaderboard; 0 while it is empty."""
    cells = page.locator("#leaderboard tbody td:nth-child(4)").all_inner_texts()
    assert len(cells) <= 1
    return int(cells[0].replace(",", "")) if cells else 0


def test_the_owner_may_by_name_too_and_a_killed_supervisor_takes_its_peer_along(place: Place) -> None:
    raw = Raw(place.server.url)
    before = place.view.contribution.samples
    assert '"phase": "off"' not in (said := raw.call("start_peer", *NOTHING[:7], PACE, *NOTHING[8:])), said
    assert "runs already" in raw.call("start_peer", *NOTHING)
    wait_until(lambda: place.view.contribution.samples > before, 120, "samples")
    given, peer = place.view.contribution.samples, place.view.peer_pid
    os.kill(json.loads((place.launcher.folder / "supervisor.json").read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: not processes_of(peer), 90, "the peer leaves")
    assert place.view.phase == "off" and "supervisor was killed" in place.view.reason
    assert place.view.contribution.samples >= given


def test_tokens_are_nowhere(place: Place) -> None:
    """Of the environment, in no file of the peer, in no log and on no page."""
    raw = Raw(place.server.url)
    texts = [path.read_bytes() for path in place.launcher.folder.rglob("*") if path.is_file()]
    texts += [path.read_bytes() for path in (place.folder / "swarm").rglob("*.json")]
    texts += [place.server.log.read_bytes(), json.dumps(raw.config()).encode()]
    texts += [raw.queue(number, *[""] * inputs).encode() for number, inputs in raw.events_on("peer-stop")]
    assert len(texts) > 8
    assert not any(TOKEN.encode() in text for text in texts)
