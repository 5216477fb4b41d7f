"""The tables of a run's history, and how its file is opened and checked.

One SQLite file per run, in WAL mode: readers are not blocked while the one writer writes. A file of another program, a
damaged file or one of a newer version is an error, and is left unchanged.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from ttt.errors import SwarmError

HISTORY_FILE = "history.sqlite"
"""Name of a history in the folder of its coordinator."""
APPLICATION_ID = 0x74747468  # "ttth"
SCHEMA_VERSION = 3
RENAMED_TABLES_VERSION = 2
"""Differs from the current version only in that the table `sample_images` was called `pictures`."""
_MAGIC = b"SQLite format 3\0"

metadata = MetaData()


def _required(name: str, kind: type[TypeEngine[Any]], default: str | float | None = None) -> Column[Any]:
    """A column that is never NULL; without a default, every inserted row must have a value."""
    return Column(name, kind, nullable=False, default=default)


about = Table("about", metadata, Column("key", String, primary_key=True), _required("value", String))
points = Table(
    "points",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("time", Float),
    _required("step", Integer),
    _required("samples", Integer),
    Column("loss", Float),
    Column("loss_low", Float),
    Column("loss_high", Float),
    _required("peers", Float),
    Column("samples_per_second", Float),
    Column("learning_rate", Float),
    _required("merged", Integer, 1),
    Index("points_by_time", "time"),
)
peers = Table(
    "peers",
    metadata,
    Column("peer_id", String, primary_key=True),
    _required("name", String, ""),
    _required("device", String, ""),
    _required("first_seen", Float),
    _required("last_seen", Float),
    _required("step", Integer, 0),
    _required("samples", Float, 0.0),
    _required("seconds", Float, 0.0),
    _required("claimed_samples", Float, 0.0),
    _required("claimed_seconds", Float, 0.0),
    _required("samples_per_second", Float, 0.0),
    _required("client_mode", Integer, 0),
    _required("auxiliary", Integer, 0),
    _required("cursor", String, ""),
)
contributions = Table(
    "contributions",
    metadata,
    Column("start", Integer, primary_key=True),
    Column("peer_id", String, primary_key=True),
    _required("samples", Float),
    _required("seconds", Float),
)
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("time", Float),
    _required("kind", String),
    _required("peer_id", String, ""),
    _required("text", String, ""),
    Index("events_by_time", "time"),
)
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("time", Float),
    _required("step", Integer),
    _required("samples", Integer),
    Column("loss", Float),
    _required("path", String),
    _required("checksum", String),
    _required("url", String, ""),
)
sample_images = Table(
    "sample_images",
    metadata,
    Column("id", Integer, primary_key=True),
    _required("time", Float),
    _required("step", Integer),
    _required("prompt", String),
    _required("path", String),
    Index("sample_images_by_prompt", "prompt", "step"),
)


def open_file(path: Path, *, write: bool) -> Engine:
    """Open a history; a writer creates the file if it does not exist. Raises SwarmError if it cannot be used."""
    path = path.absolute()
    fresh = not path.exists() or path.stat().st_size == 0
    if fresh and not write:
        raise SwarmError(f"{path} does not exist yet: the coordinator of a run writes it")
    if not fresh:
        _recognise(path)
    url = f"sqlite:///{path}" if write else f"sqlite:///file:{_quoted(path)}?mode=ro&uri=true"
    engine = create_engine(url, connect_args={"timeout": 20.0})
    event.listen(engine, "connect", _prepare_writer if write else _prepare_reader)
    if write:
        try:
            metadata.create_all(engine)
        except DBAPIError as error:
            engine.dispose()
            raise damaged(path, error) from None
    return engine


def damaged(path: Path, error: Exception) -> SwarmError:
    """Return the error for a history that SQLite cannot use."""
    cause = str(getattr(error, "orig", None) or error)
    if any(word in cause for word in ("malformed", "not a database", "corrupt", "no such", "disorder", "row ")):
        todo = "Move it away (with its -wal and -shm files) to start a new history, or restore a backup"
    else:
        todo = "Check that the disk has room and that this user may write there"
    return SwarmError(f"the history {path} cannot be used: {cause}. Nothing was deleted. {todo}")


def _recognise(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
        if magic != _MAGIC:
            raise SwarmError(f"{path} is not a history (no SQLite file). Choose another folder, or move it away")
        with sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=20.0) as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            health = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        connection.close()
    except (OSError, sqlite3.DatabaseError) as error:
        raise damaged(path, error) from None
    if application != APPLICATION_ID:
        raise SwarmError(f"{path} is a SQLite file of another program. Choose another folder, or move it away")
    if version > SCHEMA_VERSION:
        raise SwarmError(f"{path} has version {version}; this program reads {SCHEMA_VERSION}: update the program")
    if version < RENAMED_TABLES_VERSION:
        raise SwarmError(
            f"{path} has version {version}; this program reads {SCHEMA_VERSION}: choose another folder, or move the "
            "file away to start a new history"
        )
    if health != "ok":
        raise damaged(path, ValueError(f"malformed ({' '.join(health.split())})"))


def _prepare_writer(connection: sqlite3.Connection, _record: object) -> None:
    if _is_old(connection):
        connection.execute("DROP INDEX IF EXISTS pictures_by_prompt")
        connection.execute("ALTER TABLE pictures RENAME TO sample_images")
        connection.execute("CREATE INDEX sample_images_by_prompt ON sample_images (prompt, step)")
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",  # a power cut may lose the last seconds, but not the file
        f"application_id = {APPLICATION_ID}",
        f"user_version = {SCHEMA_VERSION}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _prepare_reader(connection: sqlite3.Connection, _record: object) -> None:
    if _is_old(connection):  # a reader may not change the file; a temporary view lives in its connection alone
        connection.execute("CREATE TEMP VIEW sample_images AS SELECT * FROM pictures")


def _is_old(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA user_version").fetchone()[0] == RENAMED_TABLES_VERSION)


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))
