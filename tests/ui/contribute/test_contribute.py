"""The Contribute tab without a browser: what is asked for, the run's verdict, and the tab alone with a fake."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import ASKED, CPU, FITS, LOOPBACK, T4, TOO_LARGE
from ttt.bundle import Bundle
from ttt.errors import InvalidInput
from ttt.hardware import MEMORY_SHARE
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.config.run_file import write_run_file
from ttt.swarm.process.control_files import DesiredState
from ttt.swarm.training.requirements import estimate_resources
from ttt.ui.contribute import setup_view as contribute_view
from ttt.ui.contribute.fake import ADDRESS, FakeDesk
from ttt.ui.contribute.form import FIELDS, Asked, addresses, memory_of, order_of, read
from ttt.ui.contribute.host import Place, reach


def test_the_order_of_a_form() -> None:
    order = order_of(Asked(**{**vars(ASKED), "hours": 2, "gpu_gib": 7.5, "limit": 3}), T4, FITS, exit_with_pid=7)
    assert order.run == "run.toml" and order.initial_peers == [ADDRESS] and order.name == "me"
    assert order.micro_batch == 0 and order.limit == 3 and order.exit_with_pid == 7
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
    assert memory_of(Asked(gpu_gib=4), CPU) == int(0.6 * (8 << 30))


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"needs 90\.0 GiB here and 11\.9 GiB can be used"):
        order_of(ASKED, T4, TOO_LARGE)
    with pytest.raises(InvalidInput, match="needs 90"):
        order_of(Asked(**{**vars(ASKED), "micro_batch": 1}), T4, TOO_LARGE)


def test_a_suggested_micro_batch_is_not_an_order() -> None:
    """The peer would take it for the user's choice; memory may be shorter by the time the peer starts."""
    assert FITS.micro_batch == 16 and order_of(ASKED, T4, FITS).micro_batch == 0
    assert order_of(Asked(**{**vars(ASKED), "micro_batch": 4}), T4, FITS).micro_batch == 4


def test_a_suggestion_and_the_peer_use_the_same_share_of_free_memory() -> None:
    assert T4.gpu is not None
    assert memory_of(Asked(), T4) == int(MEMORY_SHARE["cuda"] * T4.gpu.free)
    assert memory_of(Asked(), CPU) == int(MEMORY_SHARE["cpu"] * CPU.ram)


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


def run_file(folder: Path, **sections: Any) -> str:
    write_run_file(folder / "run.toml", RunSettings.model_validate({"run": {"name": "r"}, **sections}), overwrite=True)
    return str(folder / "run.toml")


def test_the_verdict_on_a_run(bundle: Bundle, tmp_path: Path) -> None:
    run = run_file(tmp_path, model={"bundle": str(bundle.root)}, batch={"global_batch": 64})
    demand = estimate_resources(run, 1 << 30, cuda=False)
    assert demand.known and demand.micro_batch == 8 and 0 < demand.memory < 1 << 30
    least = estimate_resources(run, 1, cuda=True)
    assert least.micro_batch == 0 and least.memory > 1
    assert estimate_resources(run, 1 << 30, cuda=True).micro_batch == 64 // 8
    assert demand.cpu_samples_per_second(1e9) > 0


def test_an_estimate_builds_no_model(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.Module.__init__", lambda self: pytest.fail("a torch module was built"))
    run = run_file(tmp_path, model={"bundle": str(bundle.root)})
    assert estimate_resources(run, 1 << 30, cuda=True).known


def test_a_bundle_in_the_home_folder_is_found(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bundle.root.parent))
    run = run_file(tmp_path, model={"bundle": f"~/{bundle.root.name}"})
    assert estimate_resources(run, 1 << 30, cuda=True).known


def test_a_model_on_the_hub_is_not_fetched_for_a_verdict(tmp_path: Path) -> None:
    demand = estimate_resources(run_file(tmp_path, model={"bundle": "somebody/model"}), 1 << 30, cuda=True)
    assert not demand.known
    found = contribute_view.findings(T4, demand, None)
    assert any("once the peer has fetched it" in one.text for one in found)
    assert order_of(ASKED, T4, demand).micro_batch == 0  # the peer finds out


def test_a_run_file_that_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is not there"):
        estimate_resources(str(tmp_path / "absent.toml"), 1 << 30, cuda=False)


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


def test_an_order_holds_no_secret() -> None:
    assert not [name for name in DesiredState.model_fields if re.search("token|secret|password", name)]


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

    from ttt.ui.contribute.auth import Owner
    from ttt.ui.contribute.tab import ContributeTab

    desk = FakeDesk()
    with gr.Blocks(analytics_enabled=False) as page:
        ContributeTab(page, desk, Owner({})).refresh.keep_running(page)
    desk.start(desk.defaults)
    assert desk.view().phase == "running"
    with pytest.raises(InvalidInput, match="runs already"):
        desk.start(desk.defaults)
    desk.stop()
    assert desk.view().phase == "off"
