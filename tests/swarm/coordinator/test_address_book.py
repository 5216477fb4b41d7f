"""Which peers the coordinator's address book keeps, and which address volunteers are given."""

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
    merge_contacts,
    outgoing_ip,
    read_address_book,
)


def at(host: str, who: str = "ada", port: int = 8080) -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{ID[who]}"


def test_the_address_on_the_route_to_the_internet_comes_before_those_of_virtual_networks() -> None:
    docker, home, loop, public = (at(host) for host in ("172.17.0.1", "192.168.1.200", "127.0.0.1", "93.184.215.14"))
    line = invitation("run.toml", [loop, docker, home], own_ip="192.168.1.200")[-1]
    assert line == f"ttt peer --run run.toml --initial-peer {home}"
    assert home not in invitation("run.toml", [docker, home], own_ip="172.17.0.1")[-1]
    assert public in invitation("run.toml", [docker, home, public], own_ip="192.168.1.200")[-1]
    assert docker in invitation("run.toml", [loop, docker], own_ip="")[-1]
    name = f"/dns4/example.org/tcp/8080/p2p/{ID['ada']}"
    assert name in invitation("run.toml", [docker, name], own_ip="172.17.0.1")[-1]


def test_the_command_for_volunteers_survives_a_shell() -> None:
    line = invitation("my runs/a & b.toml", [at("127.0.0.1")], own_ip="")[-1]
    assert shlex.split(line)[2:] == ["--run", "my runs/a & b.toml", "--initial-peer", at("127.0.0.1")]


def test_the_outgoing_address_belongs_to_this_machine() -> None:
    import socket

    own = outgoing_ip()
    if own:  # else there is no route to the Internet
        with socket.socket() as server:
            server.bind((own, 0))


def test_a_peer_that_does_not_answer_for_long_is_removed() -> None:
    ada, bob = at("10.0.0.1"), at("10.0.0.2", "bob")
    known = {ada: 0, bob: 0}
    for _ in range(MAX_FAILURES):
        known = merge_contacts(known, answered=[bob], connected=[])
    assert known == {ada: MAX_FAILURES, bob: 0}
    assert merge_contacts(known, answered=[ada, bob], connected=[]) == {ada: 0, bob: 0}
    assert merge_contacts(known, answered=[bob], connected=[]) == {bob: 0}


def test_if_no_peer_answers_none_is_removed() -> None:
    known = {at("10.0.0.1"): MAX_FAILURES, at("10.0.0.2", "bob"): 3}
    assert merge_contacts(known, answered=[], connected=[]) == known


def test_a_peer_has_one_address_at_which_it_answers() -> None:
    old, new = at("10.0.0.1"), at("10.0.0.9")
    assert merge_contacts({old: 0}, answered=[], connected=[new]) == {new: 0}
    assert merge_contacts({old: 0}, answered=[old], connected=[new]) == {old: 0}
    crowd = [f"/ip4/10.0.0.1/tcp/{port}/p2p/{port}" for port in range(2 * MAX_KNOWN_PEERS)]
    assert len(merge_contacts({}, answered=[], connected=crowd)) == MAX_KNOWN_PEERS


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a": "b"}', '{"a": null}', json.dumps(["/ip4/10.0.0.1"])])
def test_a_malformed_file_gives_no_addresses(tmp_path: Path, text: str) -> None:
    (tmp_path / "peers.json").write_text(text)
    assert read_address_book(tmp_path) == []
