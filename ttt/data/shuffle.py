"""All rows of an epoch once, in an order that depends on the seed alone and can be taken up anywhere. No tensors.

Shards are shuffled anew each epoch and dealt to a few lanes; the lanes are read in turn, a slice at a time, until a
window of `shuffle_buffer` rows is full; the window is shuffled and handed out, and the next one begins. So the place in
the order is a few numbers, and taking it up reads one window again: no row outside it. (The buffer of `datasets` is not
restored, and its position within a shard is found by reading the shard from its beginning.)
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ttt.data.files import FileMissing, FileUnreachable, HttpClient
from ttt.data.rows import COUNT_LABELS, RowCheck, Rows
from ttt.data.shard_list import ShardList
from ttt.data.shards import CorruptShard, Slice, read_slices
from ttt.errors import Cancelled, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INTERLEAVED_SHARDS = 4
"""Shards that are read side by side, so that neighbours in a shard meet others in a window."""
MAX_UNREACHABLE = 3
MAX_FAILED = 100
"""Shards given up in a row (unreachable ones, and of any kind) after which the data set counts as unusable."""
MAX_REJECTED_ROWS = 100_000
"""Rows refused in a row after which the data set counts as unusable."""
GIVEN_UP: dict[type[Exception], str] = {
    FileMissing: "missing_shards", CorruptShard: "corrupt_shards", FileUnreachable: "unreachable_shards",
}  # fmt: skip

ShardPosition = tuple[int, int, int]
"""Number of the shard in the epoch's order, row group, row."""


@dataclass(frozen=True)
class ShuffleCursor:
    """Where a window begins."""

    lanes: tuple[ShardPosition, ...]
    epoch: int = 0
    window: int = 0
    turn: int = 0
    """The lane that is read next."""

    @classmethod
    def start(cls, epoch: int, lanes: int) -> ShuffleCursor:
        return cls(tuple((lane, 0, 0) for lane in range(lanes)), epoch)


@dataclass(frozen=True)
class ShuffleWindow:
    """Rows in the order in which they are handed out, and all that is needed to read them again."""

    captions: list[str]
    codes: NDArray[np.int16]
    start: ShuffleCursor
    given_up: tuple[tuple[ShardPosition, str], ...]
    """Shards given up in this window, at which place and counted as what: the next time they may be reachable."""
    counts_before: Counter[str]
    counts: Counter[str]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass
