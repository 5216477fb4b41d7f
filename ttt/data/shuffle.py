"""Reads every row of a data set once per epoch, in an order that depends on the seed alone and resumes exactly.

In each epoch the shards are shuffled, and a few of them are read side by side, a slice at a time, until a window of
`shuffle_buffer` rows is full. The window is shuffled and handed out, then the next one is filled. A position in this
order is therefore a few numbers, and resuming reads a single window again. (The shuffle buffer of `datasets` is not
part of its state, and it finds a position within a shard by reading the shard from its beginning.)

Independent of torch and of models.
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
"""Shards that are read side by side, so that a window mixes rows that are far apart in the data set."""
MAX_UNREACHABLE = 3
"""Unreachable shards in a row after which the data set counts as unusable: most likely the connection is down."""
MAX_FAILED = 100
"""Shards in a row that fail for any reason, after which the data set counts as unusable."""
MAX_REJECTED_ROWS = 100_000
"""Rejected rows in a row after which the data set counts as unusable."""
FAILURE_KINDS: dict[type[Exception], str] = {
    FileMissing: "missing_shards", CorruptShard: "corrupt_shards", FileUnreachable: "unreachable_shards",
}  # fmt: skip

ShardPosition = tuple[int, int, int]
"""Index of the shard in the epoch's order, row group, row."""


@dataclass(frozen=True)
class ShuffleCursor:
    """Where a window begins."""

    positions: tuple[ShardPosition, ...]
    """Of the shards that are read side by side."""
    epoch: int = 0
    window: int = 0
    turn: int = 0
    """Which of the positions is read next."""

    @classmethod
    def start(cls, epoch: int, shards: int) -> ShuffleCursor:
        """The beginning of an epoch that reads so many shards side by side."""
        return cls(tuple((shard, 0, 0) for shard in range(shards)), epoch)


@dataclass(frozen=True)
class ShuffleWindow:
    """Rows in the order in which they are handed out, and all that is needed to read the same window again."""

    captions: list[str]
    codes: NDArray[np.int16]
    start: ShuffleCursor
    failures: tuple[tuple[ShardPosition, str], ...]
    """Shards given up in this window, by position and kind: the next time they may be reachable."""
    counts_before: Counter[str]
    counts: Counter[str]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass
