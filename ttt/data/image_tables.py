"""Captioned images from Parquet files and from data sets of the Hub. Decodes no image and unpickles nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.data.image_folder import digest, left_out_warning
from ttt.data.image_metadata import CAPTION_NAMES, OTHER_NAMES, caption_of, make_pair
from ttt.data.images import MAX_IMAGE_BYTES, Pair
from ttt.data.rows import decode_utf8
from ttt.errors import DataError, InvalidInput
from ttt.text import error_summary, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import IterableDataset

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img")
BATCH_ROWS = 16
"""Rows of a Parquet file that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns that the user has named; None: found by name and type."""

    image: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class ParquetImages:
    """Parquet files with an image column and a caption column. A file that cannot be read is counted and skipped."""

    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)
    left_out: Counter[str] = field(default_factory=Counter)
    """Endings of other files in the same folder."""
    _broken: list[str] = field(default_factory=list, compare=False)

    @property
    def fingerprint(self) -> str:
        return digest(["parquet", *(f"{path.name}/{path.stat().st_size}" for path in self.paths)])

    @property
    def total(self) -> None:
        return None

    def check(self) -> None:
        """Raise InvalidInput if no file has the columns, and DataError if no file can be read."""
        problem: Exception | None = None
        for path in self.paths:
            try:
                find_columns(_schema(path), self.columns)
                return
            except InvalidInput as error:
                problem = error
            except (OSError, ValueError) as error:
                problem = problem or DataError(f"the images of {path} cannot be read: {first_line(error)}")
        if problem is not None:
            raise problem

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        """Positions are (file, row), the row that comes next."""
        first, skip = position or (0, 0)
        for number in range(first, len(self.paths)):
            path, row = self.paths[number], skip if number == first else 0
            try:
                for pair in self._rows(path, row):
                    row += 1
                    yield pair, (number, row)
            except (OSError, ValueError, KeyError, TypeError, InvalidInput, MemoryError) as error:
                # The rows before the break are kept; resuming from here starts with the next file.
                self._broken.append(f"{path} ({first_line(error)})")
                yield Pair(path.name, None, None, problem="broken_table"), (number + 1, 0)

    def warnings(self) -> list[str]:
        found = left_out_warning(self.left_out)
        if self._broken:
            others = f" and {len(self._broken) - 1} others" if len(self._broken) > 1 else ""
            found.append(f"cannot be read: {self._broken[0]}{others}")
        return found

    def _rows(self, path: Path, start: int) -> Iterator[Pair]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path, pre_buffer=False)
            image, caption = find_columns(file.schema_arrow, self.columns)
            names = file.schema_arrow.names
            # Other columns are not even read: they may be of any type, and broken.
            columns = [name for name in names if name in (image, caption, "json", *OTHER_NAMES)]
            row = 0
            for group in range(file.metadata.num_row_groups):
                if row + file.metadata.row_group(group).num_rows <= start:
                    row += file.metadata.row_group(group).num_rows
                    continue
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    for values in _plain_rows(batch):
                        row += 1
                        if row > start:
                            yield pair_of_row(values, image, caption, f"{path.name}, row {row}")
        except pa.ArrowException as error:  # some are OSErrors or ValueErrors as well, some are not
            raise ValueError(first_line(error)) from None


@dataclass(frozen=True)
class HubImages:
    """Rows of a Hub data set with an image column and a caption column; `datasets` streams them undecoded."""

    rows: IterableDataset
    image_column: str
    caption_column: str | None
    fingerprint: str
    total: int | None = None

    def pairs(self, position: Any) -> Iterator[tuple[Pair, Any]]:
        import copy

        rows = copy.copy(self.rows)
        if position is not None:
            rows.load_state_dict(position)
        number = 0
        try:
            for row in rows:
                number += 1
                yield pair_of_row(row, self.image_column, self.caption_column, f"row {number}"), rows.state_dict()
        except Exception as error:  # of pyarrow, fsspec, aiohttp or the Hub; `datasets` has retried already
            advice = "the data set itself is broken there"
            if isinstance(error, (OSError, TimeoutError)):
                advice = "run the same command again to resume"
            raise DataError(
                f"the images cannot be read any further ({error_summary(error)}). Finished shards are kept: {advice}"
            ) from error

    def warnings(self) -> list[str]:
        return []


def hub_images(name: str, columns: Columns, split: str, revision: str | None) -> HubImages:
    """A Hub data set. Raises InvalidInput if it has no such columns, and DataError if it cannot be read."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, revision=revision)
        rows = builder.as_streaming_dataset(split=split)
        features = dict(rows.features or rows._resolve_features().features)
    except Exception as error:  # as many types as there are formats, and those of the Hub
        raise DataError(f"the images of {name} cannot be read: {first_line(error, 300)}") from None
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    image = _column("image", columns.image, list(features), [*images, *IMAGE_NAMES])
    caption = columns.caption
    if caption is not None or "json" not in features:
        caption = _column("caption", caption, list(features), list(CAPTION_NAMES))
    if hasattr(builder.config, "on_bad_files"):  # Parquet: skip broken files, and read no column that is not needed
        needed = [name for name in features if name in (image, caption, "json", *OTHER_NAMES)]
        try:
            builder = datasets.load_dataset_builder(name, revision=revision, columns=needed, on_bad_files="warn")
            rows = builder.as_streaming_dataset(split=split)
        except Exception as error:
            raise DataError(f"the images of {name} cannot be read: {first_line(error, 300)}") from None
    if isinstance(features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    files = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    return HubImages(rows, image, caption, digest([name, split, *files]))


def find_columns(schema: pa.Schema, columns: Columns) -> tuple[str, str | None]:
    """Names of the image column and of the caption column (None: in the column `json`). Raises InvalidInput."""
    names = [name for name in schema.names if holds_images(schema, name)]
    image = _column("image", columns.image, schema.names, names)
    if columns.caption is None and "json" in schema.names:
        return image, None
    return image, _column("caption", columns.caption, schema.names, list(CAPTION_NAMES))


def holds_images(schema: pa.Schema, name: str) -> bool:
    """True for a column of encoded images: declared by `datasets`, or of bytes under one of `IMAGE_NAMES`."""
    import pyarrow as pa

    try:
        declared = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name]["_type"]
    except (KeyError, TypeError, ValueError):
        declared = None
    kind = schema.field(name).type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return declared == "Image" or is_struct or (is_bytes and name in IMAGE_NAMES)


