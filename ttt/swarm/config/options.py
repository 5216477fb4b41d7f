"""What a volunteer and an organiser choose beside the run file. The command line reads the helps; knows no network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ttt.errors import InvalidInput
from ttt.swarm.config.run_config import check_host

PEER_ID = r"[1-9A-HJ-NP-Za-km-z]{40,64}"


@dataclass(frozen=True, kw_only=True)
class PeerOptions:
    """What a volunteer chooses; InvalidInput from `check` where it cannot work."""

    run: str
    """Run file, or its URL."""
    initial_peers: tuple[str, ...]
    """Addresses to join at."""
    coordinator: str = ""
    """libp2p id of the coordinator, or its address; empty: the initial peers are the coordinator, or know it."""
    folder: Path
    """For status, identity and backup."""
    name: str = ""
    device: str = "auto"
    precision: str = "auto"
    micro_batch: int = 0
    """Samples at once; 0: what fits."""
    limit: float = 0.0
    """Samples per second not to exceed; 0: as fast as possible."""
    host: str = "0.0.0.0"
    port: int = 0
    announce: tuple[str, ...] = ()
    client: bool = False
    relay: bool = True
    auxiliary: bool = False
    until: int = 0
    """Leave after this step; 0: stay."""
    seed: int | None = None
    backup_seconds: float = 300.0
    plain: bool = False
    """Lines of text even on a terminal."""

    @property
    def coordinators(self) -> list[str]:
        """libp2p ids of those whose announcements of the run count, as do those of the coordinators that they name."""
        known = (self.coordinator,) if self.coordinator else self.initial_peers
        return [address.rpartition("/p2p/")[2] for address in known]

    def check(self) -> None:
        if not self.initial_peers:
            raise InvalidInput("--initial-peer is needed: the address that the coordinator prints")
        if self.coordinator and not all(re.fullmatch(PEER_ID, coordinator) for coordinator in self.coordinators):
            raise InvalidInput(
                f"--coordinator must be the end of its address, after /p2p/, such as Qm... (46 characters); "
                f"got {self.coordinator!r}"
            )
        if self.micro_batch < 0:
            raise InvalidInput(f"--micro-batch must be at least 1, or 0 for what fits; got {self.micro_batch}")
        if not self.client:
            _check_host_option(self.host)
        if self.client and self.auxiliary:
            raise InvalidInput("--auxiliary needs to be reachable by others: leave --client out")


@dataclass(frozen=True, kw_only=True)
class CoordinatorOptions:
    """What an organiser chooses beside the run file."""

    run: str
    folder: Path
    host: str = ""
    port: int = 0
    announce: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    """Of a network that exists already; usually none."""

    def check(self) -> None:
        """InvalidInput where it cannot work."""
        if self.host:
            _check_host_option(self.host)


def _check_host_option(host: str) -> None:
    try:
        check_host(host)
    except InvalidInput as error:
        raise InvalidInput(f"--host {error}, got {host!r}") from None
