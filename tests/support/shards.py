"""Small shards in the published columns whose captions are numbers, which shows a test which rows it received."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ttt.data.files import RetryPolicy
from ttt.data.stream import CodeStream

CODES, CODEBOOK = 4, 100
QUICK = RetryPolicy(attempts=4, first_wait=0.01, timeout=5)


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A valid row, whose codes follow from its number."""
    codes = [number % CODEBOOK] * CODES
    good = {"caption": f"row {number}", "NSFW": "UNLIKELY", "original_width": 30, "original_height": 20,
            "code": np.array(codes, "<i2").tobytes()}  # fmt: skip
    return good | changed


def write_shard(path: Path, rows: Sequence[dict[str, Any]], group: int = 50) -> Path:
    columns = {name: [r[name] for r in rows] for name in rows[0]}
    types = {"code": pa.binary(), "caption": pa.binary() if isinstance(rows[0]["caption"], bytes) else pa.string()}
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="brotli", row_group_size=group)
    return path


def write_shards(folder: Path, sizes: Sequence[int]) -> int:
    """Write shards of these sizes with numbered rows; returns the number of rows."""
    start = 0
    for i, size in enumerate(sizes):
        write_shard(folder / f"{i:05d}.parquet", [row(n) for n in range(start, start + size)])
        start += size
    return start


def numbers(captions: Sequence[str]) -> torch.Tensor:
    """Replaces the tokenizer: the number in each caption, [b, 1]."""
    return torch.tensor([[int(caption.split()[-1])] for caption in captions])


def open_stream(source: Any, **changed: Any) -> CodeStream:
    settings = {"tokenize": numbers, "batch_size": 8, "image_seq_len": CODES, "num_image_tokens": CODEBOOK, "seed": 1,
                "shuffle_buffer": 64, "retry": QUICK}  # fmt: skip
    return CodeStream(source, **(settings | changed))


def take(stream: CodeStream, batches: int) -> list[int]:
    """The numbers of the rows in the next batches, whose codes are checked."""
    found: list[int] = []
    for _ in range(batches):
        batch = next(iter(stream))
        assert batch.text.dtype == batch.codes.dtype == torch.int64
        assert batch.codes.shape == (len(batch.text), CODES)
        assert torch.equal(batch.codes, (batch.text % CODEBOOK).expand(-1, CODES))
        found += batch.text[:, 0].tolist()
    return found
