"""What the user of a peer and the organiser of a run choose beside the run file. Independent of the network.

The command line, the web page and the supervisor of a peer read names, defaults, ranges and descriptions from here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from ttt.fields import CheckedModel
from ttt.swarm.config.run_config import check_host

MAX_ADDRESSES = 16
PEER_ID = r"[1-9A-HJ-NP-Za-km-z]{40,64}"

Address = Annotated[str, Field(min_length=1, max_length=1000)]


class JoinOptions(CheckedModel):
    """How a peer joins a run and trains; InvalidInput if these options cannot work together."""

    run: str = Field(max_length=1000, description="The run file, or its URL.")
    initial_peers: tuple[Address, ...] = Field(
        default=(),
        max_length=MAX_ADDRESSES,
        description="Address at which to join: the one that the coordinator prints, or the address of any peer of the "
        "run. Can be given several times.",
        json_schema_extra={"option": "--initial-peer"},
    )
    coordinator: str = Field(
        default="",
        max_length=1000,
        description="Id or address of the coordinator. Default: trust the initial peers, and the coordinators that "
        "they name.",
    )
    name: str = Field(default="", max_length=100, description="Your name on the leaderboard.")
    device: str = Field(default="auto", max_length=20, description="auto, cpu, cuda or cuda:1.")
    precision: str = Field(default="auto", max_length=20, description="auto, float32, bfloat16 or float16.")
    micro_batch: int = Field(
        default=0, ge=0, le=1 << 24, description="Samples to compute at once; 0: as many as fit in memory."
    )
    limit: float = Field(default=0.0, ge=0, le=1e6, description="Maximum samples per second; 0: no limit.")
    host: str = Field(default="0.0.0.0", max_length=100, description="IPv4 address to listen on.")
    port: int = Field(default=0, ge=0, le=65_535, description="TCP port to listen on; 0: any free port.")
    announce: tuple[Address, ...] = Field(
        default=(),
        max_length=MAX_ADDRESSES,
        description="Address at which other peers can reach this one, such as /ip4/203.0.113.5/tcp/8080. Default: the "
        "addresses of this machine.",
    )
    client: bool = Field(
        default=False, description="Only connect to others, do not listen: for peers behind a NAT or in a Space."
    )
    relay: bool = Field(default=True, description="Let other peers relay connections where no direct one works.")
    auxiliary: bool = Field(
        default=False, description="Only average for other peers, without training; needs no GPU, but an open port."
    )
    until: int = Field(default=0, ge=0, description="Leave after this step; 0: never.")
    seed: int | None = Field(
        default=None, ge=0, le=2**63 - 1, description="Seed for the order of this peer's data. Default: random."
    )
    plain: bool = Field(default=False, description="Print plain lines instead of the live panel.")

    @property
    def coordinators(self) -> list[str]:
        """Ids of the peers whose announcements of the run are trusted, as are the coordinators that they name."""
        trusted = (self.coordinator,) if self.coordinator else self.initial_peers
        return [address.rpartition("/p2p/")[2] for address in trusted]

    @model_validator(mode="after")
    def _check_together(self) -> JoinOptions:
        if not self.initial_peers:
            raise ValueError("--initial-peer is needed: the address that the coordinator prints")
        if self.coordinator and not re.fullmatch(PEER_ID, self.coordinators[0]):
            raise ValueError(
                "--coordinator must be a peer id: the part of the address after /p2p/, such as Qm... (46 characters); "
                f"got {self.coordinator!r}"
            )
        if not self.client:
            _check_host_option(self.host)
        if self.client and self.auxiliary:
            raise ValueError("--auxiliary needs an open port that other peers can reach: leave --client out")
        return self


class PeerOptions(JoinOptions):
    """All options of a running peer."""

    folder: Path = Field(description="Folder for the identity, status and backup of the peer.")
    backup_seconds: float = Field(default=300.0, ge=0, description="Seconds between two backups of the state.")


class CoordinatorOptions(CheckedModel):
    """What the organiser of a run chooses beside the run file."""

    run: str = Field(min_length=1, max_length=1000, description="The run file, or its URL.")
    folder: Path = Field(description="Folder for checkpoints, history, identity and status.")
    host: str = Field(
        default="", max_length=100, description="IPv4 address to listen on. Default: the one in the run file."
    )
    port: int = Field(default=0, ge=0, le=65_535, description="TCP port to listen on; 0: the one in the run file.")
    announce: tuple[Address, ...] = Field(
        default=(),
        max_length=MAX_ADDRESSES,
        description="Address at which peers can reach the coordinator. Default: the addresses in the run file.",
    )
    initial_peers: tuple[Address, ...] = Field(
        default=(),
        max_length=MAX_ADDRESSES,
        description="Address of a peer in an existing network to join; rarely needed.",
        json_schema_extra={"option": "--initial-peer"},
    )

    @model_validator(mode="after")
    def _check_listening(self) -> CoordinatorOptions:
        if self.host:
            _check_host_option(self.host)
        return self


def option_arguments(options: JoinOptions) -> list[str]:
    """The arguments of `ttt peer` that give these options; those with their default value are left out."""
    arguments: list[str] = []
    for name, field in JoinOptions.model_fields.items():
        value: Any = getattr(options, name)
        if value == field.default:
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        flag = str(extra.get("option", f"--{name.replace('_', '-')}"))
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, tuple):
            arguments += [word for item in value for word in (flag, item)]
        else:
            arguments += [flag, str(value)]
    return arguments


def _check_host_option(host: str) -> None:
    try:
        check_host(host)
    except ValueError as error:
        raise ValueError(f"--host {error}, got {host!r}") from None
