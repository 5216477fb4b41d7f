"""Encoding resumes after being killed anywhere and ends with the same bytes; other folders are left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm
from tests.support.images import (
    SETTINGS,
    captions,
    content,
    image_bytes,
    rows_of,
    write_archives,
    write_folder,
    write_parquet,
)
from tests.support.waiting import wait_for
from ttt.bundle import DEMO_FOLDER, Bundle, read_bundle
from ttt.data.encode import encode
from ttt.data.filters import EncodeSettings
from ttt.data.image_sources import find_images
from ttt.errors import DataError, InvalidInput


def kill_at_some_shard(arguments: list[str], out: Path, shards: int) -> None:
    """Start the command `ttt`, and kill it as soon as so many shards exist."""
    process = warm.start(warm.run_ttt, arguments)
    wait_for(lambda: len(list(out.glob("*.parquet"))) >= shards or not process.is_alive(), 120, every=0.005)
    process.kill()
    process.join()


def test_killed_and_run_again_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 300)
    (folder / "150.txt").write_text("x")
    (folder / "299.png").write_bytes(b"broken")
    settings = EncodeSettings(shard_size=12, batch_size=5)
    encode(find_images(str(folder)), tmp_path / "undisturbed", bundle, settings)
    out = tmp_path / "out"
    command = ["encode", str(folder), str(out), "--model", str(bundle.root),
               "--shard-size", "12", "--batch-size", "5", "--device", "cpu"]  # fmt: skip
    kill_at_some_shard(command, out, 2)
    there = len(list(out.glob("*.parquet")))
    assert 2 <= there < 25
    assert not json.loads((out / "dataset.json").read_text())["complete"]
    (out / ".00007.parquet-1.partial").write_bytes(b"left by a run that was killed")
    encode(find_images(str(folder)), out, bundle, settings)
    assert content(out) == content(tmp_path / "undisturbed")
    assert json.loads((out / "dataset.json").read_text())["counts"] == {
        "rows": 300, "kept": 298, "short_caption": 1, "bad_image": 1
    }  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "archives", "parquet"])
def test_stopped_anywhere_and_run_again_gives_the_same_bytes(bundle: Bundle, tmp_path: Path, source: str) -> None:
    images = {"folder": lambda p: write_folder(p, 31), "archives": write_archives, "parquet": write_parquet}[source](
        tmp_path / "images"
    )
    encode(find_images(str(images)), tmp_path / "undisturbed", bundle, SETTINGS)
    for stop in (1, 3, 5, 8):
        out = tmp_path / f"out{stop}"
        calls = iter(range(stop))

        def report(counts: object, shards: int, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            encode(find_images(str(images)), out, bundle, SETTINGS, report=report)
        encode(find_images(str(images)), out, bundle, SETTINGS)
        assert rows_of(out) == rows_of(tmp_path / "undisturbed")
        assert content(out) == content(tmp_path / "undisturbed")
        counts = [json.loads((o / "dataset.json").read_text())["counts"] for o in (out, tmp_path / "undisturbed")]
        assert counts[0] == counts[1]
    assert len(captions(tmp_path / "undisturbed")) == 31


def test_a_folder_of_another_run_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "images", 12), tmp_path / "out"
    encode(find_images(str(folder)), out, bundle, SETTINGS)
    before = content(out)
    with pytest.raises(InvalidInput, match="shard_size '10', and this run has '11'"):
        encode(find_images(str(folder)), out, bundle, EncodeSettings(shard_size=11))
    with pytest.raises(InvalidInput, match="min_caption"):
        encode(find_images(str(folder)), out, bundle, EncodeSettings(shard_size=10, min_caption=5))
    with pytest.raises(InvalidInput, match="started with model 'tiny'"):
        encode(find_images(str(folder)), out, read_bundle(DEMO_FOLDER), SETTINGS)
    (folder / "new.png").write_bytes(image_bytes(99))
    with pytest.raises(InvalidInput, match="started with images"):
        encode(find_images(str(folder)), out, bundle, SETTINGS)
    with pytest.raises(InvalidInput, match="not created by `ttt encode`"):
        encode(find_images(str(folder)), folder, bundle, SETTINGS)
    with pytest.raises(InvalidInput, match="is a file"):
        encode(find_images(str(folder)), out / "00000.parquet", bundle, SETTINGS)
    assert content(out) == before


def test_encoding_that_was_killed_at_once_can_be_started_again(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "images", 12), tmp_path / "out"
    out.mkdir()
    (out / ".dataset.json-123.partial").write_text('{"format')
    assert encode(find_images(str(folder)), out, bundle, SETTINGS).complete
    assert not list(out.glob(".*"))


def test_a_finished_folder_is_not_changed(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "images", 12), tmp_path / "out"
    manifest = encode(find_images(str(folder)), out, bundle, SETTINGS)
    times = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert encode(find_images(str(folder)), out, bundle, SETTINGS) == manifest
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == times


def test_a_damaged_folder_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "images", 25), tmp_path / "out"
    encode(find_images(str(folder)), out, bundle, SETTINGS)
    unfinished = json.loads((out / "dataset.json").read_text()) | {"complete": False}
    (out / "dataset.json").write_text(json.dumps(unfinished))
    last = out / "00002.parquet"
    whole = last.read_bytes()
    last.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"00002\.parquet is broken; delete it"):
        encode(find_images(str(folder)), out, bundle, SETTINGS)
    last.unlink()
    encode(find_images(str(folder)), out, bundle, SETTINGS)
    assert last.read_bytes() == whole
    (out / "00001.parquet").unlink()
    with pytest.raises(DataError, match="lacks one of the shards"):
        encode(find_images(str(folder)), out, bundle, SETTINGS)
