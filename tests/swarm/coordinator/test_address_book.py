"""Whom a coordinator remembers, and which of its addresses it gives to volunteers."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("hivemind is for Linux alone", allow_module_level=True)

from tests.swarm.peers import ID
from ttt.swarm.coordinator.address_book import (
    MAX_FAILURES,
    MAX_KNOWN_PEERS,
    invitation,
    known_peers,
    own_address,
    remembered,
)


def at(host: str, who: str = "ada", port: int = 8080) -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{ID[who]}"


def test_the_address_on_the_way_to_the_internet_goes_before_those_of_virtual_networks() -> None:
    docker, home, loop, public = (at(host) for host in ("172.17.0.1", "192.168.1.200", "127.0.0.1", "93.184.215.14"))
    line = invitation("run.toml", [loop, docker, home], own="192.168.1.200")[-1]
    assert line == f"python -m ttt peer --run run.toml --initial-peer {home}"
    assert home not in invitation("run.toml", [docker, home], own="172.17.0.1")[-1]
    assert public in invitation("run.toml", [docker, home, public], own="192.168.1.200")[-1]
    assert docker in invitation("run.toml", [loop, docker], own="")[-1]
    name = f"/dns4/example.org/tcp/8080/p2p/{ID['ada']}"
    assert name in invitation("run.toml", [docker, name], own="172.17.0.1")[-1]


def test_the_line_for_volunteers_survives_a_shell() -> None:
    line = invitation("my runs/a & b.toml", [at("127.0.0.1")], own="")[-1]
    assert shlex.split(line)[4:] == ["--run", "my runs/a & b.toml", "--initial-peer", at("127.0.0.1")]


def test_this_machines_own_address_is_one_of_its_own() -> None:
    import socket

    own = own_address()
    if own:  # else it has no way to the Internet
        with socket.socket() as server:
            server.bind((own, 0))


def test_who_does_not_answer_for_long_is_forgotten() -> None:
    ada, bob = at("10.0.0.1"), at("10.0.0.2", "bob")
    known = {ada: 0, bob: 0}
    for _ in range(MAX_FAILURES):
        known = remembered(known, answered=[bob], present=[])
    assert known == {ada: MAX_FAILURES, bob: 0}
    assert remembered(known, answered=[ada, bob], present=[]) == {ada: 0, bob: 0}
    assert remembered(known, answered=[bob], present=[]) == {bob: 0}


def test_where_nobody_answers_nobody_is_forgotten() -> None:
    known = {at("10.0.0.1"): MAX_FAILURES, at("10.0.0.2", "bob"): 3}
    assert remembered(known, answered=[], present=[]) == known


def test_a_peer_has_one_address_the_one_where_it_answers() -> None:
    old, new = at("10.0.0.1"), at("10.0.0.9")
    assert remembered({old: 0}, answered=[], present=[new]) == {new: 0}
    assert remembered({old: 0}, answered=[old], present=[new]) == {old: 0}
    crowd = [f"/ip4/10.0.0.1/tcp/{port}/p2p/{port}" for port in range(2 * MAX_KNOWN_PEERS)]
    assert len(remembered({}, answered=[], present=crowd)) == MAX_KNOWN_PEERS


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a": "b"}', '{"a": null}', json.dumps(["/ip4/10.0.0.1"])])
def test_a_file_that_is_not_ours_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "peers.json").write_text(text)
    assert known_peers(tmp_path) == []
