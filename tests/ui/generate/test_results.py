"""Results on disk: complete, found again by their id alone, within the quota, and beside other people's files."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from ttt.errors import InvalidInput
from ttt.results import read_settings
from ttt.sampling.params import SamplingParams
from ttt.types import RankedImage
from ttt.ui.generate.results import FOLDER, MARKER, UNFINISHED, UNFINISHED_SECONDS, Result, ResultStore


def save(store: ResultStore, count: int = 20, prompt: str = "a red circle") -> Result:
    params = SamplingParams(candidates=count, keep=2, seed=5)
    ranking = [RankedImage(Image.new("RGB", (64, 64), (i, 0, 0)), 30.0 - i, i, 5) for i in range(count)]
    return store.save(prompt=prompt, params=params, model="demo", images=ranking[:2], ranking=ranking, seconds=1.5)


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    saved = save(store)
    assert store.load(saved.id) == saved
    assert ResultStore(tmp_path / "results").load(saved.id) == saved
    assert [p.candidate for p in saved.best] == [0, 1]
    assert len(saved.ranking) == 20
    assert read_settings(saved.path(saved.best[0].file))["params"]["seed"] == 5
    assert zipfile.is_zipfile(saved.archive)
    with Image.open(saved.ranked_sheet) as sheet:
        assert sheet.size == (16 * 128, 2 * 128)


def test_only_the_whole_id_finds_a_result(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    key = save(store).id
    assert len(key) >= 32
    (tmp_path / "secret").mkdir()
    for wrong in (key[:-1], key + "x", "", "..", "../secret", ".", "a" * 32, None, 7, {"a": 1}, "x" * 10_000):
        assert store.load(wrong) is None


def test_the_oldest_are_deleted_when_the_quota_is_exceeded(tmp_path: Path) -> None:
    one = save(ResultStore(tmp_path / "one"))
    size = sum(f.stat().st_size for f in Path(one.folder).iterdir())
    store = ResultStore(tmp_path / "results", quota_bytes=int(2.5 * size))
    saved = [save(store) for _ in range(4)]
    assert [store.load(result.id) is not None for result in saved] == [False, False, True, True]
    tiny = ResultStore(tmp_path / "tiny", quota_bytes=1)
    assert tiny.load(save(tiny).id) is not None  # the newest stays, whatever its size


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path / "results")
    monkeypatch.setattr("ttt.ui.generate.results.ranked_sheet", lambda ranking: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(store)
    assert [path.name for path in store.root.iterdir()] == [MARKER]


def test_a_broken_record_is_no_result(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    saved = save(store)
    (Path(saved.folder) / "page.json").write_text('{"id": 1}')
    assert store.load(saved.id) is None


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_other_peoples_files_are_never_touched(tmp_path: Path) -> None:
    """Beside the store's folder and inside it, whatever their names look like."""
    looks_like_an_id = "training-transformers-together01"
    inside = tmp_path / FOLDER
    ResultStore(tmp_path)
    for parent in (tmp_path, inside):
        (parent / "holiday-in-italy-2023").mkdir()
        (parent / "holiday-in-italy-2023" / "beach.jpg").write_bytes(bytes(100_000))
        (parent / looks_like_an_id).mkdir()
        (parent / looks_like_an_id / "README.md").write_bytes(bytes(100_000))
        (parent / ("a" * 32)).write_text("a plain file")
        (parent / f".{looks_like_an_id}").mkdir()
        os.utime(parent / looks_like_an_id, (0, 0))
    before = files_below(tmp_path)
    store = ResultStore(tmp_path, quota_bytes=1)
    results = [save(store) for _ in range(3)]
    assert before <= files_below(tmp_path)
    assert [store.load(result.id) is not None for result in results] == [False, False, True]


def test_a_folder_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInput, match="did not write; choose another folder"):
        ResultStore(tmp_path)
    assert files_below(tmp_path / FOLDER) == {Path("thesis.tex")}


def test_a_link_to_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / FOLDER).symlink_to(tmp_path / "private")
    with pytest.raises(InvalidInput, match="is a link"):
        ResultStore(tmp_path)


def test_killed_saves_are_cleaned_up(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    killed, running = (store.root / f"{UNFINISHED}{letter * 32}" for letter in "kr")
    for folder in (killed, running):
        folder.mkdir()
        (folder / "0001_candidate000.png").write_bytes(b"half an image")
    long_ago = time.time() - UNFINISHED_SECONDS - 1
    os.utime(killed, (long_ago, long_ago))
    save(store)
    assert not killed.exists()
    assert running.exists()  # of another app that uses this folder
    os.utime(running, (long_ago, long_ago))
    ResultStore(tmp_path)
    assert not running.exists()
