"""Records of imaginary peers, and an access policy that tests can change while processes run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ttt.swarm.dht.access import AccessPolicy, Action, Decision
from ttt.swarm.dht.records import PeerRecord

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def peer_id(name: str) -> str:
    """Looks like a libp2p id."""
    return "Qm" + "".join(ALPHABET[byte % 58] for byte in hashlib.sha512(name.encode()).digest()[:44])


ID = {name: peer_id(name) for name in ("ada", "bob", "eve", "dan")}


def record(who: str, **fields: Any) -> PeerRecord:
    values: dict[str, Any] = {"peer_id": peer_id(who), "name": who, "started": 1.0, "time": 100.0, "step": 0, **fields}
    values["time"] = max(values["time"], values["started"])
    return PeerRecord(**values)


class BanFile(AccessPolicy):
    """Refuses the peers whose ids are in a file. Reads it at every question, so that all processes agree at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def allows(self, peer_id: str, action: Action) -> Decision:
        banned = peer_id in self.path.read_text().split()
        return Decision(not banned, "banned by the test" if banned else "")

    def ban(self, peer_id: str) -> None:
        self.path.write_text(peer_id)

    def lift(self) -> None:
        self.path.write_text("")