class ShuffleReader:
    """Reads one window after another from `cursor`. Raises DataError if nothing, or nothing usable, can be read."""

    shards: ShardList
    http: HttpClient
    check: RowCheck
    seed: int
    shuffle_buffer: int
    cursor: ShuffleCursor
    counts: Counter[str] = field(default_factory=Counter)
    known_failures: dict[ShardPosition, str] = field(default_factory=dict)
    """`failures` of the first window, if it is read again."""
    _open: dict[int, Iterator[Slice]] = field(default_factory=dict)
    _order: tuple[int, list[int]] = (-1, [])
    _failed_in_a_row: Counter[str] = field(default_factory=Counter)
    _rejected_in_a_row: int = 0
    _last_failure: str = ""

    def next_window(self) -> ShuffleWindow:
        """The next window that has at least one row."""
        import numpy as np

        while True:
            start, counts_before, is_over = self.cursor, self.counts.copy(), False
            parts: list[Rows] = []
            failures: list[tuple[ShardPosition, str]] = []
            while sum(map(len, parts)) < self.shuffle_buffer and not is_over:
                part = self._interleave(failures)
                is_over = part is None
                parts += [part] if part is not None else []
            self.known_failures = {}
            captions = [caption for part in parts for caption in part.captions]
            if is_over:
                self._end_epoch(is_empty=start.window == 0 and not captions)
            else:
                self.cursor = replace(self.cursor, window=start.window + 1)
            if captions:
                order = list(range(len(captions)))
                # A generator per window, not per epoch: resuming needs no windows before this one.
                random.Random(f"{self.seed}/{start.epoch}/window/{start.window}").shuffle(order)
                codes = np.concatenate([part.codes for part in parts])[order]
                shuffled = [captions[i] for i in order]
                return ShuffleWindow(shuffled, codes, start, tuple(failures), counts_before, self.counts.copy())

    def _interleave(self, failures: list[tuple[ShardPosition, str]]) -> Rows | None:
        """A slice of the next of the shards that are read side by side; None at the end of the epoch."""
        count = len(self.cursor.positions)
        for _ in range(count):
            turn = self.cursor.turn
            rows = self._rows_of(turn, failures)
            self.cursor = replace(self.cursor, turn=(turn + 1) % count)
            if rows is not None:
                return rows
        return None

    def _rows_of(self, turn: int, failures: list[tuple[ShardPosition, str]]) -> Rows | None:
        while (position := self.cursor.positions[turn])[0] < len(self.shards.locations):
            if self.http.stop.is_set():
                raise Cancelled("the stream was closed")
            location = self.shards.locations[self._shard(position[0])]
            try:
                self._replay_failure(position)
                if turn not in self._open:
                    columns = self.check.filters.columns
                    self._open[turn] = read_slices(location, columns, position[1], position[2], self.http)
                piece = next(self._open[turn], None)
                rows = None if piece is None else self._checked(piece, location)
            except tuple(FAILURE_KINDS) as error:
                failures.append((position, self._give_up(error)))
                piece = rows = None
            if piece is not None:
                self._failed_in_a_row.clear()
                self._move(turn, (position[0], piece.group, piece.end))
                return rows
            # The shard has ended or failed: continue with the next one that no other position reads.
            self._open.pop(turn, None)
            self._move(turn, (position[0] + len(self.cursor.positions), 0, 0))
        return None

    def _checked(self, piece: Slice, location: str) -> Rows:
        import pyarrow as pa

        place = f"{location}, row group {piece.group}, row {piece.row} or later"
        try:
            rows = self.check(piece.batch, place, self.counts)
        except (pa.ArrowException, TypeError, ValueError, KeyError) as error:
            raise CorruptShard(f"{location}: a column does not have the published type ({error})") from None
        self._rejected_in_a_row = 0 if len(rows) else self._rejected_in_a_row + piece.end - piece.row
        if self._rejected_in_a_row >= MAX_REJECTED_ROWS:
            raise self._unusable(f"{self._rejected_in_a_row:,} rows in a row cannot be used")
        return rows

    def _replay_failure(self, position: ShardPosition) -> None:
        """Fail where this window failed when it was first read, even if the shard can be read now.

        Otherwise the window would hold other rows, and the saved number of rows handed out would point to other rows.
        """
        kind = self.known_failures.get(position)
        for error, name in FAILURE_KINDS.items():
            if name == kind:
                raise error("given up when this window was first read")

    def _give_up(self, error: Exception) -> str:
        """Count a failed shard and return its kind; DataError after too many in a row."""
        kind = FAILURE_KINDS[type(error)]
        self.counts[kind] += 1
        self._failed_in_a_row[kind] += 1
        self.check.report_skip(kind, str(error))
        self._last_failure = f"; the last failure: {error}"
        failed = sum(self._failed_in_a_row.values())
        if failed >= MAX_FAILED or self._failed_in_a_row["unreachable_shards"] >= MAX_UNREACHABLE:
            raise self._unusable(f"{failed} shards in a row could not be read")
        return kind

    def _end_epoch(self, is_empty: bool) -> None:
        if is_empty:
            raise self._unusable("no row of a whole epoch can be used")
        self._open.clear()
        self._failed_in_a_row.clear()
        self.cursor = ShuffleCursor.start(self.cursor.epoch + 1, len(self.cursor.positions))

    def _unusable(self, reason: str) -> DataError:
        counted = [(label, self.counts[kind]) for kind, label in COUNT_LABELS.items() if self.counts[kind]]
        counts = ", ".join(f"{label}: {count:,}" for label, count in counted)
        return DataError(
            f"the data set cannot be used: {reason}{self._last_failure}. So far: {counts or 'nothing was read'}"
        )

    def _move(self, turn: int, position: ShardPosition) -> None:
        positions = self.cursor.positions
        self.cursor = replace(self.cursor, positions=(*positions[:turn], position, *positions[turn + 1 :]))

    def _shard(self, index: int) -> int:
        """The shard at this index of the epoch's order."""
        epoch = self.cursor.epoch
        if self._order[0] != epoch:
            order = list(range(len(self.shards.locations)))
            random.Random(f"{self.seed}/{epoch}/shards").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][index]


class Prefetcher:
    """Reads the next window while the current one is used, in a thread that ends with `close` or with the program."""

    def __init__(self, reader: ShuffleReader) -> None:
        self.reader = reader
        self._ready = threading.Condition()
        self._queue: list[ShuffleWindow | Exception] = []
        """At most one item."""
        self._thread = threading.Thread(target=self._run, name="ttt-data", daemon=True)
        self._thread.start()

    def next_window(self) -> ShuffleWindow:
        """The next window. Raises what reading it raised, and Cancelled if another thread closes this meanwhile."""
        stop = self.reader.http.stop
        with self._ready:
            self._ready.wait_for(lambda: bool(self._queue) or stop.is_set())
            if not self._queue:
                raise Cancelled("the stream was closed")
            item = self._queue[0]
            if isinstance(item, Exception):
                raise item
            self._queue.clear()
            self._ready.notify_all()
            return item

    def close(self) -> None:
        self.reader.http.stop.set()
        with self._ready:
            self._ready.notify_all()
        self._thread.join(timeout=5)
        self.reader.http.close()

    def _run(self) -> None:
        item: ShuffleWindow | Exception
        stop = self.reader.http.stop
        while not stop.is_set():
            try:
                item = self.reader.next_window()
            except Exception as error:  # raised again by `next_window`, in the thread that asks for the window
                item = error
            with self._ready:
                self._queue.append(item)
                self._ready.notify_all()
                if isinstance(item, Exception):
                    return
                self._ready.wait_for(lambda: not self._queue or stop.is_set())
