"""The machine a peer would run on: its GPUs, its ports, and how others reach it."""

from __future__ import annotations

import pytest

from tests.support.hosts import FITS, FORM, LOOPBACK, SPACE, T4
from ttt.errors import InvalidInput
from ttt.ui.contribute import setup_view
from ttt.ui.contribute.fake import ADDRESS
from ttt.ui.contribute.form import PeerForm, connectivity_of, desired_state_of
from ttt.ui.contribute.host import Gpu, check_connectivity, detect_host, parse_gpus, port_of


def test_gpus_as_nvidia_smi_lists_them() -> None:
    output = "Tesla T4, 15360, 14923\nNVIDIA A100-SXM4-80GB, 81920, 100\nodd, [N/A], 3\n\n"
    assert parse_gpus(output) == [
        Gpu("Tesla T4", 15360 << 20, 14923 << 20),
        Gpu("NVIDIA A100-SXM4-80GB", 81920 << 20, 100 << 20),
    ]


def test_a_zero_gpu_space_supports_no_peer() -> None:
    host = detect_host({"SPACE_ID": "anna/demo", "SPACES_ZERO_GPU": "true"})
    assert host.zero_gpu and not host.supports_peer
    with pytest.raises(InvalidInput, match="duplicate this Space"):
        desired_state_of(FORM, host, FITS)
    text = setup_view.host_html(setup_view.findings(host, FITS, None), owner=True)
    assert "a minute at a time" in text and 'data-level="bad"' in text


def test_this_machine_is_found() -> None:
    host = detect_host({})
    assert host.space == "" and host.cores >= 1 and host.ram > 1 << 28


@pytest.mark.parametrize(
    ("address", "port"), [(ADDRESS, 8080), ("/dns4/a.example/tcp/443/p2p/Qm", 443), ("/ip4/1.2.3.4/p2p/Qm", None)]
)
def test_port_of_an_address(address: str, port: int | None) -> None:
    assert port_of(address) == port


def test_a_space_connects_only_to_its_ports() -> None:
    closed = ADDRESS.replace("8080", "31337")
    connectivity = check_connectivity(SPACE, [ADDRESS, closed])
    assert connectivity.client and not connectivity.unreachable
    assert (connectivity.reachable_addresses, connectivity.blocked_addresses) == ((ADDRESS,), (closed,))
    assert desired_state_of(PeerForm(run="r", initial_peers=f"{closed} {ADDRESS}"), SPACE, FITS).initial_peers == (
        ADDRESS,
    )
    assert check_connectivity(SPACE, [closed]).unreachable
    with pytest.raises(InvalidInput, match="80, 443 and 8080"):
        desired_state_of(PeerForm(run="r", initial_peers=closed), SPACE, FITS)


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
def test_when_a_peer_accepts_connections(address: str, reachable: bool, client: bool, host: str) -> None:
    order = desired_state_of(PeerForm(run="r", initial_peers=address, reachable=reachable, port=4001), T4, FITS)
    assert (order.client, order.host, order.port) == (client, host, 0 if client else 4001)
    assert connectivity_of(PeerForm(initial_peers=address, reachable=reachable), SPACE).client
