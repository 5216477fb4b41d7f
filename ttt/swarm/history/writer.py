"""Writes a run's history: one SQLite file beside the checkpoints. Independent of hivemind and of pages.

Old rows are merged (`THINNING`): all points remain for a day, then one per minute, after a week one per ten minutes,
after a month one per hour; a merged point keeps the extremes of the loss. Contributions are stored by hour, after a
month by day. Only the newest `MAX_EVENTS` events remain. Contributors remain; checkpoints and sample images
until their keepers forget them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from sqlalchemy import ColumnElement, Connection, Integer, bindparam, case, cast, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import Insert
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DBAPIError

from ttt.errors import InvalidInput
from ttt.swarm.history import schema as tables
from ttt.swarm.history.types import CheckpointEntry, Contributor, Event, Point, SampleImage, Snapshot

HOUR, DAY = 3600, 86_400
THINNING = ((DAY, 60), (7 * DAY, 600), (30 * DAY, HOUR))
"""(age in seconds, seconds between the points that remain)."""
CONTRIBUTIONS_BY_DAY_AFTER = 30 * DAY
MAX_EVENTS = 20_000


class HistoryWriter:
    """The one writer of a history; a second writer of the same file is refused."""

    def __init__(self, path: Path, run: str, *, title: str = "", target_batch_size: int = 0) -> None:
        """Open or create the file.

        Raises SwarmError if it is damaged or not a history, InvalidInput if it is in use or belongs to another run.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.run = path, run
        self._lock = _exclusive(path)
        try:
            self._engine = tables.open_file(path, write=True)
            self._describe(run, title, target_batch_size)
        except BaseException:
            self._lock.close()
            raise
        self._thinned = float("-inf")

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()
        self._lock.close()

    def add_points(self, points: Iterable[Point], *, thin: bool = True) -> None:
        """Append points; once an hour, by the time of the points, old ones are merged."""
        rows = [asdict(point) for point in points]
        if not rows:
            return
        with self._writing() as connection:
            connection.execute(insert(tables.points), rows)
        if thin and (now := rows[-1]["time"]) - self._thinned >= HOUR:
            self.thin(now)

    def set_snapshot(self, snapshot: Snapshot) -> None:
        with self._writing() as connection:
            _set(connection, "now", json.dumps(asdict(snapshot)))

    def credit(self, peers: Iterable[Contributor], *, time: float) -> None:
        """Replace the rows of these peers, and add the difference to the contributions of the current hour."""
        rows = [asdict(peer) for peer in peers]
        if not rows:
            return
        with self._writing() as connection:
            stored = {row.peer_id: row for row in connection.execute(select(tables.peers))}
            changed = [row for row in rows if row["peer_id"] not in stored or row != stored[row["peer_id"]]._asdict()]
            gained = [
                {"start": int(time) // HOUR * HOUR, "peer_id": row["peer_id"], **_gain(row, stored.get(row["peer_id"]))}
                for row in changed
            ]
            if changed:
                _replace(connection, tables.peers, changed)
            if gained := [row for row in gained if row["samples"] > 0 or row["seconds"] > 0]:
                _add_contributions(connection, gained)

    def add_event(self, event: Event) -> None:
        with self._writing() as connection:
            connection.execute(insert(tables.events), [asdict(event)])

    def add_checkpoint(self, checkpoint: CheckpointEntry) -> None:
        with self._writing() as connection:
            connection.execute(insert(tables.checkpoints), [asdict(checkpoint)])

    def set_checkpoint_url(self, path: str, url: str) -> None:
        """Record that the checkpoint at this path was uploaded to the Hub."""
        with self._writing() as connection:
            connection.execute(update(tables.checkpoints).where(tables.checkpoints.c.path == path).values(url=url))

    def checkpoints(self) -> set[str]:
        """Return the paths of all recorded checkpoints."""
        with self._writing() as connection:
            return set(connection.execute(select(tables.checkpoints.c.path)).scalars())

    def remove_checkpoints(self, paths: Iterable[str]) -> None:
        """Remove checkpoints whose files were deleted."""
        if rows := [{"gone": path} for path in paths]:
            with self._writing() as connection:
                gone = delete(tables.checkpoints).where(tables.checkpoints.c.path == bindparam("gone"))
                connection.execute(gone, rows)

    def add_sample_image(self, image: SampleImage) -> None:
        with self._writing() as connection:
            connection.execute(insert(tables.sample_images), [asdict(image)])

    def sample_images(self) -> list[SampleImage]:
        """Return all recorded sample images."""
        columns = [column for column in tables.sample_images.c if column.name != "id"]
        with self._writing() as connection:
            return [SampleImage(**row._asdict()) for row in connection.execute(select(*columns))]

    def forget_sample_images(self, paths: Iterable[str]) -> None:
        """Their files were deleted."""
        if rows := [{"gone": path} for path in paths]:
            with self._writing() as connection:
                gone = delete(tables.sample_images).where(tables.sample_images.c.path == bindparam("gone"))
                connection.execute(gone, rows)

    def peers(self) -> dict[str, Contributor]:
        """Return all contributors by id, from which crediting continues."""
        with self._writing() as connection:
            return {row.peer_id: _peer(row._asdict()) for row in connection.execute(select(tables.peers))}

    def thin(self, now: float) -> None:
        """Merge old rows, see the head of this file."""
        self._thinned = now
        with self._writing() as connection:
            for age, seconds in THINNING:
                _merge_points(connection, before=(now - age) // seconds * seconds, seconds=seconds)
            _merge_contributions(connection, before=int(now - CONTRIBUTIONS_BY_DAY_AFTER) // DAY * DAY)
            newest = connection.execute(select(func.max(tables.events.c.id))).scalar() or 0
            connection.execute(delete(tables.events).where(tables.events.c.id <= newest - MAX_EVENTS))

    def _describe(self, run: str, title: str, target_batch_size: int) -> None:
        with self._writing() as connection:
            known = {row.key: row.value for row in connection.execute(select(tables.about))}
            if known.get("run", run) != run:
                raise InvalidInput(
                    f"{self.path} is the history of the run {known['run']!r}, not of {run!r}; choose another folder"
                )
            for key, value in {"run": run, "title": title, "target_batch_size": str(target_batch_size)}.items():
                _set(connection, key, value)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise tables.damaged(self.path, error) from None


def _exclusive(path: Path) -> IO[str]:
    """Lock a file beside the history for the lifetime of the writer."""
    lock = path.with_name(f"{path.name}.lock").open("w")
    try:
        import fcntl
    except ImportError:  # Windows: no coordinator runs there, only exports are unpacked
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InvalidInput(f"{path} is written by another coordinator; stop it, or choose another folder") from None
    return lock


def _merge_points(connection: Connection, *, before: float, seconds: int) -> None:
    """Replace the points of each interval of so many seconds, up to `before`, by one."""
    table, points = tables.points, tables.points.c
    last = connection.execute(select(func.max(points.id))).scalar() or 0

    def interval_of(time: ColumnElement[float]) -> ColumnElement[int]:
        return cast(time / float(seconds), Integer)

    weight = func.sum(points.merged)  # merged points count as often as the points that they stand for
    merged = {
        "time": func.max(points.time),
        "step": func.max(points.step),
        "samples": func.max(points.samples),
        "loss": func.sum(points.loss * points.merged) / func.sum(case((points.loss.is_not(None), points.merged))),
        "loss_low": func.min(points.loss_low),
        "loss_high": func.max(points.loss_high),
        "peers": func.sum(points.peers * points.merged) / weight,
        "samples_per_second": func.avg(points.samples_per_second),
        "learning_rate": func.avg(points.learning_rate),
        "merged": weight,
    }
    old = (points.time < before, points.id <= last)
    several = select(*merged.values()).where(*old).group_by(interval_of(points.time)).having(func.count() > 1)
    connection.execute(insert(table).from_select(list(merged), several))
    merged_points = table.alias()
    replaced = select(interval_of(merged_points.c.time)).where(merged_points.c.id > last)
    connection.execute(delete(table).where(*old, interval_of(points.time).in_(replaced)))


def _merge_contributions(connection: Connection, *, before: int) -> None:
    """Add the hours of each day up to `before` to one row."""
    table, hours = tables.contributions, tables.contributions.c
    day = (hours.start // DAY * DAY).label("day")
    old = (hours.start < before, hours.start % DAY != 0)
    days = select(day, hours.peer_id, func.sum(hours.samples), func.sum(hours.seconds)).where(*old)
    statement = upsert(table).from_select(list(hours.keys()), days.group_by(day, hours.peer_id))
    connection.execute(_adding(statement))
    connection.execute(delete(table).where(*old))


def _set(connection: Connection, key: str, value: str) -> None:
    _replace(connection, tables.about, [{"key": key, "value": value}])


def _replace(connection: Connection, table: Any, rows: list[dict[str, Any]]) -> None:
    keys = [column.name for column in table.primary_key]
    statement = upsert(table)
    fresh = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=fresh), rows)


def _add_contributions(connection: Connection, rows: list[dict[str, Any]]) -> None:
    connection.execute(_adding(upsert(tables.contributions)), rows)


def _adding(statement: Insert) -> Insert:
    """Add samples and seconds to those of a row with the same start and peer."""
    total = {name: tables.contributions.c[name] + statement.excluded[name] for name in ("samples", "seconds")}
    return statement.on_conflict_do_update(index_elements=["start", "peer_id"], set_=total)


def _gain(row: dict[str, Any], before: Any) -> dict[str, float]:
    return {name: row[name] - (getattr(before, name) if before is not None else 0.0) for name in ("samples", "seconds")}


def _peer(row: dict[str, Any]) -> Contributor:
    return Contributor(**{**row, "client_mode": bool(row["client_mode"]), "auxiliary": bool(row["auxiliary"])})
