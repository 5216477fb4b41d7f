"""The machine a peer would run on: its GPUs, its ports, and how others reach it."""

from __future__ import annotations

import pytest

from tests.support.places import ASKED, FITS, LOOPBACK, SPACE, T4
from ttt.errors import InvalidInput
from ttt.ui.contribute import setup_view as contribute_view
from ttt.ui.contribute.fake import ADDRESS
from ttt.ui.contribute.form import Asked, order_of, reach_of
from ttt.ui.contribute.host import Gpu, look, parse_gpus, port_of, reach


def test_gpus_as_nvidia_smi_lists_them() -> None:
    said = "Tesla T4, 15360, 14923\nNVIDIA A100-SXM4-80GB, 81920, 100\nodd, [N/A], 3\n\n"
    assert parse_gpus(said) == [
        Gpu("Tesla T4", 15360 << 20, 14923 << 20),
        Gpu("NVIDIA A100-SXM4-80GB", 81920 << 20, 100 << 20),
    ]


def test_a_zero_gpu_space_hosts_no_peer() -> None:
    place = look({"SPACE_ID": "anna/demo", "SPACES_ZERO_GPU": "true"})
    assert place.zero_gpu and not place.can_host
    with pytest.raises(InvalidInput, match="duplicate this Space"):
        order_of(ASKED, place, FITS)
    text = contribute_view.place_html(contribute_view.findings(place, FITS, None))
    assert "a minute at a time" in text and 'data-level="bad"' in text


def test_this_machine_is_found() -> None:
    place = look({})
    assert place.space == "" and place.cores >= 1 and place.ram > 1 << 28


@pytest.mark.parametrize(
    ("address", "port"), [(ADDRESS, 8080), ("/dns4/a.example/tcp/443/p2p/Qm", 443), ("/ip4/1.2.3.4/p2p/Qm", None)]
)
def test_port_of_an_address(address: str, port: int | None) -> None:
    assert port_of(address) == port


def test_a_space_calls_the_addresses_on_its_ports_alone() -> None:
    closed = ADDRESS.replace("8080", "31337")
    way = reach(SPACE, [ADDRESS, closed])
    assert way.client and not way.hopeless
    assert (way.open, way.blocked) == ((ADDRESS,), (closed,))
    assert order_of(Asked(run="r", initial_peers=f"{closed} {ADDRESS}"), SPACE, FITS).initial_peers == [ADDRESS]
    assert reach(SPACE, [closed]).hopeless
    with pytest.raises(InvalidInput, match="80, 443 and 8080"):
        order_of(Asked(run="r", initial_peers=closed), SPACE, FITS)


@pytest.mark.parametrize(
    ("address", "reachable", "client", "host"),
    [
        (LOOPBACK, False, False, "127.0.0.1"),
        ("/ip4/192.168.1.5/tcp/8080/p2p/QmYy", False, False, "0.0.0.0"),
        (ADDRESS.replace("203.0.113.5", "8.8.8.8"), False, True, "0.0.0.0"),
        (ADDRESS.replace("203.0.113.5", "8.8.8.8"), True, False, "0.0.0.0"),
        ("/dns4/run.example/tcp/443/p2p/QmYy", False, True, "0.0.0.0"),
    ],
)
def test_who_listens(address: str, reachable: bool, client: bool, host: str) -> None:
    order = order_of(Asked(run="r", initial_peers=address, reachable=reachable, port=4001), T4, FITS)
    assert (order.client, order.host, order.port) == (client, host, 0 if client else 4001)
    assert reach_of(Asked(initial_peers=address, reachable=reachable), SPACE).client
