"""Reads one Parquet shard as slices of rows, starting at any row, in little memory.

Independent of data sets and of what the rows contain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttt.data.files import READ_BYTES, HttpClient, open_file
from ttt.errors import Cancelled
from ttt.text import first_line, format_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SLICE_ROWS = 256
MAX_BYTES_A_ROW = 1 << 20
"""Unpacked, on average over a row group: a shard that claims more is a decompression bomb, not captions and codes."""


class CorruptShard(Exception):
    """The content of a shard cannot be read."""


@dataclass(frozen=True)
class Slice:
    """Rows `row` to `end` (exclusive) of a row group, in order."""

    batch: pa.RecordBatch
    group: int
    row: int
    end: int


def read_slices(location: str, columns: tuple[str, ...], group: int, row: int, http: HttpClient) -> Iterator[Slice]:
    """Slices from row `row` of row group `group` to the end of the shard.

    The slices do not depend on where reading starts, except that the first one may be shorter. A row group of any size
    passes through a buffer of `READ_BYTES` per column. Raises FileMissing, FileUnreachable, CorruptShard or Cancelled.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(location, http) as file:
        try:
            # Without pre_buffer, pyarrow reads only the pages that are needed, which makes resuming cheap over HTTP.
            shard = pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
            _check_columns(shard, columns)
            for number in range(group, shard.metadata.num_row_groups):
                _check_size(shard, number, columns)
                yield from _group_slices(shard, columns, number, row if number == group else 0)
        except Cancelled:
            raise
        except (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise CorruptShard(f"{location}: {first_line(error)}") from None
        except OSError as error:  # pyarrow's own for broken pages; those of the network become FileUnreachable
            raise CorruptShard(f"{location}: {first_line(error)}") from None


def _group_slices(shard: pq.ParquetFile, columns: tuple[str, ...], group: int, start: int) -> Iterator[Slice]:
    row = 0
    for batch in shard.iter_batches(SLICE_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
        end = row + batch.num_rows
        if row >= start:
            yield Slice(batch, group, row, end)
        elif end > start:
            yield Slice(batch.slice(start - row), group, start, end)
        row = end


def _check_columns(shard: pq.ParquetFile, columns: tuple[str, ...]) -> None:
    names = shard.schema_arrow.names
    missing = [name for name in columns if names.count(name) != 1]
    if missing:
        raise KeyError(f"no column {', '.join(missing)} (its columns are {', '.join(names[:20]) or 'none'})")


def _check_size(shard: pq.ParquetFile, group: int, columns: tuple[str, ...]) -> None:
    metadata = shard.metadata.row_group(group)
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    if size > MAX_BYTES_A_ROW * max(metadata.num_rows, 1):
        raise ValueError(f"row group {group} would unpack to {format_bytes(size)}")
