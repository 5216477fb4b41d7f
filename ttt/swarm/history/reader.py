"""Reads a run's history, also while it is written. Independent of hivemind and of pages."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from ttt.errors import SwarmError
from ttt.swarm.history import schema as tables
from ttt.swarm.history.types import CheckpointEntry, Contributor, Event, SampleImage, Snapshot, UnixTime

COLUMNS = ("time", "step", "samples", "loss", "loss_low", "loss_high", "peers", "samples_per_second", "learning_rate")
MAX_PEERS = 1000
_MOMENTS: TypeAdapter[tuple[float, float]] = TypeAdapter(tuple[UnixTime, UnixTime])
_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(list[kind])  # type: ignore[valid-type]
    for kind in (Snapshot, Contributor, Event, CheckpointEntry, SampleImage)
}
_Row = TypeVar("_Row", Snapshot, Contributor, Event, CheckpointEntry, SampleImage)


@dataclass(frozen=True)
class About:
    """The run that a history belongs to."""

    run: str
    title: str
    target_batch_size: int
    started: float | None
    """Unix time of the first point."""
    points: int


class HistoryReader:
    """A reader that all threads may share. Raises SwarmError if the file is missing, damaged or not a history."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = tables.open_file(path, write=False)
        self._lock = threading.Lock()
        self._columns: dict[str, np.ndarray] = {name: np.empty(0) for name in COLUMNS}
        self._last, self._count = 0, 0

    def __enter__(self) -> HistoryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    def about(self) -> About:
        rows = {row.key: row.value for row in self._rows(select(tables.about).where(tables.about.c.key != "now"))}
        points = tables.points.c
        (first, count) = self._rows(select(func.min(points.time), func.count()))[0]
        return About(rows.get("run", ""), rows.get("title", ""), _int(rows.get("target_batch_size")), first, count)

    def snapshot(self) -> Snapshot | None:
        """Return the newest state of the swarm; None before the first reading."""
        rows = self._rows(select(tables.about.c.value).where(tables.about.c.key == "now"))
        try:
            return self._checked(Snapshot, [json.loads(row.value) for row in rows])[0] if rows else None
        except ValueError as error:
            raise self._malformed(error) from None

    def points(self) -> dict[str, np.ndarray]:
        """Return all points by column (`COLUMNS`), sorted by time, NaN for missing values. Do not modify the arrays.

        Only rows that were added since the last call are read from the file.
        """
        points = tables.points.c
        with self._lock:
            (last, count) = self._rows(select(func.max(points.id), func.count()))[0]
            if (last or 0) != self._last or count != self._count:
                added = self._rows(self._select_points().where(points.id > self._last))
                if self._count + len(added) != count:  # old points were merged
                    added, self._count = self._rows(self._select_points()), 0
                fresh = self._columns_of(added)
                if self._count:
                    fresh = {name: np.concatenate([self._columns[name], fresh[name]]) for name in COLUMNS}
                order = np.argsort(fresh["time"], kind="stable")
                self._columns = {name: column[order] for name, column in fresh.items()}
                self._last, self._count = last or 0, count
            return dict(self._columns)

    def peers(self, limit: int = MAX_PEERS) -> list[Contributor]:
        """Return contributors by credited computing time, then by samples."""
        table = tables.peers
        order = (table.c.seconds.desc(), table.c.samples.desc(), table.c.first_seen, table.c.peer_id)
        rows = self._rows(select(table).order_by(*order).limit(limit))
        return self._checked(Contributor, [row._asdict() for row in rows])

    def contributed_since(self, start: float) -> dict[str, tuple[float, float]]:
        """Return peer id -> (samples, seconds) credited since the start of the hour that contains `start`."""
        table = tables.contributions.c
        rows = self._rows(
            select(table.peer_id, func.sum(table.samples), func.sum(table.seconds))
            .where(table.start >= int(start) // 3600 * 3600)
            .group_by(table.peer_id)
        )
        return {peer_id: (samples, seconds) for peer_id, samples, seconds in rows}

    def contributors(self) -> int:
        """Count the peers that were credited any samples."""
        return int(self._rows(select(func.count()).where(tables.peers.c.samples > 0))[0][0])

    def events(self, limit: int = 100) -> list[Event]:
        """Return the newest ones, newest first."""
        rows = self._rows(select(tables.events).order_by(tables.events.c.time.desc()).limit(limit))
        return self._checked(Event, [row._asdict() for row in rows])

    def checkpoints(self, limit: int = 200) -> list[CheckpointEntry]:
        """Return the newest ones, newest first."""
        rows = self._rows(select(tables.checkpoints).order_by(tables.checkpoints.c.time.desc()).limit(limit))
        return self._checked(CheckpointEntry, [row._asdict() for row in rows])

    def sample_images(self, prompt: str | None = None) -> list[SampleImage]:
        """Of all prompts or one, oldest first; those of one time in the order of the run's prompts."""
        wanted = select(tables.sample_images).order_by(tables.sample_images.c.time, tables.sample_images.c.id)
        if prompt is not None:
            wanted = wanted.where(tables.sample_images.c.prompt == prompt)
        return self._checked(SampleImage, [row._asdict() for row in self._rows(wanted)])

    def _select_points(self) -> Any:
        return select(*(tables.points.c[name] for name in COLUMNS)).order_by(tables.points.c.time)

    def _columns_of(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        try:
            table = np.array([tuple(row) for row in rows], dtype=float).reshape(-1, len(COLUMNS))  # None becomes NaN
            if len(table):
                _MOMENTS.validate_python((table[:, 0].min(), table[:, 0].max()))
        except (ValueError, TypeError) as error:
            raise self._malformed(error) from None
        return {name: table[:, index] for index, name in enumerate(COLUMNS)}

    def _checked(self, kind: type[_Row], rows: list[dict[str, Any]]) -> list[_Row]:
        """Validate rows: SQLite stores any type in any column, and the file may come from a stranger."""
        try:
            return _ADAPTERS[kind].validate_python(rows)
        except ValidationError as error:
            raise self._malformed(error) from None

    def _malformed(self, error: Exception) -> SwarmError:
        first = str(error).replace("\n", " ")[:200]
        return tables.damaged(self.path, ValueError(f"malformed rows ({first})"))

    def _rows(self, statement: Any) -> Sequence[Any]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(statement).all()
        except DBAPIError as error:
            raise tables.damaged(self.path, error) from None


def _int(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