class ShuffleReader:
    """Windows from `cursor` on, one after the other. DataError where nothing (or nothing usable) can be read."""

    shards: ShardList
    web: HttpClient
    check: RowCheck
    seed: int
    shuffle_buffer: int
    cursor: ShuffleCursor
    counts: Counter[str] = field(default_factory=Counter)
    known_failures: dict[ShardPosition, str] = field(default_factory=dict)
    """`given_up` of the first window, where it is read again."""
    _open: dict[int, Iterator[Slice]] = field(default_factory=dict)
    _order: tuple[int, list[int]] = (-1, [])
    _failed: Counter[str] = field(default_factory=Counter)
    _rejected_in_a_row: int = 0
    _last_failure: str = ""

    def next_window(self) -> ShuffleWindow:
        """The next one that has any row."""
        import numpy as np

        while True:
            start, before, is_over = self.cursor, self.counts.copy(), False
            parts: list[Rows] = []
            given_up: list[tuple[ShardPosition, str]] = []
            while sum(map(len, parts)) < self.shuffle_buffer and not is_over:
                part = self._next_rows(given_up)
                is_over = part is None
                parts += [part] if part is not None else []
            self.known_failures = {}
            captions = [caption for part in parts for caption in part.captions]
            if is_over:
                self._end_epoch(nothing=start.window == 0 and not captions)
            else:
                self.cursor = replace(self.cursor, window=start.window + 1)
            if captions:
                order = list(range(len(captions)))
                random.Random(f"{self.seed}/{start.epoch}/window/{start.window}").shuffle(order)
                codes = np.concatenate([part.codes for part in parts])[order]
                shuffled = [captions[i] for i in order]
                return ShuffleWindow(shuffled, codes, start, tuple(given_up), before, self.counts.copy())

    def _next_rows(self, given_up: list[tuple[ShardPosition, str]]) -> Rows | None:
        """A slice of the lane whose turn it is; None at the end of the epoch."""
        lanes = len(self.cursor.lanes)
        for _ in range(lanes):
            lane = self.cursor.turn
            rows = self._rows_of(lane, given_up)
            self.cursor = replace(self.cursor, turn=(lane + 1) % lanes)
            if rows is not None:
                return rows
        return None

    def _rows_of(self, lane: int, given_up: list[tuple[ShardPosition, str]]) -> Rows | None:
        while (place := self.cursor.lanes[lane])[0] < len(self.shards.locations):
            if self.web.stop.is_set():
                raise Cancelled("the stream was closed")
            where = self.shards.locations[self._shard(place[0])]
            try:
                self._replay_failure(place)
                if lane not in self._open:
                    columns = self.check.filters.columns
                    self._open[lane] = read_slices(where, columns, place[1], place[2], self.web)
                piece = next(self._open[lane], None)
                rows = None if piece is None else self._checked(piece, where)
            except tuple(GIVEN_UP) as error:
                given_up.append((place, self._give_up(error)))
                piece = rows = None
            if piece is not None:
                self._failed.clear()
                self._move(lane, (place[0], piece.group, piece.end))
                return rows
            self._open.pop(lane, None)
            self._move(lane, (place[0] + len(self.cursor.lanes), 0, 0))
        return None

    def _checked(self, piece: Slice, where: str) -> Rows:
        import pyarrow as pa

        try:
            rows = self.check(piece.batch, f"{where}, row group {piece.group}, row {piece.row} or after", self.counts)
        except (pa.ArrowException, TypeError, ValueError, KeyError) as error:
            raise CorruptShard(f"{where}: a column is not of the published type ({error})") from None
        self._rejected_in_a_row = 0 if len(rows) else self._rejected_in_a_row + piece.end - piece.row
        if self._rejected_in_a_row >= MAX_REJECTED_ROWS:
            raise self._unusable(f"{self._rejected_in_a_row:,} rows in a row cannot be used")
        return rows

    def _replay_failure(self, place: ShardPosition) -> None:
        """A window that is read again loses the shards that it lost the first time, whatever has become of them."""
        kind = self.known_failures.get(place)
        for error, name in GIVEN_UP.items():
            if name == kind:
                raise error("given up when this window was first read")

    def _give_up(self, error: Exception) -> str:
        kind = GIVEN_UP[type(error)]
        self.counts[kind] += 1
        self._failed[kind] += 1
        self.check.told(kind, str(error))
        self._last_failure = f"; the last shard given up: {error}"
        failed = sum(self._failed.values())
        if failed >= MAX_FAILED or self._failed["unreachable_shards"] >= MAX_UNREACHABLE:
            raise self._unusable(f"{failed} shards in a row could not be read")
        return kind

    def _end_epoch(self, nothing: bool) -> None:
        if nothing:
            raise self._unusable("no row of a whole epoch can be used")
        self._open.clear()
        self._failed.clear()
        self.cursor = ShuffleCursor.start(self.cursor.epoch + 1, len(self.cursor.lanes))

    def _unusable(self, why: str) -> DataError:
        seen = ", ".join(f"{COUNT_LABELS[kind]}: {self.counts[kind]:,}" for kind in COUNT_LABELS if self.counts[kind])
        return DataError(
            f"the data set cannot be used: {why}{self._last_failure}. So far, {seen or 'nothing was read'}"
        )

    def _move(self, lane: int, place: ShardPosition) -> None:
        lanes = self.cursor.lanes
        self.cursor = replace(self.cursor, lanes=(*lanes[:lane], place, *lanes[lane + 1 :]))

    def _shard(self, number: int) -> int:
        """The shard at a place of the epoch's order."""
        epoch = self.cursor.epoch
        if self._order[0] != epoch:
            order = list(range(len(self.shards.locations)))
            random.Random(f"{self.seed}/{epoch}/shards").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][number]


class Prefetcher:
    """Reads the next window while this one is used, in a thread that ends with `close` (or with the program)."""

    def __init__(self, reader: ShuffleReader) -> None:
        self.reader = reader
        self._ready = threading.Condition()
        self._waiting: list[ShuffleWindow | Exception] = []
        self._thread = threading.Thread(target=self._run, name="ttt-data", daemon=True)
        self._thread.start()

    def next_window(self) -> ShuffleWindow:
        """Raises what reading it raised; Cancelled where another thread closes this meanwhile."""
        stop = self.reader.web.stop
        with self._ready:
            self._ready.wait_for(lambda: bool(self._waiting) or stop.is_set())
            if not self._waiting:
                raise Cancelled("the stream was closed")
            item = self._waiting[0]
            if isinstance(item, Exception):
                raise item
            self._waiting.clear()
            self._ready.notify_all()
            return item

    def close(self) -> None:
        self.reader.web.stop.set()
        with self._ready:
            self._ready.notify_all()
        self._thread.join(timeout=5)
        self.reader.web.close()

    def _run(self) -> None:
        item: ShuffleWindow | Exception
        stop = self.reader.web.stop
        while not stop.is_set():
            try:
                item = self.reader.next_window()
            except Exception as error:  # told where the window is asked for
                item = error
            with self._ready:
                self._waiting.append(item)
                self._ready.notify_all()
                if isinstance(item, Exception):
                    return
                self._ready.wait_for(lambda: not self._waiting or stop.is_set())
