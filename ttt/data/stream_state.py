"""Where a stream stands, as JSON: checked when it comes back, for it may be another stream's. Reads no data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ttt.data.rows import COUNT_LABELS
from ttt.data.shard_list import ShardList
from ttt.data.shuffle import ShardPosition, ShuffleCursor
from ttt.errors import DataError, InvalidInput

VERSION = 1


@dataclass
class StreamState:
    """The window that is being handed out, and how many of its rows were."""

    settings: dict[str, Any]
    """What the order depends on beside the shards: seed, sizes, filters."""
    shards: str | None = None
    """Fingerprint of the shards' names; None before they were first looked up."""
    revision: str | None = None
    """Commit of a Hub data set: resuming reads the same one, whatever was uploaded since."""
    cursor: ShuffleCursor | None = None
    emitted: int = 0
    given_up: tuple[tuple[ShardPosition, str], ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    """Before the window."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "settings": self.settings,
            "shards": self.shards,
            "revision": self.revision,
            "cursor": None if self.cursor is None else _listed(asdict(self.cursor)),
            "emitted": self.emitted,
            "given_up": [[*place, kind] for place, kind in self.given_up],
            "counts": dict(self.counts),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamState:
        """InvalidInput for anything that `to_dict` does not write."""
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise InvalidInput(f"the data stream's state must be what state_dict() gave, of version {VERSION}")
        try:
            return cls(
                settings=dict(values["settings"]),
                shards=_text(values["shards"]),
                revision=_text(values["revision"]),
                cursor=None if values["cursor"] is None else _cursor(values["cursor"]),
                emitted=_whole(values["emitted"]),
                given_up=tuple((_place(item[:3]), _kind(item[3])) for item in values["given_up"]),
                counts=Counter({_kind(kind): _whole(count) for kind, count in values["counts"].items()}),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise InvalidInput(f"the data stream's state is damaged ({error}); begin without it") from None

    def check_settings(self, settings: dict[str, Any]) -> None:
        for name, ours in settings.items():
            if self.settings.get(name) != ours:
                raise InvalidInput(
                    f"the state was saved with {name} {self.settings.get(name)!r} and this stream has {ours!r}: "
                    "the order of the data would be another; use the same, or begin without the state"
                )

    def check_shards(self, shards: ShardList, source: str) -> None:
        """DataError where a place in the order would mean another row than it did."""
        if self.shards is not None and self.shards != shards.fingerprint:
            raise DataError(
                f"{source} has other shards than when the state was saved (now {len(shards.names)}): going on from "
                "there would repeat some rows and miss others; restore them, or begin without the state"
            )
        if self.cursor is not None and (
            len(self.cursor.lanes) > len(shards.names) or self.cursor.turn >= len(self.cursor.lanes)
        ):
            raise DataError(f"the state of the stream of {source} does not fit its shards; begin without it")


def _listed(cursor: dict[str, Any]) -> dict[str, Any]:
    return {**cursor, "lanes": [list(place) for place in cursor["lanes"]]}


def _cursor(values: dict[str, Any]) -> ShuffleCursor:
    lanes = tuple(_place(place) for place in values["lanes"])
    if not lanes:
        raise ValueError("it reads no shard")
    return ShuffleCursor(lanes, _whole(values["epoch"]), _whole(values["window"]), _whole(values["turn"]))


def _place(values: Any) -> ShardPosition:
    shard, group, row = (_whole(value) for value in values)
    return shard, group, row


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _kind(value: Any) -> str:
    if value not in COUNT_LABELS:
        raise ValueError(f"{value!r} is no kind of row")
    return str(value)


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value
