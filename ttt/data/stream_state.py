"""The position of a stream as JSON; validated when it is loaded, because it may belong to another stream."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ttt.data.rows import COUNT_LABELS
from ttt.data.shard_list import ShardList
from ttt.data.shuffle import ShardPosition, ShuffleCursor
from ttt.errors import DataError, InvalidInput

VERSION = 1


@dataclass
class StreamState:
    """The window that is being handed out, and how many of its rows have been."""

    settings: dict[str, Any]
    """What the order depends on besides the shards: seed, sizes, filters."""
    shards: str | None = None
    """Fingerprint of the shards' names; None until they are first looked up."""
    revision: str | None = None
    """Commit of a Hub data set: resuming reads the same commit, whatever has been uploaded since."""
    cursor: ShuffleCursor | None = None
    emitted: int = 0
    failures: tuple[tuple[ShardPosition, str], ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    """Counts before the window."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types. The keys `lanes` and `given_up` are older than the names in the code."""
        return {
            "version": VERSION,
            "settings": self.settings,
            "shards": self.shards,
            "revision": self.revision,
            "cursor": None if self.cursor is None else _cursor_to_dict(self.cursor),
            "emitted": self.emitted,
            "given_up": [[*position, kind] for position, kind in self.failures],
            "counts": dict(self.counts),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamState:
        """Raises InvalidInput for anything that `to_dict` does not write."""
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise InvalidInput(f"the state of a data stream must come from state_dict() and have version {VERSION}")
        try:
            return cls(
                settings=dict(values["settings"]),
                shards=_text(values["shards"]),
                revision=_text(values["revision"]),
                cursor=None if values["cursor"] is None else _cursor_from_dict(values["cursor"]),
                emitted=_count(values["emitted"]),
                failures=tuple((_position(item[:3]), _kind(item[3])) for item in values["given_up"]),
                counts=Counter({_kind(kind): _count(count) for kind, count in values["counts"].items()}),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InvalidInput(f"the state of the data stream is damaged ({error}); start without it") from None

    def check_settings(self, settings: dict[str, Any]) -> None:
        for name, ours in settings.items():
            if self.settings.get(name) != ours:
                raise InvalidInput(
                    f"the state was saved with {name} {self.settings.get(name)!r} and this stream has {ours!r}, which "
                    "changes the order of the data; use the same value, or start without the state"
                )

    def check_shards(self, shards: ShardList, source: str) -> None:
        """Raises DataError if a position in the order would no longer mean the same row."""
        if self.shards is not None and self.shards != shards.fingerprint:
            raise DataError(
                f"{source} has other shards than when the state was saved (now {len(shards.names)}), so resuming would "
                "repeat some rows and miss others; restore the shards, or start without the state"
            )
        if self.cursor is not None and (
            len(self.cursor.positions) > len(shards.names) or self.cursor.turn >= len(self.cursor.positions)
        ):
            raise DataError(f"the state of the stream of {source} does not fit its shards; start without it")


def _cursor_to_dict(cursor: ShuffleCursor) -> dict[str, Any]:
    lanes = [list(position) for position in cursor.positions]
    return {"lanes": lanes, "epoch": cursor.epoch, "window": cursor.window, "turn": cursor.turn}


def _cursor_from_dict(values: dict[str, Any]) -> ShuffleCursor:
    positions = tuple(_position(values) for values in values["lanes"])
    if not positions:
        raise ValueError("it reads no shard")
    return ShuffleCursor(positions, _count(values["epoch"]), _count(values["window"]), _count(values["turn"]))


def _position(values: Any) -> ShardPosition:
    shard, group, row = (_count(value) for value in values)
    return shard, group, row


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _kind(value: Any) -> str:
    if value not in COUNT_LABELS:
        raise ValueError(f"{value!r} is not a kind of row")
    return str(value)


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value
