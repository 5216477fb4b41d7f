"""A network of one machine: each member of a swarm in a namespace of its own, on one bridge. Needs root and `ip`.

Interfaces count what really goes over the wire, with every protocol's overhead, and a link can be cut.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

SUBNET = "10.111.0"


def available() -> bool:
    """Whether namespaces can be made here."""
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "ttt-probe"], capture_output=True).returncode == 0
    if made:
        _ip("netns", "del", "ttt-probe")
    return made


class Network:
    """with Network() as network: LocalSwarm(..., wrap=network.wrap)"""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Network:
        _ip("link", "add", "ttt-br", "type", "bridge")
        self._undo.callback(_ip, "link", "del", "ttt-br")
        _ip("link", "set", "ttt-br", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def wrap(self, name: str, command: list[str]) -> list[str]:
        """The command, in the namespace of this member."""
        if name not in self.numbers:
            self._add(name)
        return ["ip", "netns", "exec", f"ttt-{name}", *command]

    def address(self, name: str) -> str:
        if name not in self.numbers:
            self._add(name)
        return f"{SUBNET}.{self.numbers[name]}"

    def bytes_of(self, name: str) -> tuple[int, int]:
        """(sent, received) by a member so far."""
        counters = Path(f"/sys/class/net/ttt{self.numbers[name]}/statistics")
        return int((counters / "rx_bytes").read_text()), int((counters / "tx_bytes").read_text())

    def move(self, names: list[str], bridge: str) -> None:
        """Plug members into another bridge: "ttt-br" is where all begin."""
        if bridge != "ttt-br" and not Path(f"/sys/class/net/{bridge}").exists():
            _ip("link", "add", bridge, "type", "bridge")
            self._undo.callback(_ip, "link", "del", bridge)
            _ip("link", "set", bridge, "up")
        for name in names:
            _ip("link", "set", f"ttt{self.numbers[name]}", "master", bridge)

    def _add(self, name: str) -> None:
        number = self.numbers[name] = len(self.numbers) + 2
        space, outside, inside = f"ttt-{name}", f"ttt{number}", f"ttt{number}i"
        _ip("netns", "add", space)
        self._undo.callback(_ip, "netns", "del", space)
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        self._undo.callback(_ip, "link", "del", outside)  # at once; the namespace lives as long as its last process
        _ip("link", "set", inside, "netns", space)
        _ip("link", "set", outside, "master", "ttt-br")
        _ip("link", "set", outside, "up")
        for line in (["addr", "add", f"{SUBNET}.{number}/24", "dev", inside], ["link", "set", inside, "up"],
                     ["link", "set", "lo", "up"]):  # fmt: skip
            _ip("-n", space, *line)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
