"""The Contribute tab without a browser: what is found out, what is asked for, what is shown, what is explained."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import write_tiny_bundle
from ttt.errors import InvalidInput
from ttt.swarm.demand import Demand, demand_of
from ttt.swarm.launcher import View
from ttt.swarm.order import Order, Work
from ttt.swarm.run_file import write_run_file
from ttt.swarm.settings import RunSettings
from ttt.swarm.status import PeerStatus
from ttt.ui import contribute_view, peer_view
from ttt.ui.contribute_errors import COMPLAINTS, explain, explained, mask, redact
from ttt.ui.contribute_fake import ADDRESS, FakeDesk
from ttt.ui.contribute_form import FIELDS, Asked, addresses, memory_of, order_of, reach_of, read
from ttt.ui.place import Gpu, Place, look, parse_gpus, port_of, reach

T4 = Place(gpu=Gpu("Tesla T4", 15 << 30, 14 << 30), gpus=1, cores=4, ram=16 << 30)
CPU = Place(cores=2, ram=8 << 30)
SPACE = Place(space="anna/demo", gpu=T4.gpu, gpus=1, ram=16 << 30)
FITS = Demand("run", "a run", 4096, 125_900_000, 16, 5 << 30, 1 << 30, 1e12)
TOO_LARGE = Demand("run", "a run", 4096, 6_000_000_000, 0, 90 << 30, 1 << 30, 1e12)
ASKED = Asked(run="run.toml", initial_peers=ADDRESS, name="me")
LOOPBACK = "/ip4/127.0.0.1/tcp/5000/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


# -- the place --------------------------------------------------------------------------------------------------------


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


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_the_order_of_a_form() -> None:
    order = order_of(Asked(**{**vars(ASKED), "hours": 2, "gpu_gib": 7.5, "limit": 3}), T4, FITS, bound_to=7)
    assert order.run == "run.toml" and order.initial_peers == [ADDRESS] and order.name == "me"
    assert order.micro_batch == 16 and order.limit == 3 and order.bound_to == 7
    assert order.gpu_fraction == pytest.approx(0.5)
    assert order.stop_at == pytest.approx(time.time() + 7200, abs=60)


def test_the_earlier_of_two_limits_counts() -> None:
    order = order_of(Asked(**{**vars(ASKED), "hours": 10_000_000 / 3600, "stop_at": "2999-01-01 00:00"}), T4, FITS)
    assert order.stop_at == pytest.approx(time.time() + 10_000_000, abs=60)
    order = order_of(Asked(**{**vars(ASKED), "stop_at": "2999-01-01T00:00+01:00"}), T4, FITS)
    late = order_of(Asked(**{**vars(ASKED), "stop_at": "2999-01-01 00:00"}), T4, FITS)
    assert late.stop_at is not None and order.stop_at == late.stop_at - 3600


def test_memory_that_may_be_planned_for() -> None:
    assert memory_of(Asked(gpu_gib=4), T4) == 4 << 30
    assert memory_of(Asked(), T4) == int(0.9 * (14 << 30))
    assert memory_of(Asked(gpu_gib=4), CPU) == int(0.6 * (8 << 30))


def test_a_model_that_does_not_fit_is_refused_unless_one_insists() -> None:
    with pytest.raises(InvalidInput, match=r"needs 90\.0 GiB here and 12\.6 GiB can be used"):
        order_of(ASKED, T4, TOO_LARGE)
    assert order_of(Asked(**{**vars(ASKED), "micro_batch": 1}), T4, TOO_LARGE).micro_batch == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"run": ""}, "the run is missing"),
        ({"initial_peers": ""}, "the address of the run is missing"),
        ({"initial_peers": "127.0.0.1:80"}, "is not a peer's address"),
        ({"initial_peers": "/ip4/1.2.3.4/tcp/80"}, "is not a peer's address"),
        ({"initial_peers": "--run /ip4/1.2.3.4/tcp/80/p2p/Qm"}, "is not a peer's address"),
        ({"initial_peers": " ".join(f"/ip4/1.2.3.4/tcp/80/p2p/Qm{i}" for i in range(17))}, "at most 16"),
        ({"name": "a\nb"}, "one line"),
        ({"name": "x" * 101}, "at most 100"),
        ({"hours": -1}, "the hours must be a number from 0 to 8760, got -1"),
        ({"hours": "many"}, "the hours must be a number"),
        ({"hours": float("nan")}, "the hours must be a number"),
        ({"micro_batch": 10**9}, "the micro-batch must be a number from 0 to 4096"),
        ({"gpu_gib": True}, "the cap on GPU memory must be a number"),
        ({"limit": -1}, "samples per second must be"),
        ({"port": 70_000, "reachable": True}, "the port must be a number from 0 to 65535"),
        ({"stop_at": "tomorrow"}, "looks like 2026-12-24 18:00"),
        ({"stop_at": "2001-01-01 00:00"}, "has passed already"),
    ],
)
def test_bad_values_are_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        order_of(Asked(**{**vars(ASKED), **wrong}), T4, FITS)


def test_a_form_of_anything_is_read() -> None:
    assert read([]) == Asked()
    odd = read([{"a": 1}, ["x"], None, [], "many", 0, 0, 0, "yes", 0][: len(FIELDS)])
    assert odd.run == "{'a': 1}" and odd.name == "" and odd.micro_batch == []
    with pytest.raises(InvalidInput):
        order_of(odd, T4, FITS)


def test_the_coordinators_whole_line_may_be_pasted() -> None:
    assert addresses(f"--initial-peer {ADDRESS}, {ADDRESS}\n{LOOPBACK}") == [ADDRESS, LOOPBACK]


# -- the run's verdict ------------------------------------------------------------------------------------------------


def run_file(folder: Path, **sections: Any) -> str:
    write_run_file(folder / "run.toml", RunSettings.model_validate({"run": {"name": "r"}, **sections}), overwrite=True)
    return str(folder / "run.toml")


def test_the_verdict_on_a_run(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    run = run_file(tmp_path, model={"bundle": str(tmp_path / "tiny")}, batch={"global_batch": 64})
    demand = demand_of(run, 1 << 30, cuda=False)
    assert demand.known and demand.micro_batch == 8 and 0 < demand.needs < 1 << 30
    least = demand_of(run, 1, cuda=True)
    assert least.micro_batch == 0 and least.needs > 1
    assert demand_of(run, 1 << 30, cuda=True).micro_batch == 64 // 8
    assert demand.cpu_pace(1e9) > 0


def test_a_model_on_the_hub_is_not_fetched_for_a_verdict(tmp_path: Path) -> None:
    demand = demand_of(run_file(tmp_path, model={"bundle": "somebody/model"}), 1 << 30, cuda=True)
    assert not demand.known
    found = contribute_view.findings(T4, demand, None)
    assert any("once the peer has fetched it" in one.text for one in found)
    assert order_of(ASKED, T4, demand).micro_batch == 8


def test_a_run_file_that_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not there"):
        demand_of(str(tmp_path / "absent.toml"), 1 << 30, cuda=False)


def test_findings_name_memory_and_pace() -> None:
    good = contribute_view.place_html(contribute_view.findings(T4, FITS, reach(T4, [LOOPBACK])))
    assert "Tesla T4: 14.0 GiB of 15.0 GiB free" in good
    assert "125.9 M parameters) fits, with micro-batches of 16: 5.0 GiB of GPU memory" in good
    bad = contribute_view.findings(T4, TOO_LARGE, None)
    assert [one.level for one in bad if "does not fit" in one.text] == ["bad"]
    slow = contribute_view.place_html(contribute_view.findings(CPU, FITS, None, pace=0.05))
    assert "one sample in 20 s" in slow and "(4,096 samples) would take it 22 h 45 min" in slow
    small = Place(gpu=T4.gpu, gpus=1, ram=1 << 30, shared_memory=64 << 20)
    assert "--shm-size" in contribute_view.place_html(contribute_view.findings(small, FITS, None))


# -- the peer just now ------------------------------------------------------------------------------------------------


def running(**fields: Any) -> View:
    status = PeerStatus(state="computing", pid=5, time=time.time(), global_batch=100, **fields)
    return View(phase="running", status=status, peer=5, work=Work(samples=12_345, epochs=6, seconds=7500))


def test_figures_of_a_running_peer() -> None:
    view = running(samples_per_second=3.2, loss=6.5432, epoch=40, peers=7, group_size=7, received=0.5, swarm_samples=40)
    html = peer_view.status_html(view, time.time(), gpu="5.0 GiB of 15.0 GiB", share=0.25)
    told = dict(re.findall(r'data-field="(\w+)">([^<]*)<', html))
    assert told == {
        "samples": "12,345", "epochs": "6", "time": "2 h 5 min", "pace": "3.20", "loss": "6.543", "share": "25%",
        "step": "40", "peers": "7", "averaged": "7 peers, 50%", "sent": "0 B", "received": "0 B",
        "gpu": "5.0 GiB of 15.0 GiB",
    }  # fmt: skip
    assert 'aria-valuenow="40"' in html and 'data-state="ready"' in html


@pytest.mark.parametrize(
    ("view", "words", "light"),
    [
        (View(), "Off", "off"),
        (View(phase="starting"), "Starting", "loading"),
        (View(phase="paused", order=Order(run="r", initial_peers=["a"], pause_until=0.0)), "Paused", "loading"),
        (View(phase="waiting", next_try=9e9, reason="it broke"), "Trying again in", "failed"),
        (View(phase="finished", reason="the run is complete"), "Finished", "off"),
        (View(phase="stopping", peer=5), "Leaving the swarm", "loading"),
        (running(), "Computing gradients", "ready"),
    ],
)
def test_states_in_words(view: View, words: str, light: str) -> None:
    now = view.status.time if view.status else time.time()
    html = peer_view.status_html(view, now)
    assert f"<strong>{words}" in html and f'data-state="{light}"' in html


def test_a_peer_that_hangs_is_seen() -> None:
    html = peer_view.status_html(running(), time.time() + 100)
    assert "No word from the peer" in html and 'data-state="failed"' in html


def test_what_comes_from_outside_is_escaped_and_addresses_are_for_the_owner() -> None:
    view = running(message=f"<script>alert(1)</script> {ADDRESS} 10.0.0.1:80")
    public, own = peer_view.status_html(view, time.time()), peer_view.status_html(view, time.time(), owner=True)
    assert "<script" not in public and "<script" not in own
    assert "203.0.113.5" not in public and "10.0.0.1" not in public
    assert "203.0.113.5" in own


def test_the_log_is_explained_to_the_owner() -> None:
    log = ("12:00  connecting: joining", "Error: none of the initial peers answered (/ip4/1.2.3.4/tcp/1/p2p/Qm)")
    html = peer_view.trouble_html(View(phase="waiting", reason="it ended", log=log))
    assert "could not reach any initial peer" in html and "ports 80, 443 and 8080" in html
    assert peer_view.trouble_html(View(log=("12:00  computing: training on cpu",))) == ""


# -- errors explained, secrets left out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("SwarmError: none of the initial peers answered (/ip4/…)", "could not reach any initial peer"),
        ("hivemind.p2p.P2PDaemonError: Daemon failed to start in 15.0 seconds", "did not start in time"),
        ("step 3, averaging gradients: no group was found, or it broke up", "nobody to average with"),
        ("step 9, averaging state: only 50% of the data arrived from a group of 3", "left in the middle"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "memory is full"),
        ("/dev/shm has 60 MiB free, and this model needs 900 MiB of it", "too little shared memory"),
        ("step 3: the others had averaged already; gradients were lost. Raise averaging_timeout", "before this"),
        ("OSError: [Errno 24] Too many open files", "too few files"),
        ("ValueError: local time must be within 3 seconds of others", "clock"),
        ("the peer was ended by SIGKILL: most often the system had no memory left", "ended the peer"),
        ("step 4: the loss is nan; this peer's gradients dropped, not finite", "infinite or undefined"),
        ("error: numpy 2.4.1 is installed, and from 2.4 on", "peers would exchange nothing"),
        ("huggingface_hub.errors.GatedRepoError: 403 Client Error. gated repo", "did not give a file"),
        ("RuntimeError: cannot schedule new futures after shutdown", "echo of an earlier error"),
        ("Error: runs/peer is in use by another peer or coordinator", "same folder"),
    ],
)  # fmt: skip
def test_the_usual_complaints_are_explained(line: str, meaning: str) -> None:
    (told,) = explained([line])
    assert meaning in told[1].meaning
    assert told[1].try_this.endswith(".")


def test_progress_is_no_complaint() -> None:
    for line in ("12:00:01  computing: training on cuda since step 12", "relay found", "step 40 done"):
        assert explained([line]) == []


def test_every_complaint_can_be_told() -> None:
    for one in COMPLAINTS:
        re.compile(one.pattern)
        assert one.meaning and one.try_this
    assert explain("nothing of note") is None


def test_secrets_are_left_out() -> None:
    environment = {"HF_TOKEN": "hf_longsecrettoken", "PATH": "/usr/bin", "MY_PASSWORD": "swordfish", "X_TOKEN": "abc"}
    text = redact(
        "hf_longsecrettoken swordfish /usr/bin abc https://me:pw123@host/x https://h/x?token=zzz&y=1 Bearer q.w.e "
        "hf_AnotherTokenNotOurs",
        environment,
    )
    assert text == (
        "[secret] [secret] /usr/bin abc https://[secret]@host/x https://h/x?token=[secret]&y=1 Bearer [secret] [secret]"
    )
    assert mask("to /dns4/a.example/tcp/1/p2p/Qm and 10.1.2.3:80!") == "to [address] and [address]!"


def test_an_order_holds_no_secret() -> None:
    assert not [name for name in Order.model_fields if re.search("token|secret|password", name)]


def test_the_script_calls_functions_that_are_there() -> None:
    import inspect

    import huggingface_hub

    script = contribute_view.duplicate_script("anna/demo")
    compile(script, "script", "exec")
    duplicate = inspect.signature(huggingface_hub.duplicate_repo).parameters
    assert {"repo_type", "space_sleep_time"} <= set(duplicate)
    assert {"hardware", "sleep_time"} <= set(inspect.signature(huggingface_hub.request_space_hardware).parameters)


def test_the_tab_runs_alone_with_a_fake() -> None:
    import gradio as gr

    from ttt.ui.contribute import ContributeTab
    from ttt.ui.owner import Owner

    desk = FakeDesk()
    with gr.Blocks(analytics_enabled=False) as page:
        ContributeTab(desk, Owner({})).live.while_alone(page)
    desk.start(desk.defaults)
    assert desk.view().phase == "running"
    with pytest.raises(InvalidInput, match="runs already"):
        desk.start(desk.defaults)
    desk.stop()
    assert desk.view().phase == "off"
