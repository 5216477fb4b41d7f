"""Captioned images in a folder, in a fixed order. Decodes no image and unpickles nothing."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

from ttt.data.image_metadata import (
    CAPTION_ENDINGS,
    CAPTION_NAMES,
    MAX_TEXT_BYTES,
    OTHER_NAMES,
    caption_of,
    json_object,
    make_pair,
)
from ttt.data.images import EXTENSIONS, Caption, Pair, decode_text
from ttt.errors import DataError, InvalidInput
from ttt.text import first_line

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME_KEYS = ("file_name", "image_file_name")
"""How `imagefolder` names the key of the image's file."""


def digest(parts: Sequence[str]) -> str:
    """A short fingerprint of names."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class ImageFolder:
    """Images by path. The caption is in `metadata.csv`, `.jsonl` or `.parquet` (as in `imagefolder`), or in a file with
    the image's name and the ending .txt or .json (as img2dataset writes them).
    """

    root: Path
    names: tuple[str, ...]
    missing: tuple[str, ...]
    """Images that the metadata name and the folder lacks; never opened, wherever their names may point."""
    metadata: dict[str, dict[str, Any]]
    """Relative path of an image -> what the metadata files say about it."""
    caption_files: dict[str, list[str]]
    """Relative path without its ending -> the files of that name that may hold a caption."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Endings of the files that are neither images nor captions."""

    @classmethod
    def read(cls, root: Path) -> ImageFolder:
        """Lists the folder and reads its metadata files. Raises InvalidInput or DataError for broken metadata."""
        names: list[str] = []
        caption_files: dict[str, list[str]] = {}
        left_out: Counter[str] = Counter()
        for path in visible_files(root):
            name, ending = path.relative_to(root).as_posix(), path.suffix.lower()
            if ending in EXTENSIONS:
                names.append(name)
            elif ending in (*CAPTION_ENDINGS, ".json"):
                caption_files.setdefault(name[: -len(ending)], []).append(name)
            elif path.name not in METADATA_FILES:
                left_out[ending or path.name] += 1
        on_disk = {_key(name): name for name in names}
        metadata, missing = {}, []
        for name, values in _read_metadata(root):
            if _key(name) in on_disk:
                metadata[on_disk[_key(name)]] = values
            else:
                missing.append(name)
        return cls(root, tuple(names), tuple(sorted(set(missing))), metadata, caption_files, left_out)

    @property
    def fingerprint(self) -> str:
        return digest([*self.names, "", *self.missing])

    @property
    def total(self) -> int:
        return len(self.names) + len(self.missing)

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        for i in range(position or 0, len(self.names)):
            yield self._pair(self.names[i]), i + 1
        for i in range(max((position or 0) - len(self.names), 0), len(self.missing)):
            yield Pair(self.missing[i], None, None, problem="bad_image"), len(self.names) + i + 1

    def warnings(self) -> list[str]:
        return left_out_warning(self.left_out)

    def _pair(self, name: str) -> Pair:
        metadata = self.metadata.get(name, {})
        caption = caption_of(metadata)
        if caption is None:
            caption, from_file = self._caption_file(name)
            metadata = {**from_file, **metadata}
        return make_pair(name, self.root / name, caption, metadata)

    def _caption_file(self, image: str) -> tuple[Caption, dict[str, Any]]:
        """Caption and metadata from the files beside an image: cat.txt or cat.jpg.txt, cat.json for cat.jpg."""
        stem = image[: -len(Path(image).suffix)]
        caption: Caption = None
        metadata: dict[str, Any] = {}
        for name in (*self.caption_files.get(stem, ()), *self.caption_files.get(image, ())):
            try:
                with (self.root / name).open("rb") as file:
                    content = file.read(MAX_TEXT_BYTES)
            except OSError:  # removed meanwhile, or unreadable: as if it did not exist
                continue
            if name.lower().endswith(".json"):
                metadata = metadata or json_object(content)
            elif caption is None:
                caption = content
        return caption_of(metadata) if caption is None else caption, metadata


def visible_files(root: Path) -> list[Path]:
    """All files in a folder and below, sorted; without hidden ones, such as the `._cat.jpg` of macOS."""
    paths = sorted(path.relative_to(root) for path in root.rglob("*"))
    return [root / path for path in paths if not any(p[0] == "." for p in path.parts) and (root / path).is_file()]


def left_out_warning(endings: Counter[str]) -> list[str]:
    """A sentence on files that are not read; empty if there are none."""
    if not endings:
        return []
    listed = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(5))
    others = sum(endings.values()) - sum(count for _, count in endings.most_common(5))
    return [f"files left out: {listed}" + (f" and {others:,} others" if others else "")]


def _key(name: str) -> str:
    """macOS stores the accents of a name apart from its letters; metadata usually do not."""
    return normalize("NFC", name)


def _read_metadata(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Image (relative to `root`) -> its row, from every metadata file in the folder and below."""
    for path in sorted(p for name in METADATA_FILES for p in root.rglob(name)):
        for number, row in _rows(path):
            name = next((row[key] for key in FILE_NAME_KEYS if isinstance(row.get(key), str)), None)
            if name is None:
                columns = ", ".join(map(str, row))[:200]
                raise InvalidInput(
                    f"{path}, {number}: there is no file_name, which `imagefolder` needs (found: {columns or '-'})"
                )
            relative = path.parent.relative_to(root) / name.replace("\\", "/")  # as Windows writes paths
            yield relative.as_posix(), row


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a metadata file, each with its place for error messages. Raises DataError if it cannot be read."""
    place = "the file"
    try:
        if path.suffix == ".parquet":
            for number, row in enumerate(_parquet_rows(path), 1):
                yield f"row {number}", row
            return
        text = decode_text(path.read_bytes())
        if text is None:
            raise ValueError("it is not UTF-8; save it as UTF-8")
        if path.suffix == ".csv":
            table = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
            for row in table:
                yield f"line {table.line_num}", row
            return
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            place = f"line {number}"
            row = json.loads(line)
            yield place, row if isinstance(row, dict) else {}
    except (csv.Error, ValueError, OSError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise DataError(f"{path} cannot be read: {place}: {first_line(error)}") from None


def _delimiter(text: str) -> str:
    """A comma, or what Excel writes instead of it where the comma is the decimal sign, and when text is pasted."""
    header = text.lstrip().partition("\n")[0]
    fields = {delimiter: {name.strip(' "\r') for name in header.split(delimiter)} for delimiter in ",;\t"}
    return next((delimiter for delimiter, names in fields.items() if names & set(FILE_NAME_KEYS)), ",")


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        columns = [name for name in (*FILE_NAME_KEYS, *CAPTION_NAMES, *OTHER_NAMES) if name in names]
        rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(first_line(error)) from None
    return rows
