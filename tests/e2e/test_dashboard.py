"""The Dashboard tab as people and scripts use it: Chromium and gradio_client against the running app."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.e2e.conftest import Server, serve, wait_until
from tests.e2e.looks import check_looks
from ttt.swarm.history.writer import HistoryWriter
from ttt.ui.dashboard.fake import HOSTILE, Simulation
from ttt.ui.dashboard.runs import HISTORY_FILE

Page = Any
APP = str(Path(__file__).parent / "dashboard_app.py")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one of 24 peers that is running, and one that has ended."""
    folder = tmp_path_factory.mktemp("machine") / "runs"
    Simulation(end=time.time() + 3600, steps=600).write(folder / "swarm" / "coordinator", "swarm", "Shapes together")
    Simulation(end=time.time() - 9e5, steps=60, peers=4, seed=1).write(folder / "ended", "ended", "")
    return folder


@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), [APP], "--runs", str(runs)) as server:
        yield server


def open_dashboard(context: Any, server: Server, query: str = "?tab=dashboard") -> Page:
    page = context.new_page()
    page.goto(server.url + query)
    page.locator("#run-head h2").wait_for()
    return page


def test_a_visitor_sees_the_run(context: Any, server: Server) -> None:
    page = open_dashboard(context, server)
    assert page.locator("#run-head h2").inner_text() == "Shapes together"
    assert "Step 601: " in page.locator("#run-head").inner_text()
    drawn = page.locator("#plots figure")
    assert drawn.count() == 6
    assert drawn.locator("polyline").count() >= 6
    for image in page.locator("#gallery img").all()[:2]:
        image.scroll_into_view_if_needed()
        wait_until(lambda image=image: image.evaluate("image => image.naturalWidth") == 128, 20, "an image")
    rows = page.locator("#checkpoints tbody tr")
    assert rows.count() == 12
    assert rows.first.get_by_role("link").get_attribute("href").startswith("https://huggingface.co/")


def test_names_of_strangers_are_text(context: Any, server: Server) -> None:
    page = open_dashboard(context, server)
    alarms: list[str] = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    page.get_by_label("Show all").check()
    board = page.locator("#leaderboard")
    board.get_by_text(HOSTILE[0]).wait_for()
    assert board.locator("img").count() == 0
    assert board.locator("a").count() == 0
    assert board.get_by_text(HOSTILE[1][:30]).count() == 1
    assert not alarms


def test_the_leaderboard_is_ranked_as_chosen(context: Any, server: Server) -> None:
    page = open_dashboard(context, server)

    def samples() -> list[int]:
        cells = page.locator("#leaderboard tbody tr td:nth-child(4)").all_inner_texts()
        return [int(text.replace(",", "")) for text in cells]

    assert samples() != sorted(samples(), reverse=True)
    page.get_by_label("Samples", exact=True).check()
    wait_until(lambda: samples() == sorted(samples(), reverse=True), 20, "ranked by samples")


def test_every_plot_has_its_table_within_reach_of_the_keyboard(context: Any, server: Server) -> None:
    page = open_dashboard(context, server)
    opener = page.get_by_role("button", name="Loss over time as a table")
    assert page.get_by_role("button", name="as a table").count() == 6
    opener.focus()
    page.keyboard.press("Enter")
    table = page.get_by_role("region", name="Loss over time").get_by_role("table")
    table.wait_for()
    assert table.get_by_role("row").count() == 41
    assert table.get_by_role("columnheader").all_inner_texts() == ["Time (UTC)", "Loss", "Low", "High"]


def test_values_under_the_pointer(context: Any, server: Server) -> None:
    page = open_dashboard(context, server)
    area = page.locator("#plot-step-time .ttt-area")
    area.hover()
    words = area.locator(".ttt-read span")
    words.wait_for()
    step, moment = words.inner_text().split(" at ")
    assert 0 < int(step) < 600
    assert len(moment) == 16
    page.locator("#run-head").hover()
    words.wait_for(state="detached")


def test_news_arrive_by_themselves_and_an_open_table_stays_open(context: Any, server: Server, runs: Path) -> None:
    page = open_dashboard(context, server)
    page.get_by_role("button", name="Loss over time as a table").click()
    table = page.get_by_role("region", name="Loss over time").get_by_role("table")
    table.wait_for()
    simulation = Simulation(end=time.time() + 7200, steps=600)
    with HistoryWriter(runs / "swarm" / "coordinator" / HISTORY_FILE, "swarm", title="Shapes together") as history:
        history.add_points([replace(simulation.points[-1], step=700, samples=700 * 4096, loss=1.2345)])
        history.set_snapshot(replace(simulation.now(), step=700, samples_accumulated=1024))
        page.locator("#run-head", has_text="Step 701: 1,024 of 4,096 samples").wait_for()
        table.get_by_text("1.234").wait_for()
        page.locator("#plot-loss-time figcaption", has_text="1.234").wait_for()


