"""Pictures of each checkpoint: painted by a process of its own, kept in the history, few, shown on the dashboard."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.support.swarm import LocalSwarm, processes_of, tiny_run
from tests.support.tiny import tiny_dalle, write_tiny_bundle
from ttt.bundle import Bundle
from ttt.errors import InvalidInput
from ttt.swarm.averaging.training_state import TrainingState
from ttt.swarm.config.run_config import CheckpointSection, PicturesSection, RunSettings
from ttt.swarm.config.run_file import read_run_file, write_run_file
from ttt.swarm.coordinator.checkpoints import Checkpoint, CheckpointStore
from ttt.swarm.coordinator.sample_images import NICENESS, Painter, too_many
from ttt.swarm.history.types import Picture
from ttt.swarm.history.writer import HISTORY_FILE, History
from ttt.ui.dashboard.render_cache import Board
from ttt.ui.dashboard.runs import RunFolders
from ttt.ui.dashboard.thumbnails import Thumbnails
from ttt.ui.generate.view import file_url

PROMPTS = ["a red circle", "--a green <b>star</b>"]
SETTINGS = PicturesSection(prompts=PROMPTS, candidates=2, keep=2)


def until(true: Callable[[], object], what: str, seconds: float = 280.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / HISTORY_FILE, "tiny") as history:
        yield history


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def checkpoint(folder: Path, bundle: Bundle, step: int, seed: int = 0) -> Checkpoint:
    dalle = tiny_dalle(seed)
    parameters = {f"parameters/{name}": parameter.detach() for name, parameter in dalle.named_parameters()}
    store = CheckpointStore(folder, "tiny", CheckpointSection())
    return store.save(TrainingState(step, parameters, {}), tiny_dalle(), bundle, generation=0)


def painted(history: History) -> list[tuple[int, str]]:
    return [(picture.step, picture.prompt) for picture in history.pictures()]


@pytest.mark.timeout(600)  # painters are nice: on a busy machine they take minutes
def test_the_same_prompts_are_painted_from_each_checkpoint(tmp_path: Path, history: History, bundle: Bundle) -> None:
    problems: list[str] = []
    painter = Painter(tmp_path, SETTINGS, history, problems.append)
    painter.offer(checkpoint(tmp_path, bundle, 1))
    painter.offer(checkpoint(tmp_path, bundle, 2, seed=9))  # its turn comes when the first is done
    until(lambda: len(painted(history)) == 4 or problems, "two pictures of two checkpoints")
    assert not problems
    assert painted(history) == [(1, PROMPTS[0]), (1, PROMPTS[1]), (2, PROMPTS[0]), (2, PROMPTS[1])]
    files = [tmp_path / picture.path for picture in history.pictures()]
    assert [file.name for file in files[:2]] == ["step-00000001-0.webp", "step-00000001-1.webp"]
    pixels = []
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.size) == ("WEBP", (8, 8))
            pixels.append(image.convert("RGB").tobytes())
    assert pixels[0] != pixels[2], "other weights painted the same"
    painter.close()
    assert not list(tmp_path.glob(".painting-*"))


def test_what_was_painted_is_not_painted_again_and_nothing_where_it_is_switched_off(
    tmp_path: Path, history: History, bundle: Bundle
) -> None:
    history.add_picture(Picture(1.0, 3, PROMPTS[0], "pictures/old.webp"))
    off = PicturesSection(prompts=PROMPTS, candidates=0)
    for settings in (SETTINGS, off, PicturesSection(prompts=[])):
        painter = Painter(tmp_path, settings, history, pytest.fail)
        painter.offer(checkpoint(tmp_path, bundle, 3))
        assert painter._thread is None
        painter.close()
    assert painted(history) == [(3, PROMPTS[0])]


def test_a_checkpoint_that_cannot_be_painted_is_told_and_one_that_is_gone_is_not(
    tmp_path: Path, history: History, bundle: Bundle
) -> None:
    problems: list[str] = []
    painter = Painter(tmp_path, SETTINGS, history, problems.append)
    broken = checkpoint(tmp_path, bundle, 1)
    (broken.bundle / "dalle.safetensors").write_bytes(b"broken")
    painter.offer(broken)
    until(lambda: problems, "a word about it")
    assert problems[0].startswith("step 1: no pictures were painted: Error: ")
    assert "dalle.safetensors" in problems[0]
    gone = checkpoint(tmp_path, bundle, 2)
    gone.path.rename(tmp_path / "elsewhere")
    painter.offer(gone)
    until(lambda: painter._thread is None, "its end")
    assert len(problems) == 1
    assert not painted(history)
    painter.close()


def test_nothing_waits_for_a_painter(tmp_path: Path, history: History, bundle: Bundle) -> None:
    painter = Painter(tmp_path, SETTINGS, history, pytest.fail)
    painter.offer(checkpoint(tmp_path, bundle, 1))
    until(lambda: painter._process is not None, "a process")
    assert painter._process is not None
    pid = painter._process.pid
    niceness = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])
    assert niceness == min(19, os.nice(0) + NICENESS)
    painter.close()
    assert not processes_of(pid)
    assert not painted(history)


def test_pictures_are_few_and_none_is_left_of_a_branch_that_was_given_up(tmp_path: Path, history: History) -> None:
    painter = Painter(tmp_path, SETTINGS, history, pytest.fail)
    (tmp_path / "pictures").mkdir()
    for step in (0, 10, 20):
        path = f"pictures/{step}.webp"
        (tmp_path / path).write_bytes(b"x")
        history.add_picture(Picture(float(step), step, PROMPTS[0], path))
    painter.forget_after(10)
    assert [step for step, _ in painted(history)] == [0, 10]
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["0.webp", "10.webp"]


@pytest.mark.parametrize(
    ("steps", "most", "gone"),
    [
        ([1, 2, 3], 3, set()),
        ([0, 10, 20, 30], 3, {10}),
        ([0, 9, 10, 20, 30], 4, {9}),
        ([5, 6], 1, set()),
        ([], 2, set()),
    ],
)
def test_which_pictures_go(steps: list[int], most: int, gone: set[int]) -> None:
    assert too_many(steps, most) == gone


def test_a_long_run_keeps_pictures_of_all_its_times() -> None:
    kept: set[int] = set()
    for step in range(0, 30_000, 10):
        kept |= {step}
        kept -= too_many(kept, 60)
    gaps = [b - a for a, b in zip(sorted(kept), sorted(kept)[1:], strict=False)]
    assert len(kept) == 60 and min(kept) == 0 and max(kept) == 29_990
    assert max(gaps) <= 2 * 29_990 / 59 * 1.1


@pytest.mark.parametrize("wrong", [{"prompts": [" "]}, {"prompts": ["x"] * 17}, {"candidates": -1}, {"keep": 1}])
def test_settings_that_cannot_be_are_told(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PicturesSection.model_validate(wrong)
    write_run_file(tmp_path / "run.toml", RunSettings())
    text = (tmp_path / "run.toml").read_text().replace("candidates = 4", "candidates = -4")
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(InvalidInput, match=r"\[pictures\] candidates"):
        read_run_file(tmp_path / "run.toml")


@pytest.mark.timeout(600)
def test_the_dashboard_shows_what_a_coordinator_painted(tmp_path: Path) -> None:
    """From the founding of a run to the row of pictures on the page."""
    settings = tiny_run(tmp_path, pictures={"candidates": 2, "prompts": PROMPTS})
    with LocalSwarm(tmp_path / "swarm", settings) as swarm:
        coordinator = swarm.coordinator()
        pictures = coordinator.folder / "pictures"
        until(lambda: len(list(pictures.glob("step-00000000-*.webp"))) == 2, "pictures of step 0")
        until(lambda: len(RunFolders(swarm.folder).read("coordinator").pictures) == 2, "their rows")
        assert coordinator.stop() == 0
    board = Board(RunFolders(swarm.folder), Thumbnails(tmp_path / "served"), file_url)
    html = board.draw("coordinator")["gallery"].html
    assert html.count("<img") == 2
    assert 'alt="a red circle, painted after 0 steps"' in html
    assert "--a green &lt;b&gt;star&lt;/b&gt;, painted after 0 steps" in html
    assert len(list((tmp_path / "served").glob("*.jpg"))) == 2
