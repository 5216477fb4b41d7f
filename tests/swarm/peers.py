"""Records of imaginary peers, for tests."""

from __future__ import annotations

import hashlib
from typing import Any

from ttt.swarm.dht.records import PeerRecord

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def peer_id(name: str) -> str:
    """Looks like a libp2p id."""
    return "Qm" + "".join(ALPHABET[byte % 58] for byte in hashlib.sha512(name.encode()).digest()[:44])


ID = {name: peer_id(name) for name in ("ada", "bob", "eve", "dan")}


def record(who: str, **fields: Any) -> PeerRecord:
    values: dict[str, Any] = {"peer_id": peer_id(who), "name": who, "started": 1.0, "time": 100.0, "epoch": 0, **fields}
    values["time"] = max(values["time"], values["started"])
    return PeerRecord(**values)
