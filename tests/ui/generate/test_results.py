"""Results on disk: complete, found again by their id alone, within the quota."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from ttt.results import read_settings
from ttt.sampling.params import SamplingParams
from ttt.types import RankedImage
from ttt.ui.generate.results import Result, ResultStore


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


def test_the_oldest_go_when_the_quota_is_full(tmp_path: Path) -> None:
    one = save(ResultStore(tmp_path / "one"))
    size = sum(f.stat().st_size for f in Path(one.folder).iterdir())
    store = ResultStore(tmp_path / "results", quota_bytes=int(2.5 * size))
    kept = [save(store) for _ in range(4)]
    assert [store.load(result.id) is not None for result in kept] == [False, False, True, True]
    tiny = ResultStore(tmp_path / "tiny", quota_bytes=1)
    assert tiny.load(save(tiny).id) is not None  # the newest stays, whatever its size


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultStore(tmp_path / "results")
    monkeypatch.setattr("ttt.ui.generate.results.ranked_sheet", lambda ranking: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(store)
    assert not list(store.root.iterdir())


def test_a_broken_record_is_no_result(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    saved = save(store)
    (Path(saved.folder) / "page.json").write_text('{"id": 1}')
    assert store.load(saved.id) is None
