"""Rows of the published columns, checked: captions and codes out, everything else counted. Knows no files.

| column                          | content                                                   |
|---------------------------------|-----------------------------------------------------------|
| caption                         | text                                                      |
| NSFW                            | UNLIKELY, UNSURE or NSFW, as LAION's classifier said      |
| original_width, original_height | pixels of the image before it was encoded                 |
| code                            | bytes of the codes in raster order, little-endian int16   |
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt.errors import InvalidInput

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

CAPTION, NSFW, WIDTH, HEIGHT, CODE = COLUMNS = ("caption", "NSFW", "original_width", "original_height", "code")
MAX_CODEBOOK = 1 << 15
"""Largest codebook whose codes fit into int16."""
MAX_CAPTION_CHARACTERS = 10_000
"""Longer captions are cut before they reach a tokenizer: far beyond its 256 tokens, and a hostile one may be huge."""

log = logging.getLogger("ttt.data")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which pairs are worth training on; the defaults are those of the 2021 run, which skipped about 10 % of LAION."""

    min_caption: int = 3
    """Captions of fewer characters are skipped."""
    nsfw: str | None = "UNLIKELY"
    """The only label of the NSFW column that is kept; None keeps all, and needs no such column."""
    max_aspect: float | None = 2.0
    """Longest side over shortest of the original image, at most; None keeps all, and needs no such columns."""

    def __post_init__(self) -> None:
        if type(self.min_caption) is not int or self.min_caption < 0:
            raise InvalidInput(f"min_caption must be a whole number from 0, got {self.min_caption!r}")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise InvalidInput(
                f"max_aspect must be at least 1 (a square image), or None for off; got {self.max_aspect}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """What has to be read for them, in the order of `COLUMNS`."""
        wanted = {CAPTION, CODE}
        wanted |= {NSFW} if self.nsfw is not None else set()
        wanted |= {WIDTH, HEIGHT} if self.max_aspect is not None else set()
        return tuple(name for name in COLUMNS if name in wanted)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def refusal(self, caption: str | None, nsfw: str | None, width: int | None, height: int | None) -> str | None:
        """Why a pair is not wanted, as the kind it is counted under; None for one that is."""
        if caption is None:
            return "bad_caption"
        if len(caption) < self.min_caption:
            return "short_caption"
        if self.nsfw is not None and nsfw != self.nsfw:
            return "nsfw"
        if self.max_aspect is not None:
            if not (isinstance(width, (int, float)) and isinstance(height, (int, float)) and width > 0 and height > 0):
                return "bad_size"
            if max(width, height) > self.max_aspect * min(width, height):
                return "extreme_aspect"
        return None


COUNT_LABELS = {
    "rows": "rows read",
    "kept": "rows kept",
    "short_caption": "caption too short",
    "nsfw": "NSFW label not the wanted one, or none",
    "extreme_aspect": "image too long or too wide",
    "bad_caption": "caption missing or not UTF-8",
    "bad_size": "size of the image missing",
    "bad_codes": "codes missing, of a wrong length or out of range",
    "missing_shards": "shards that are not there",
    "corrupt_shards": "shards given up because their content is broken",
    "unreachable_shards": "shards given up after many attempts to reach them",
    "retries": "connections tried again",
}
"""Everything that is counted."""


@dataclass
class Rows:
    """Pairs fit for training: captions and codes int16 [rows, n]."""

    captions: list[str]
    codes: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class RowCheck:
    """What a row must be; `told` is called with a kind and a sentence for each row (or shard) that is not."""

    image_seq_len: int
    num_image_tokens: int
    filters: Filters
    told: Callable[[str, str], None] = lambda kind, what: None

    def __post_init__(self) -> None:
        if not 1 <= self.num_image_tokens <= MAX_CODEBOOK:
            raise InvalidInput(
                f"num_image_tokens must be from 1 to {MAX_CODEBOOK} to fit int16: {self.num_image_tokens}"
            )
        if self.image_seq_len < 1:
            raise InvalidInput(f"image_seq_len must be at least 1, got {self.image_seq_len}")

    def __call__(self, batch: pa.RecordBatch, where: str, counts: Counter[str]) -> Rows:
        """The good rows in their order; `counts` grows by every row. KeyError for a missing column.

        TypeError, ValueError and pyarrow's errors mean that the column has another type than published.
        """
        codes, is_good = self._codes(batch.column(CODE))
        captions, kept = [], []
        for i, (raw, *rest) in enumerate(zip(*self._columns(batch), strict=True)):
            caption = _decoded(raw)
            reason = self.filters.refusal(caption, *rest) or (None if is_good[i] else "bad_codes")
            counts["rows"] += 1
            counts[reason or "kept"] += 1
            if reason is None and caption is not None:
                captions.append(caption[:MAX_CAPTION_CHARACTERS])
                kept.append(i)
            elif reason is not None and reason.startswith("bad"):
                self.told(reason, f"{where}: {COUNT_LABELS[reason]}")
        return Rows(captions, codes[kept])

    def _columns(self, batch: pa.RecordBatch) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        import pyarrow as pa

        nothing = [None] * batch.num_rows
        wanted = self.filters.columns
        # As bytes: one caption that is not UTF-8 would fail the conversion of all.
        captions = _plain(batch.column(CAPTION)).cast(pa.binary()).to_pylist()
        labels = _plain(batch.column(NSFW)).cast(pa.binary()).to_pylist() if NSFW in wanted else nothing
        sizes = (batch.column(name).to_pylist() if name in wanted else nothing for name in (WIDTH, HEIGHT))
        width, height = sizes
        return captions, [_decoded(label) for label in labels], width, height

    def _codes(self, column: pa.Array) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """-> codes [rows, n] (zeros where they are bad), and which are good."""
        import pyarrow as pa

        n = self.image_seq_len
        raw = column.cast(pa.binary()).to_pylist()
        is_good = np.array([value is not None and len(value) == 2 * n for value in raw], dtype=bool)
        blank = bytes(2 * n)
        joined = b"".join(value if good else blank for value, good in zip(raw, is_good, strict=True))
        codes = np.frombuffer(joined, dtype="<i2").reshape(-1, n).astype(np.int16, copy=False)
        is_good &= ((codes >= 0) & (codes < self.num_image_tokens)).all(axis=1)
        return codes, is_good


def _plain(column: pa.Array) -> pa.Array:
    """The values themselves, where a writer kept them as numbers into a dictionary (pandas' categories)."""
    import pyarrow as pa

    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _decoded(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
