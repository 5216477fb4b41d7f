"""Exports a run's history as one compact JSON file, and imports it again. Independent of SQL and of pages."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ttt.errors import InvalidInput
from ttt.swarm.history.reader import COLUMNS, HistoryReader
from ttt.swarm.history.schema import HISTORY_FILE
from ttt.swarm.history.summary import downsample_min_max
from ttt.swarm.history.types import CheckpointEntry, Contributor, Event, Point, SampleImage, Snapshot
from ttt.swarm.history.writer import HistoryWriter

MAX_BYTES = 32 << 20
MAX_POINTS = 100_000


class _Export(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: Literal["ttt-history"]
    version: Literal[2, 3]
    run: str = Field(min_length=1, max_length=200)
    title: str = Field(max_length=500)
    target_batch_size: int = Field(ge=0)
    now: Snapshot | None
    points: dict[str, list[float | None]]
    peers: list[Contributor] = Field(max_length=10_000)
    events: list[Event] = Field(max_length=100_000)
    checkpoints: list[CheckpointEntry] = Field(max_length=10_000)
    sample_images: list[SampleImage] = Field(
        max_length=10_000,
        validation_alias=AliasChoices("sample_images", "pictures"),  # "pictures" up to version 2
    )

    @model_validator(mode="after")
    def _columns_of_one_length(self) -> _Export:
        lengths = {len(column) for column in self.points.values()}
        if set(self.points) != set(COLUMNS) or len(lengths) != 1 or max(lengths) > MAX_POINTS:
            raise ValueError(f"points must have the columns {', '.join(COLUMNS)}, of one length up to {MAX_POINTS}")
        return self


def export(history: HistoryReader, path: Path, *, points: int = 2000, events: int = 500) -> int:
    """Write at most so many points and events, preserving the extremes of the loss; return the bytes written."""
    about, columns = history.about(), history.points()
    loss = columns["loss"].copy()
    loss[[math.isnan(value) for value in loss]] = 0.0
    kept = downsample_min_max(columns["time"], loss, points)
    content = {
        "format": "ttt-history",
        "version": 3,
        "run": about.run,
        "title": about.title,
        "target_batch_size": about.target_batch_size,
        "now": asdict(snapshot) if (snapshot := history.snapshot()) else None,
        "points": {name: [_short(value, name) for value in columns[name][kept]] for name in COLUMNS},
        "peers": [{**asdict(peer), "cursor": ""} for peer in history.peers()],
        "events": [asdict(event) for event in reversed(history.events(events))],
        "checkpoints": [asdict(checkpoint) for checkpoint in reversed(history.checkpoints())],
        "sample_images": [asdict(image) for image in history.sample_images()],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    path.write_text(text, encoding="utf-8")
    return len(text.encode())


def restore(source: Path, path: Path) -> None:
    """Create a history file from an export. Raises InvalidInput if the export is not valid, or if `path` exists."""
    if path.exists():
        raise InvalidInput(f"{path} exists; choose another name, or move it away")
    content = _read(source)
    number = TypeAdapter(Point)
    with HistoryWriter(path, content.run, title=content.title, target_batch_size=content.target_batch_size) as history:
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*(content.points[n] for n in COLUMNS), strict=True)]
        try:
            history.add_points([number.validate_python(row) for row in rows], thin=False)
        except ValidationError as error:
            raise InvalidInput(f"{source}: {error.errors()[0]['msg']} in points") from None
        history.credit(content.peers, time=content.now.time if content.now else 0.0)
        for event in content.events:
            history.add_event(event)
        for checkpoint in content.checkpoints:
            history.add_checkpoint(checkpoint)
        for image in content.sample_images:
            history.add_sample_image(image)
        if content.now:
            history.set_snapshot(content.now)


class Example(HistoryReader):
    """A reader of an export, by way of a temporary history file that is deleted on `close`."""

    def __init__(self, source: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ttt-history-")
        path = Path(self._folder.name) / HISTORY_FILE
        restore(source, path)
        super().__init__(path)

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


def _read(source: Path) -> _Export:
    try:
        if source.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"{source} is larger than {MAX_BYTES >> 20} MB: not an exported history")
        return _Export.model_validate_json(source.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{source} is not an exported history: {where or 'the file'}: {first['msg']}") from None


def _short(value: float, name: str) -> float | int | None:
    if math.isnan(value):
        return None
    whole: dict[str, Any] = {field.name: field.type for field in fields(Point)}
    return int(value) if whole[name] == "int" else float(f"{value:.10g}" if name == "time" else f"{value:.5g}")
