"""The Dashboard tab: it sends only what changed, and nothing from outside as markup."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.support.tags import Tags
from ttt.errors import SwarmError
from ttt.swarm.history.types import Event, SampleImage
from ttt.swarm.history.writer import HistoryWriter
from ttt.ui.dashboard import view
from ttt.ui.dashboard.api import make_endpoints
from ttt.ui.dashboard.fake import HOSTILE, Simulation
from ttt.ui.dashboard.render_cache import FIGURE, TABLE, DashboardRenderer
from ttt.ui.dashboard.runs import HISTORY_FILE, RunData, RunFolders, RunName, RunSource
from ttt.ui.dashboard.tab import DashboardTab
from ttt.ui.dashboard.thumbnails import Thumbnails
from ttt.ui.dashboard.view import PLOTS
from ttt.ui.html import file_url

END = 1_795_000_000.0
EVIL = "<img src=x onerror=alert(1)>\"'`&{}</script>"


class Changing:
    """A source whose only run can be exchanged."""

    def __init__(self, run: RunData) -> None:
        self.run = run

    def names(self) -> list[RunName]:
        return [RunName("run", "run")]

    def read(self, key: str) -> RunData:
        return self.run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    folder = tmp_path_factory.mktemp("run")
    Simulation(end=END, steps=400, peers=24).write(folder)
    return RunFolders(folder, clock=lambda: END + 1).read(folder.name)


@pytest.fixture
def served(tmp_path: Path) -> Thumbnails:
    return Thumbnails(tmp_path / "served")


def tab_of(source: RunSource, served: Thumbnails) -> DashboardTab:
    with gr.Blocks():
        return DashboardTab(DashboardRenderer(source, served, file_url))


def sent(tab: DashboardTab, changes: dict[Any, Any]) -> dict[str, str]:
    """The fragments of an answer, by name."""
    return {name: changes[part] for name, part in tab.parts.items() if part in changes}


def test_nothing_from_outside_becomes_markup(run: RunData) -> None:
    place = replace(run.places[0], device=EVIL, name=EVIL, peer=EVIL)
    point = replace(run.checkpoints[0], checksum=EVIL, url="javascript:alert(1)", path=EVIL)
    events = [Event(END, "problem", EVIL, EVIL), Event(END, EVIL, "", EVIL)]  # type: ignore[arg-type]
    images = {EVIL: [SampleImage(END, 1, EVIL, EVIL)]}
    evil = replace(run, key=EVIL, title=EVIL, checkpoints=[point], sample_images=images,
                   status={"started": EVIL, "contributors": 1})  # fmt: skip
    pages = [
        (view.head(run), view.head(evil)),
        (view.leaderboard(run.places[:1]), view.leaderboard([place])),
        (view.checkpoints(replace(run, checkpoints=[replace(point, url="")])), view.checkpoints(evil)),
        (view.gallery(replace(run, sample_images={"x": [SampleImage(END, 1, "x", "x")]}), lambda one: "/x"),
         view.gallery(evil, lambda one: f"/{EVIL}")),
        (view.events(run.events[:2], []), view.events(events, [place])),
        (view.problem("x"), view.problem(EVIL)),
    ]  # fmt: skip
    for tame, wild in pages:
        assert Tags(wild).tags == Tags(tame).tags
        assert not Tags(wild).handlers
        assert not any(link.startswith("javascript") for link in Tags(wild).links)
        assert "<img" in Tags(wild).text


def test_hostile_names_arrive_on_the_leaderboard_as_they_were_written(run: RunData) -> None:
    page = Tags(view.leaderboard(run.places, show_all=True))
    assert "img" not in page.tags and "a" not in page.tags
    for name in HOSTILE:
        assert name[:30] in page.text
    assert "peer " in page.text  # the nameless one
    assert page.text.count("unverified") == 1  # the mark; the sentence below begins with a capital


def test_the_leaderboard_is_ranked_as_requested_and_short_by_default(run: RunData) -> None:
    by_time, by_samples = view.leaderboard(run.places), view.leaderboard(run.places, "samples", show_all=True)
    assert by_time.count("<tr>") - 1 == view.SHORT_LIST
    assert f"Showing the first {view.SHORT_LIST} of {len(run.places)}" in by_time
    assert by_samples.count("<tr>") - 1 == len(run.places) > view.SHORT_LIST
    samples = sorted((place.samples for place in run.places), reverse=True)
    positions = [by_samples.index(f"<td>{count:,}</td>") for count in samples]
    assert positions == sorted(positions)


def test_head_shows_progress_and_state(run: RunData) -> None:
    assert run.progress is not None
    going = view.head(run)
    assert 'data-state="training"' in going
    assert "Step 401: 2,730 of 4,096 samples" in going
    assert 'aria-valuenow="66"' in going
    assert "left" in going
    silent = view.head(replace(run, progress=replace(run.progress, active=False, eta_seconds=None, peers=0)))
    assert 'data-state="silent"' in silent
    assert "Offline since 2026-11-18 11:06 UTC" in silent
    assert "left" not in silent
    assert 'data-state="waiting"' in view.head(replace(run, progress=replace(run.progress, peers=0)))
    assert "first report" in view.head(replace(run, progress=None))


def test_every_plot_has_a_table_of_the_same_numbers(run: RunData) -> None:
    for name, (title, series, over, y, _) in PLOTS.items():
        curve = run.curves[series, over]
        assert title in view.figure(run, name)
        assert y.text(curve.y[-1]) in view.figure(run, name)
        assert y.text(curve.y[-1]) in view.figure_table(run, name)
        assert view.figure_table(run, name).count("<tr>") - 1 == min(40, len(curve.x))


def test_sample_images_that_are_missing_are_left_out(run: RunData, served: Thumbnails) -> None:
    def url(image: SampleImage) -> str | None:
        copy = served.of(run.folder, image.path)
        return None if copy is None or image.step == run.checkpoints[0].step else file_url(copy)

    page = Tags(view.gallery(run, url))
    assert page.tags.count("img") == 3 * 11
    assert all(link.startswith("gradio_api/file=") for link in page.links)
    assert "No sample images yet" in view.gallery(run, lambda image: None)


def test_a_page_is_sent_everything_once_and_then_only_what_changed(run: RunData, served: Thumbnails) -> None:
    source = Changing(run)
    tab = tab_of(source, served)
    first = tab.show(None, "seconds", False, [], {})
    assert set(sent(tab, first)) == set(tab.parts) - {TABLE + name for name in PLOTS}
    assert first[tab.body].visible is True
    assert first[tab.run].value == "run"
    seen = first[tab.seen]
    assert set(tab.show("run", "seconds", False, [], seen)) == {tab.seen}

    assert run.progress is not None
    source.run = replace(run, version="2", progress=replace(run.progress, samples_accumulated=3000))
    second = tab.show("run", "seconds", False, [], seen)
    assert set(sent(tab, second)) == {"head"}
    assert "3,000 of 4,096" in sent(tab, second)["head"]
    by_samples = tab.show("run", "samples", False, [], second[tab.seen])
    assert set(sent(tab, by_samples)) == {"leaderboard"}


def test_a_table_is_sent_when_it_is_opened(run: RunData, served: Thumbnails) -> None:
    tab = tab_of(Changing(run), served)
    seen = tab.show(None, "seconds", False, [], {})[tab.seen]
    opened = sent(tab, tab.show("run", "seconds", False, ["loss-time", "nonsense"], seen))
    assert set(opened) == {TABLE + "loss-time"}
    assert opened[TABLE + "loss-time"] == view.figure_table(run, "loss-time")


def test_plots_are_rendered_again_when_the_change_is_visible(run: RunData, served: Thumbnails) -> None:
    def later(seconds: float) -> RunData:
        curves = {
            key: replace(curve, x=[*curve.x, curve.x[-1] + seconds], y=[*curve.y, curve.y[-1] * 1.5])
            for key, curve in run.curves.items()
        }
        return replace(
            run, version=str(seconds), curves={k: replace(c, low=None, high=None) for k, c in curves.items()}
        )

    source = Changing(run)
    renderer = DashboardRenderer(source, served, file_url)
    before = renderer.render("run")
    source.run = later(1.0)
    assert renderer.render("run")[FIGURE + "peers-time"] == before[FIGURE + "peers-time"]
    source.run = later(1000.0)
    assert renderer.render("run")[FIGURE + "peers-time"] != before[FIGURE + "peers-time"]


def test_visitors_share_what_was_rendered(run: RunData, served: Thumbnails, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = DashboardRenderer(Changing(run), served, file_url)
    first = renderer.render("run", opened=list(PLOTS))
    for name in ("head", "figure", "figure_table", "leaderboard", "gallery", "checkpoints", "events"):
        monkeypatch.setattr(view, name, lambda *a, **k: pytest.fail("rendered again"))
    second = renderer.render("run", opened=list(PLOTS))
    assert all(second[name] is first[name] for name in first)


def test_without_a_run_the_page_says_how_to_start_one(tmp_path: Path, served: Thumbnails) -> None:
    tab = tab_of(RunFolders(tmp_path), served)
    first = tab.show(None, "seconds", False, [], {})
    assert "make swarm" in first[tab.parts["head"]]
    assert "python -m ttt coordinator" in first[tab.parts["head"]]
    assert first[tab.body].visible is False
    assert first[tab.run].visible is False
    assert set(tab.show(None, "seconds", False, [], first[tab.seen])) == {tab.seen}

    Simulation(end=END, steps=30, peers=3).write(tmp_path / "born", images=False)
    then = tab.show(None, "seconds", False, [], first[tab.seen])
    assert then[tab.body].visible is True
    assert then[tab.run].value == "born"


@pytest.mark.parametrize("key", ["no-such-run", "../../etc", EVIL, "x" * 10_000])
def test_an_unknown_run_is_reported(tmp_path: Path, served: Thumbnails, key: str) -> None:
    Simulation(end=END, steps=30, peers=3).write(tmp_path / "born", images=False)
    tab = tab_of(RunFolders(tmp_path), served)
    answer = tab.show(key, "seconds", False, [], {})
    assert "this server has: born" in answer[tab.parts["head"]]
    assert answer[tab.body].visible is False
    assert not Tags(answer[tab.parts["head"]]).handlers


@pytest.mark.parametrize("junk", [None, 5, ["a"], {"b": 1}, "x" * 100_000])
def test_junk_from_the_wire_does_no_harm(run: RunData, served: Thumbnails, junk: Any) -> None:
    tab = tab_of(Changing(run), served)
    answer = tab.show("run", junk, junk, junk, junk if isinstance(junk, dict) else {})
    assert 'data-state="training"' in answer[tab.parts["head"]]


def test_the_endpoints_answer_from_the_same_reading(tmp_path: Path) -> None:
    Simulation(end=END, steps=50, peers=6).write(tmp_path / "mine", images=False)
    source = RunFolders(tmp_path, clock=lambda: END + 1)
    swarm_status, leaderboard = make_endpoints(source)
    status = swarm_status()
    assert (status["run"], status["step"], status["active"]) == ("simulated", 50, True)
    assert status == swarm_status("mine")
    places = leaderboard("mine", "samples", 3)
    assert [place["rank"] for place in places] == [1, 2, 3]
    assert places[0]["samples"] >= places[1]["samples"] >= places[2]["samples"]
    assert places[0]["last_seen"].startswith("2026-11-1")
    json.dumps([status, places], allow_nan=False)
    assert leaderboard()[0]["seconds"] == max(place["seconds"] for place in leaderboard())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "this server has: mine"),
        (("mine", "name"), "order must be one of seconds, samples"),
        (("mine", "seconds", 0), "from 1 to 1000"),
        (("mine", "seconds", 10**9), "from 1 to 1000"),
        (("mine", "seconds", True), "from 1 to 1000"),
    ],
)
def test_wrong_arguments_are_refused_with_the_range(tmp_path: Path, arguments: Any, message: str) -> None:
    Simulation(end=END, steps=30, peers=3).write(tmp_path / "mine", images=False)
    with pytest.raises(gr.Error, match=message):
        make_endpoints(RunFolders(tmp_path))[1](*arguments)


def test_endpoints_without_a_run_say_how_to_start_one(tmp_path: Path) -> None:
    for endpoint in make_endpoints(RunFolders(tmp_path)):
        with pytest.raises(gr.Error, match="make swarm"):
            endpoint()


def test_a_damaged_history_is_reported_and_the_others_are_shown(tmp_path: Path, served: Thumbnails) -> None:
    Simulation(end=END, steps=30, peers=3).write(tmp_path / "good", images=False)
    Simulation(end=END, steps=30, peers=3).write(tmp_path / "bad", images=False)
    file = tmp_path / "bad" / HISTORY_FILE
    file.write_bytes(file.read_bytes()[:5000])
    source = RunFolders(tmp_path)
    with pytest.raises(SwarmError):
        source.read("bad")
    tab = tab_of(source, served)
    broken = tab.show("bad", "seconds", False, [], {})
    assert "Nothing was deleted" in broken[tab.parts["head"]]
    good = tab.show("good", "seconds", False, [], broken[tab.seen])
    assert good[tab.body].visible is True
    with HistoryWriter(tmp_path / "good" / HISTORY_FILE, "simulated"):
        pass  # reading left no lock behind
