"""Files and folders that appear complete or not at all: written under another name beside their place, then renamed.

A process that is killed meanwhile leaves a hidden `.NAME-XXXXXXXX.partial` behind, which `remove_partial` deletes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".partial"


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to; at the end it replaces `path`, after an error it is deleted.

    durable: a power cut also leaves either the old file or the new one. This waits for the disk.
    """
    partial = partial_path(path)
    try:
        yield partial
        if durable:
            sync_file(partial)
        partial.replace(path)
        if durable:
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace the content of `path`; only the owner may read a file written this way. durable: as in `atomic_file`."""
    with atomic_file(path, durable=durable) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)


@contextmanager
def atomic_folder(path: Path, *, durable: bool = False, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new folder to fill; at the end it takes the place of `path`, after an error it is deleted.

    An old folder at `path` is removed only once the new one is complete. mode: permissions, as in `os.mkdir`.
    """
    with partial_folder(path, mode=mode) as partial:
        yield partial
        if durable:
            sync_tree(partial)
        if path.exists():
            remove_folder(path)
        partial.rename(path)
        if durable:
            sync_folder(path.parent)


@contextmanager
def partial_folder(path: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`; it is deleted at the end unless the caller has renamed it."""
    partial = partial_path(path)
    try:
        partial.mkdir(mode=mode)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder, renamed first so that a half-deleted folder is never found under its name."""
    removed = partial_path(path)
    path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """A name beside `path` that is not in use; random, because several threads or processes may write `path`."""
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}{_SUFFIX}")


def is_partial(path: Path) -> bool:
    """True for a name that `partial_path` makes."""
    return path.name.startswith(".") and path.name.endswith(_SUFFIX)


def remove_partial(folder: Path) -> None:
    """Delete what killed writers left in `folder`. Only for folders with a single writer."""
    for path in folder.iterdir():
        if not is_partial(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk, no matter which process wrote it."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; does nothing where the system cannot sync folders."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync_file` and `sync_folder` for everything in `folder`, and for the folder itself."""
    for path in folder.rglob("*"):
        (sync_folder if path.is_dir() else sync_file)(path)
    sync_folder(folder)
