"""One Parquet shard as slices of rows, from any row on, in little memory. Knows no data set and no checks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ttt.data.files import READ_BYTES, HttpClient, open_file
from ttt.errors import Cancelled

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SLICE_ROWS = 256
MAX_BYTES_A_ROW = 1 << 20
"""Unpacked, in the mean of a row group: what says more is a bomb, not captions and codes."""


class CorruptShard(Exception):
    """A shard whose content cannot be read."""


@dataclass(frozen=True)
class Slice:
    """Rows `row` to `end` of a row group, in order."""

    batch: pa.RecordBatch
    group: int
    row: int
    end: int


def read_slices(where: str, columns: tuple[str, ...], group: int, row: int, web: HttpClient) -> Iterator[Slice]:
    """From that row group and row on; the same slices however often and from wherever it is called.

    A row group of any size passes through a buffer of `READ_BYTES` a column.

    Raises FileMissing, FileUnreachable, CorruptShard or Cancelled.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(where, web) as file:
        try:
            shard = pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False)
            _check_columns(shard, columns)
            for number in range(group, shard.metadata.num_row_groups):
                _check_size(shard, number, columns)
                yield from _group_slices(shard, columns, number, row if number == group else 0)
        except Cancelled:
            raise
        except (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise CorruptShard(f"{where}: {_first_line(error)}") from None
        except OSError as error:  # pyarrow's own for broken pages; the network's never get here
            raise CorruptShard(f"{where}: {_first_line(error)}") from None


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
        raise KeyError(f"no column {', '.join(missing)} (it has {', '.join(names[:20]) or 'none'})")


def _check_size(shard: pq.ParquetFile, group: int, columns: tuple[str, ...]) -> None:
    described = shard.metadata.row_group(group)
    chunks = (described.column(i) for i in range(described.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    if size > MAX_BYTES_A_ROW * max(described.num_rows, 1):
        raise ValueError(f"row group {group} would unpack to {size:,} bytes")


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
