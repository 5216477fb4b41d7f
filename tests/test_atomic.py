"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ttt import atomic


class Interrupted(Exception):
    pass


def write_half(path: Path) -> None:
    path.write_text("half")
    raise Interrupted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic.atomic_file(path, durable=durable) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert atomic.is_partial(partial) and partial.parent == tmp_path
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Interrupted), atomic.atomic_file(path) as partial:
        write_half(partial)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_what_the_block_did_not_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.atomic_file(tmp_path / "file"):
        pass


def test_data_is_written_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_atomically(path, b"old")
    atomic.write_atomically(path, b"new", durable=True)
    assert path.read_bytes() == b"new"
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_threads_that_write_one_file_leave_the_data_of_one(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([65 + i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=atomic.write_atomically, args=(path, data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path, durable: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    with atomic.atomic_folder(folder, durable=durable, mode=0o700) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "new").touch()
        assert names(folder) == ["old"]
    assert names(folder) == ["sub"] and names(tmp_path) == ["folder"]
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_after_an_error_the_old_folder_is_there_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(Interrupted), atomic.atomic_folder(folder) as partial:
        write_half(partial / "half")
    assert names(folder) == ["old"] and names(tmp_path) == ["folder"]


def test_a_partial_folder_stays_where_the_caller_moves_it(tmp_path: Path) -> None:
    with atomic.partial_folder(tmp_path / "folder") as partial:
        partial.rename(tmp_path / "moved")
    with atomic.partial_folder(tmp_path / "folder") as partial:
        (partial / "half").touch()
    assert names(tmp_path) == ["moved"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    atomic.partial_path(tmp_path / "file").touch()
    left = atomic.partial_path(tmp_path / "folder")
    left.mkdir()
    (left / "half").touch()
    for name in (".hidden", "visible.partial", "file"):
        (tmp_path / name).touch()
    atomic.remove_partial(tmp_path)
    assert names(tmp_path) == [".hidden", "file", "visible.partial"]


def test_everything_in_a_durable_folder_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with atomic.atomic_folder(tmp_path / "folder", durable=True) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").touch()
    folder = tmp_path / "folder"
    expected = [folder / "sub" / "file", folder / "sub", folder, tmp_path]
    assert {path.stat().st_ino for path in expected} <= set(synced)
