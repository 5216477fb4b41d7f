"""The Contribute tab without a browser: the form, the estimate for a run, and the tab alone with a fake."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import CPU, FITS, FORM, LOOPBACK, T4, TOO_LARGE
from ttt.bundle import Bundle
from ttt.errors import InvalidInput
from ttt.hardware import MEMORY_SHARE
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.config.run_file import write_run_file
from ttt.swarm.process.control_files import DesiredState
from ttt.swarm.training.requirements import estimate_resources
from ttt.ui.contribute import setup_view
from ttt.ui.contribute.fake import ADDRESS, FakePeerController
from ttt.ui.contribute.form import FIELDS, PeerForm, addresses, desired_state_of, read, usable_memory
from ttt.ui.contribute.host import HostInfo, check_connectivity
from ttt.ui.contribute.service import PeerController


def test_the_desired_state_of_a_form() -> None:
    desired = desired_state_of(
        PeerForm(**{**vars(FORM), "hours": 2, "gpu_gib": 7.5, "limit": 3}), T4, FITS, exit_with_pid=7
    )
    assert desired.run == "run.toml" and desired.initial_peers == (ADDRESS,) and desired.name == "me"
    assert desired.limit == 3 and desired.exit_with_pid == 7
    assert desired.gpu_fraction == pytest.approx(0.5)
    assert desired.stop_at == pytest.approx(time.time() + 7200, abs=60)


def test_a_suggested_micro_batch_is_no_order() -> None:
    """The peer would insist on it, even after it had run out of memory."""
    assert desired_state_of(FORM, T4, FITS).micro_batch == 0
    assert desired_state_of(FORM.model_copy(update={"micro_batch": 4}), T4, FITS).micro_batch == 4


def test_the_earlier_of_two_limits_counts() -> None:
    desired = desired_state_of(
        PeerForm(**{**vars(FORM), "hours": 10_000_000 / 3600, "stop_at": "2999-01-01 00:00"}), T4, FITS
    )
    assert desired.stop_at == pytest.approx(time.time() + 10_000_000, abs=60)
    desired = desired_state_of(PeerForm(**{**vars(FORM), "stop_at": "2999-01-01T00:00+01:00"}), T4, FITS)
    late = desired_state_of(PeerForm(**{**vars(FORM), "stop_at": "2999-01-01 00:00"}), T4, FITS)
    assert late.stop_at is not None and desired.stop_at == late.stop_at - 3600


def test_usable_memory() -> None:
    assert usable_memory(PeerForm(gpu_gib=4), T4) == 4 << 30


def test_a_suggestion_and_the_peer_use_the_same_share_of_free_memory() -> None:
    assert T4.gpu is not None
    assert usable_memory(PeerForm(), T4) == int(MEMORY_SHARE["cuda"] * T4.gpu.free)
    assert usable_memory(PeerForm(), CPU) == int(MEMORY_SHARE["cpu"] * CPU.ram)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"needs 90\.0 GiB, but only 11\.9 GiB can be used here"):
        desired_state_of(FORM, T4, TOO_LARGE)
    with pytest.raises(InvalidInput, match="needs 90"):
        desired_state_of(FORM.model_copy(update={"micro_batch": 1}), T4, TOO_LARGE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"run": ""}, "the run is missing"),
        ({"initial_peers": ""}, "the address is missing"),
        ({"initial_peers": "127.0.0.1:80"}, "is not a peer's address"),
        ({"initial_peers": "/ip4/1.2.3.4/tcp/80"}, "is not a peer's address"),
        ({"initial_peers": "--run /ip4/1.2.3.4/tcp/80/p2p/Qm"}, "is not a peer's address"),
        ({"initial_peers": " ".join(f"/ip4/1.2.3.4/tcp/80/p2p/Qm{i}" for i in range(17))}, "at most 16"),
        ({"name": "a\nb"}, "must be one line of at most 100 characters"),
        ({"name": "x" * 101}, "at most 100 characters"),
        ({"hours": -1}, "hours must be a number from 0 to 8760; got -1.0"),
        ({"hours": "many"}, "hours must be a number"),
        ({"hours": float("nan")}, "hours must be a number"),
        ({"micro_batch": 10**9}, "micro_batch must be a whole number from 0 to 4096"),
        ({"gpu_gib": True}, "gpu_gib must be a number from 0 to 10000"),
        ({"limit": -1}, "limit must be a number from 0 to"),
        ({"port": 70_000, "reachable": True}, "port must be a whole number from 0 to 65535"),
        ({"stop_at": "tomorrow"}, "must look like 2026-12-24 18:00"),
        ({"stop_at": "2001-01-01 00:00"}, "is in the past"),
    ],
)
def test_bad_values_are_refused_with_the_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        desired_state_of(read([{**vars(FORM), **wrong}[name] for name in FIELDS]), T4, FITS)


def test_empty_fields_take_their_defaults() -> None:
    assert read([]) == PeerForm()
    assert read([None] * len(FIELDS)) == PeerForm()
    assert not read(["r", "", "", 0, 0, "", 0, 0, "yes", 0]).reachable


@pytest.mark.parametrize("junk", [{"a": 1}, ["x"], [], 5.5, "x" * 10_000, float("nan")])
def test_anything_from_the_wire_is_read_or_refused(junk: Any) -> None:
    for position in range(len(FIELDS)):
        values: list[Any] = [None] * len(FIELDS)
        values[position] = junk
        with contextlib.suppress(InvalidInput):
            read(values)


def test_the_coordinators_whole_line_may_be_pasted() -> None:
    assert addresses(f"--initial-peer {ADDRESS}, {ADDRESS}\n{LOOPBACK}") == [ADDRESS, LOOPBACK]


def run_file(folder: Path, **sections: Any) -> str:
    write_run_file(folder / "run.toml", RunSettings.model_validate({"run": {"name": "r"}, **sections}), overwrite=True)
    return str(folder / "run.toml")


def test_the_estimate_for_a_run(bundle: Bundle, tmp_path: Path) -> None:
    run = run_file(tmp_path, model={"bundle": str(bundle.root)}, batch={"global_batch": 64})
    estimate = estimate_resources(run, 1 << 30, cuda=False)
    assert estimate.known and estimate.micro_batch == 8 and 0 < estimate.memory < 1 << 30
    least = estimate_resources(run, 1, cuda=True)
    assert least.micro_batch == 0 and least.memory > 1
    assert estimate_resources(run, 1 << 30, cuda=True).micro_batch == 64 // 8
    assert estimate.cpu_samples_per_second(1e9) > 0


def test_an_estimate_builds_no_model(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.Module.__init__", lambda self: pytest.fail("a torch module was built"))
    run = run_file(tmp_path, model={"bundle": str(bundle.root)})
    assert estimate_resources(run, 1 << 30, cuda=True).known


def test_a_bundle_in_the_home_folder_is_found(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bundle.root.parent))
    run = run_file(tmp_path, model={"bundle": f"~/{bundle.root.name}"})
    assert estimate_resources(run, 1 << 30, cuda=True).known


def test_a_model_on_the_hub_is_not_downloaded_for_an_estimate(tmp_path: Path) -> None:
    estimate = estimate_resources(run_file(tmp_path, model={"bundle": "somebody/model"}), 1 << 30, cuda=True)
    assert not estimate.known
    found = setup_view.findings(T4, estimate, None)
    assert any("once the model is downloaded" in finding.text for finding in found)
    assert desired_state_of(FORM, T4, estimate).micro_batch == 0  # the peer finds out


def test_a_missing_run_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        estimate_resources(str(tmp_path / "absent.toml"), 1 << 30, cuda=False)


def test_findings_name_memory_and_pace() -> None:
    good = setup_view.host_html(setup_view.findings(T4, FITS, check_connectivity(T4, [LOOPBACK])), owner=True)
    assert "Tesla T4: 14.0 GiB of 15.0 GiB free" in good
    assert "(125.9 M parameters) fits: about 5.0 GiB of GPU memory for micro-batches of 16" in good
    bad = setup_view.findings(T4, TOO_LARGE, None)
    assert [one.level for one in bad if "does not fit" in one.text] == ["bad"]
    slow = setup_view.host_html(setup_view.findings(CPU, FITS, None, pace=0.05), owner=False)
    assert "one sample every 20 s" in slow and "would take 22 h 45 min per step (4,096 samples)" in slow
    assert "This machine" in good and "This server" in slow  # a visitor's machine is another one
    small = HostInfo(gpu=T4.gpu, gpus=1, ram=1 << 30, shared_memory=64 << 20)
    assert "--shm-size" in setup_view.host_html(setup_view.findings(small, FITS, None), owner=True)


def test_a_desired_state_holds_no_secret() -> None:
    assert not [name for name in DesiredState.model_fields if re.search("token|secret|password", name)]


def test_the_script_calls_functions_that_are_there() -> None:
    import inspect

    import huggingface_hub

    script = setup_view.duplicate_script("anna/demo")
    compile(script, "script", "exec")
    duplicate = inspect.signature(huggingface_hub.duplicate_repo).parameters
    assert {"repo_type", "space_sleep_time"} <= set(duplicate)
    assert {"hardware", "sleep_time"} <= set(inspect.signature(huggingface_hub.request_space_hardware).parameters)


def test_the_tab_runs_alone_with_a_fake() -> None:
    import gradio as gr

    from ttt.ui.contribute.auth import OwnerAuth
    from ttt.ui.contribute.tab import ContributeTab

    peer = FakePeerController()
    with gr.Blocks(analytics_enabled=False) as page:
        ContributeTab(page, peer, OwnerAuth({})).refresh.keep_running(page)
    peer.start(peer.defaults)
    assert peer.view().phase == "running"
    with pytest.raises(InvalidInput, match="already running"):
        peer.start(peer.defaults)
    peer.stop()
    assert peer.view().phase == "off"


def test_a_slow_probe_of_the_host_delays_no_other_answer(tmp_path: Path) -> None:
    """nvidia-smi may take ten seconds, and every visitor's page asks for the view once a second."""
    probing, done = threading.Event(), threading.Event()

    def detect() -> HostInfo:
        probing.set()
        assert done.wait(30)
        return CPU

    peer = PeerController(tmp_path, detect=detect)
    hosts: list[HostInfo] = []
    threads = [threading.Thread(target=lambda: hosts.append(peer.host())) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert probing.wait(30)
    probing.clear()
    view = threading.Thread(target=peer.view, daemon=True)
    view.start()
    view.join(20)
    assert not view.is_alive()
    done.set()
    for thread in threads:
        thread.join(30)
    assert hosts == [CPU, CPU]
    assert not probing.is_set()  # both callers shared one probe