def test_another_tab_is_left_alone_and_no_news_cost_little(context: Any, server: Server) -> None:
    page = open_dashboard(context, server, "?run=ended")
    answers: list[int] = []
    page.on("requestfinished", lambda r: answers.append(r.sizes()["responseBodySize"]) if "predict" in r.url else None)

    def until(true: Callable[[], object]) -> None:
        wait_until(lambda: page.wait_for_timeout(100) or true(), 40)  # requests are only heard of while one waits

    until(lambda: len(answers) >= 6)
    assert max(answers[-2:]) < 4000  # nothing happens in a run that ended
    page.get_by_role("tab", name="Generate").click()
    page.locator("#prompt").wait_for()
    page.wait_for_timeout(1500)  # what was under way
    answers.clear()
    page.wait_for_timeout(3000)
    assert not answers
    page.get_by_role("tab", name="Dashboard").click()
    until(lambda: len(answers) >= 3)


def test_a_run_has_an_address(context: Any, server: Server) -> None:
    page = open_dashboard(context, server, "?run=ended")
    page.locator("#run-head", has_text="Offline since").wait_for()
    assert page.get_by_label("Run", exact=True).input_value() == "ended"
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name="Shapes together (running)").click()
    page.locator("#run-head h2", has_text="Shapes together").wait_for()
    page.wait_for_url("**/*run=swarm*")
    page.reload()
    page.locator("#run-head h2", has_text="Shapes together").wait_for()
    lost = context.new_page()
    lost.goto(server.url + "?run=lost")
    lost.get_by_role("alert").wait_for()
    assert "this server has: " in lost.get_by_role("alert").inner_text()
    assert lost.locator("#plots").is_hidden()


def test_scripts_read_the_same(server: Server) -> None:
    client = Client(server.url, verbose=False)
    status = client.predict(run="ended", api_name="/swarm_status")
    assert (status["run"], status["step"], status["active"]) == ("ended", 60, False)
    assert client.predict(api_name="/swarm_status")["run"] == "swarm"
    places = client.predict(run="swarm", order="samples", limit=5, api_name="/leaderboard")
    assert [place["rank"] for place in places] == [1, 2, 3, 4, 5]
    assert HOSTILE[0] in {place["name"] for place in client.predict(run="swarm", api_name="/leaderboard")}
    with pytest.raises(AppError, match="this server has: "):
        client.predict(run="../ended", api_name="/swarm_status")


def test_files_of_a_run_are_not_served(server: Server, runs: Path) -> None:
    for file in (
        runs / "ended" / HISTORY_FILE,
        runs / "ended" / "sample_images",
        *(runs / "ended" / "sample_images").iterdir(),
    ):
        assert httpx2.get(f"{server.url}gradio_api/file={file}").status_code in (403, 404), file


def test_where_nothing_runs_the_page_says_how_to_start_and_shows_what_then_starts(browser: Any, tmp_path: Path) -> None:
    with serve(tmp_path, [APP], "--runs", str(tmp_path / "runs")) as server:
        context = browser.new_context(viewport={"width": 375, "height": 800}, reduced_motion="reduce")
        page = open_dashboard(context, server)
        page.get_by_text("No runs yet").wait_for()
        assert "make swarm" in page.locator("#run-head").inner_text()
        check_looks(page, 375, "no run")
        Simulation(end=time.time() + 600, steps=40, peers=3).write(tmp_path / "runs" / "first")
        page.locator("#run-head h2", has_text="A simulated run").wait_for(timeout=40_000)
        page.locator("#plots figure").first.wait_for()
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_axe_width_and_requests(browser: Any, server: Server, scheme: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    outside: list[str] = []
    ours = (server.url, "data:", "blob:")
    context.on("request", lambda request: None if request.url.startswith(ours) else outside.append(request.url))
    page = open_dashboard(context, server)
    page.locator("#plots polyline").first.wait_for()
    page.get_by_role("button", name="Loss over samples as a table").click()
    page.get_by_role("region", name="Loss over samples").wait_for()
    page.get_by_role("button", name="Recent events").click()
    page.get_by_role("region", name="Recent events").wait_for()
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    check_looks(page, width, "a run")
    assert not outside
    context.close()