def has_images(path: Path) -> bool:
    """True for a Parquet file with an image column; False also if it cannot be read."""
    try:
        schema = _schema(path)
    except (OSError, ValueError):
        return False
    return any(holds_images(schema, name) for name in schema.names)


def pair_of_row(row: dict[str, Any], image_column: str, caption_column: str | None, name: str) -> Pair:
    metadata = row["json"] if isinstance(row.get("json"), dict) else row
    caption = row.get(caption_column) if caption_column else caption_of(metadata)
    image = row.get(image_column)
    if isinstance(image, dict):
        image = image.get("bytes") or _hub_file(image.get("path"))
    return make_pair(name, image if isinstance(image, (bytes, Path)) else None, caption, metadata)


def _hub_file(path: Any) -> bytes | None:
    """The bytes of an image that a table only points to, if it is in a Hub repository.

    Other paths and addresses are not opened: a stranger's table could name any file of this machine or of its network.
    """
    from datasets.utils.file_utils import xopen

    if not isinstance(path, str) or not path.rpartition("::")[2].startswith("hf://"):
        return None
    try:
        with xopen(path, "rb") as file:
            content: bytes = file.read(MAX_IMAGE_BYTES + 1)
            return content
    except (OSError, ValueError):
        return None


def _schema(path: Path) -> pa.Schema:
    """Raises OSError or ValueError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except pa.ArrowException as error:
        raise ValueError(first_line(error)) from None


def _plain_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch as Python objects; text that is not UTF-8 becomes None instead of an error."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            # Decoded one by one, because a single invalid text would make the conversion of the whole column fail.
            columns[name] = [decode_utf8(value) for value in column.cast(pa.large_binary()).to_pylist()]
        else:
            columns[name] = column.to_pylist()
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _column(what: str, named: str | None, columns: Sequence[str], usual: Sequence[str]) -> str:
    name = named if named is not None else next((name for name in usual if name in columns), None)
    if name not in columns:
        raise InvalidInput(
            f"there is no {what} column{f' {named!r}' if named else ''}; the columns are {', '.join(columns)[:500]}: "
            f"name it with --{what}-column. (Addresses of images must be downloaded first, for example by img2dataset.)"
        )
    return str(name)
