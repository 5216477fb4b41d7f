"""Folders, archives and tables give the same pairs, and none of them can do harm."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.images import (
    SETTINGS,
    add_member,
    captions,
    image_bytes,
    rows_of,
    write_archives,
    write_folder,
    write_parquet,
)
from ttt.bundle import Bundle
from ttt.data.encode import encode
from ttt.data.image_archives import ImageArchives
from ttt.data.image_sources import find_images
from ttt.errors import DataError, InvalidInput


def test_every_kind_of_source_gives_the_same_codes(bundle: Bundle, tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / "f", 31), write_archives(tmp_path / "a"), write_parquet(tmp_path / "p")]
    for i, source in enumerate(sources):
        encode(find_images(str(source)), tmp_path / f"out{i}", bundle, SETTINGS)
    first, *others = (rows_of(tmp_path / f"out{i}") for i in range(3))
    assert len(first) == 31
    for other in others:
        assert other == first


def test_captions_of_a_folder_may_be_in_metadata_files(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c.jpg"):
        (folder / name).write_bytes(image_bytes(1, kind="JPEG" if name.endswith("jpg") else "PNG"))
    (folder / "metadata.csv").write_text('file_name,caption,NSFW\na.png,"one, two",UNLIKELY\nb.png,three,NSFW\n')
    lines = [{"file_name": "c.jpg", "text": "four", "original_width": 500, "original_height": 400},
             {"file_name": "../../../etc/passwd", "text": "five"}]  # fmt: skip
    (folder / "deep" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = encode(find_images(str(folder)), tmp_path / "out", bundle)
    assert [(r["caption"], r["original_width"]) for r in rows_of(tmp_path / "out")] == [("one, two", 24), ("four", 500)]
    assert manifest.counts == {"rows": 4, "kept": 2, "nsfw": 1, "bad_image": 1}
    (folder / "metadata.csv").write_text("caption\nno name\n")
    with pytest.raises(InvalidInput, match="no file_name"):
        find_images(str(folder))


def test_a_table_cannot_point_to_files_of_this_machine(bundle: Bundle, tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    private.write_bytes(image_bytes(7))
    (tmp_path / "images").mkdir()
    images = [{"bytes": image_bytes(1), "path": None}, {"bytes": None, "path": str(private)}]
    table = pa.table({"image": images, "caption": ["good one", "stolen"]})
    pq.write_table(table, tmp_path / "images" / "a.parquet")
    manifest = encode(find_images(str(tmp_path / "images")), tmp_path / "out", bundle)
    assert captions(tmp_path / "out") == ["good one"]
    assert manifest.counts == {"rows": 2, "kept": 1, "bad_image": 1}


def test_an_archive_never_runs_code_and_broken_samples_are_counted(bundle: Bundle, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for ending in ("pkl", "pyd", "pth"):  # ignored, like every other member that is not needed
            add_member(tar, f"bomb-{ending}.png", image_bytes(1))
            add_member(tar, f"bomb-{ending}.txt", b"a caption")
            add_member(tar, f"bomb-{ending}.{ending}", pickle.dumps(Bomb()))
        good = {"caption": "from json", "NSFW": "UNLIKELY", "original_width": 90}
        add_member(tar, "good.json", json.dumps(good).encode())
        add_member(tar, "good.jpg", image_bytes(2, kind="JPEG"))
        add_member(tar, "unsafe.json", json.dumps({"caption": "from json", "NSFW": "UNSURE"}).encode())
        add_member(tar, "unsafe.jpg", image_bytes(2, kind="JPEG"))
        add_member(tar, "no-image.txt", b"a caption alone")
        add_member(tar, "no-caption.png", image_bytes(3))
        add_member(tar, "bad-json.json", b"[" * 100_000)
        add_member(tar, "bad-json.png", image_bytes(3))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    manifest = encode(find_images(str(tmp_path / "a.tar")), tmp_path / "out", bundle)
    assert not (tmp_path / "ran").exists()
    assert captions(tmp_path / "out") == ["a caption", "a caption", "a caption", "from json"]
    assert manifest.counts == {"rows": 8, "kept": 4, "nsfw": 1, "bad_image": 1, "bad_caption": 2}


def test_a_broken_archive_gives_what_came_before_the_break(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_archives(tmp_path / "a")
    whole = (folder / "0.tar").read_bytes()
    (folder / "0.tar").write_bytes(whole[: len(whole) // 2])
    (folder / "2.tar").write_bytes(b"no archive")
    manifest = encode(find_images(str(folder)), tmp_path / "out", bundle, SETTINGS)
    found = captions(tmp_path / "out")
    assert "a red circle 0" in found
    assert "a red circle 16" not in found
    assert found[-14:] == [f"a red circle {i}" for i in range(17, 31)]
    assert manifest.counts["broken_archive"] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir(), "no images, archives or Parquet"),
        (lambda p: None, "was not found"),
        (lambda p: (p.mkdir(), (p / "a.parquet").write_bytes(b"no")), "cannot be read"),
        (lambda p: (p.mkdir(), pq.write_table(pa.table({"URL": ["http://x/y.jpg"], "TEXT": ["t"]}), p / "a.parquet")),
         "no image column; the columns are URL, TEXT"),
        (lambda p: (p.mkdir(), pq.write_table(pa.table({"image": [b"x"], "words": ["t"]}), p / "a.parquet")),
         "no caption column"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_found_are_an_error(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "images")
    with pytest.raises((InvalidInput, DataError), match=message):
        find_images(str(tmp_path / "images"))


def test_archives_stay_small_in_memory(tmp_path: Path) -> None:
    """The list of members that `tarfile` keeps is dropped, because a data set has millions."""
    source = ImageArchives((write_archives(tmp_path / "a") / "0.tar",))
    assert [pair.name for pair, _ in source.pairs(None)] == [f"{i:03d}" for i in range(17)]
    assert [pair.name for pair, _ in source.pairs((0, 15))] == ["015", "016"]
