"""Who may speak: one object, asked at every entrance of the swarm. Knows no protocol and no tensors.

The entrances are in `averagers.py` (groups, gradients, state) and `validation.py` (the DHT). A peer is known by its
libp2p id, which is the digest of the key that signs its records (`identity.py`), so one answer holds for all of them.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ttt.errors import InvalidInput

MAX_BANS = 10_000
_LOOK_EVERY_SECONDS = 1.0


class Entrance(Enum):
    """Where a peer asks to be heard."""

    DHT_RECORD = "publish a record"
    JOIN_GROUP = "join an averaging group"
    GRADIENT_PART = "send a part to average"
    STATE_DOWNLOAD = "download the state, or be its donor"


@dataclass(frozen=True)
class Decision:
    allowed: bool
    reason: str = ""
    """Why not, in words for a log and for the peer's owner."""

    def __bool__(self) -> bool:
        return self.allowed


ALLOWED = Decision(True)


class Gate(ABC):
    """Asked in the processes of the DHT and of the averagers as well: what it knows must reach them by itself."""

    @abstractmethod
    def allows(self, peer_id: str, entrance: Entrance) -> Decision:
        """Whether the peer (base58 id) may pass. Answers at once and never raises."""


class OpenGate(Gate):
    """Everybody may speak."""

    def allows(self, peer_id: str, entrance: Entrance) -> Decision:
        return ALLOWED


@dataclass(frozen=True)
class AllOf(Gate):
    """Passes whom each of its gates lets pass; the first refusal counts."""

    gates: tuple[Gate, ...]

    def allows(self, peer_id: str, entrance: Entrance) -> Decision:
        decisions = (gate.allows(peer_id, entrance) for gate in self.gates)
        return next((decision for decision in decisions if not decision.allowed), ALLOWED)


@dataclass
class BanList(Gate):
    """Refuses the peers in a JSON file, {peer id: reason}; every process looks at the file again once a second.

    A file that became unreadable leaves the bans that were known in force.
    """

    path: Path
    clock: Callable[[], float] = time.monotonic
    _bans: dict[str, str] = field(default_factory=dict, repr=False)
    _looked: float = field(default=float("-inf"), repr=False)
    _stamp: tuple[int, int] | None = field(default=None, repr=False)

    def allows(self, peer_id: str, entrance: Entrance) -> Decision:
        if self.clock() - self._looked >= _LOOK_EVERY_SECONDS:
            self._look()
        reason = self._bans.get(peer_id)
        return ALLOWED if reason is None else Decision(False, f"banned: {reason}")

    def ban(self, peer_id: str, reason: str) -> None:
        """Add a peer and write the file; InvalidInput where the list is full or the file cannot be written."""
        self._write({**self._read(), peer_id: reason[:200]})

    def lift(self, peer_id: str) -> None:
        """Remove a peer; nothing happens where it is not banned."""
        self._write({known: reason for known, reason in self._read().items() if known != peer_id})

    def bans(self) -> dict[str, str]:
        self._look()
        return dict(self._bans)

    def _look(self) -> None:
        self._looked = self.clock()
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._stamp:
                self._bans, self._stamp = self._read(), stamp
        except FileNotFoundError:
            self._bans, self._stamp = {}, None
        except (OSError, InvalidInput):
            return

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{self.path} is not a list of bans ({error}); repair or delete it") from None
        if not isinstance(found, dict) or not all(isinstance(reason, str) for reason in found.values()):
            raise InvalidInput(f"{self.path} must hold a JSON object, peer id to reason; repair or delete it")
        return found

    def _write(self, bans: dict[str, str]) -> None:
        if len(bans) > MAX_BANS:
            raise InvalidInput(f"{self.path} may hold at most {MAX_BANS} bans; lift some first")
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(bans, indent=1, sort_keys=True), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            raise InvalidInput(f"{self.path} cannot be written: {error}") from None
        self._bans, self._stamp = dict(bans), None
