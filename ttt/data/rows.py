"""Checks rows of the published columns: valid captions and codes pass, everything else is counted.

Independent of files and of the network.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.data.filters import CAPTION, CODE, HEIGHT, NSFW, WIDTH, Filters
from ttt.fields import check_whole_number

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

MAX_CODEBOOK = 1 << 15
"""Largest codebook whose codes fit into int16."""
MAX_CAPTION_CHARACTERS = 10_000
"""Longer captions are cut before they reach a tokenizer, which keeps 256 tokens: a hostile caption may be huge."""

log = logging.getLogger("ttt.data")

COUNT_LABELS = {
    "rows": "rows read",
    "kept": "rows kept",
    "short_caption": "caption too short",
    "nsfw": "NSFW label missing or not the one to keep",
    "extreme_aspect": "image too long or too wide",
    "bad_caption": "caption missing or not UTF-8",
    "bad_size": "size of the image missing",
    "bad_codes": "codes missing, of a wrong length or out of range",
    "missing_shards": "shards not found",
    "corrupt_shards": "shards given up because their content is broken",
    "unreachable_shards": "shards given up after repeated connection failures",
    "retries": "connections retried",
}
"""Everything that is counted, with its human-readable label."""


@dataclass
class Rows:
    """Pairs that passed the check: captions and codes int16 [rows, n]."""

    captions: list[str]
    codes: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class RowCheck:
    """Checks batches of rows. `report_skip(kind, message)` is called for each row or shard that is broken."""

    image_seq_len: int
    num_image_tokens: int
    filters: Filters
    report_skip: Callable[[str, str], None] = lambda kind, message: None

    def __post_init__(self) -> None:
        check_whole_number("num_image_tokens", self.num_image_tokens, 1, MAX_CODEBOOK)
        check_whole_number("image_seq_len", self.image_seq_len, 1)

    def __call__(self, batch: pa.RecordBatch, where: str, counts: Counter[str]) -> Rows:
        """Return the valid rows in their order and add every row to `counts`.

        Raises KeyError if a column is missing, and TypeError, ValueError or an error of pyarrow if a column does not
        have the published type.
        """
        codes, is_valid = self._codes(batch.column(CODE))
        captions, valid_rows = [], []
        for i, (raw, *rest) in enumerate(zip(*self._columns(batch), strict=True)):
            caption = decode_utf8(raw)
            reason = self.filters.refusal(caption, *rest) or (None if is_valid[i] else "bad_codes")
            counts["rows"] += 1
            counts[reason or "kept"] += 1
            if reason is None and caption is not None:
                captions.append(caption[:MAX_CAPTION_CHARACTERS])
                valid_rows.append(i)
            elif reason is not None and reason.startswith("bad"):
                self.report_skip(reason, f"{where}: {COUNT_LABELS[reason]}")
        return Rows(captions, codes[valid_rows])

    def _columns(self, batch: pa.RecordBatch) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        import pyarrow as pa

        nothing = [None] * batch.num_rows
        columns = self.filters.columns
        # As bytes, because a single caption that is not UTF-8 would make the conversion of the whole column fail.
        captions = _plain(batch.column(CAPTION)).cast(pa.binary()).to_pylist()
        labels = _plain(batch.column(NSFW)).cast(pa.binary()).to_pylist() if NSFW in columns else nothing
        sizes = (batch.column(name).to_pylist() if name in columns else nothing for name in (WIDTH, HEIGHT))
        width, height = sizes
        return captions, [decode_utf8(label) for label in labels], width, height

    def _codes(self, column: pa.Array) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """Codes [rows, n], zeros where they are invalid, and a mask [rows] of the valid ones."""
        import pyarrow as pa

        n = self.image_seq_len
        raw = column.cast(pa.binary()).to_pylist()
        is_valid = np.array([value is not None and len(value) == 2 * n for value in raw], dtype=bool)
        blank = bytes(2 * n)
        # One buffer for the whole batch: a numpy array per row would cost more than all other checks.
        joined = b"".join(value if valid else blank for value, valid in zip(raw, is_valid, strict=True))
        codes = np.frombuffer(joined, dtype="<i2").reshape(-1, n).astype(np.int16, copy=False)
        is_valid &= ((codes >= 0) & (codes < self.num_image_tokens)).all(axis=1)
        return codes, is_valid


def _plain(column: pa.Array) -> pa.Array:
    """The values themselves if the writer stored them as indices into a dictionary (pandas' categories)."""
    import pyarrow as pa

    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def decode_utf8(raw: bytes | None) -> str | None:
    """None for text that is not UTF-8."""
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
