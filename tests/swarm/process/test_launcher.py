"""The launcher and its supervisor, with peers that fail at once: back-off, reasons, limits, one at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("a peer needs Linux", allow_module_level=True)

from ttt.errors import InvalidInput
from ttt.swarm.config.options import JoinOptions
from ttt.swarm.process import control_files
from ttt.swarm.process.control_files import Contribution, DesiredState, Phase, SupervisorState
from ttt.swarm.process.launcher import Launcher, start_ticks, tail
from ttt.swarm.process.status import PeerStatus, write_status
from ttt.swarm.process.supervisor import HEALTHY_SECONDS, SECRETS, Supervisor, peer_command

ADDRESS = "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "peer")
    yield launcher
    state = control_files.read(SupervisorState, launcher.folder)
    if state is None or state.pid != os.getpid():  # else the test itself was the supervisor
        launcher.stop()
        assert launcher.wait_until_off(60)


def order(folder: Path, **fields: object) -> DesiredState:
    """A run whose file does not exist, so that the peer ends at once."""
    return DesiredState.model_validate({"run": str(folder / "absent.toml"), "initial_peers": [ADDRESS], **fields})


def until(true: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tick_until(supervisor: Supervisor, phase: Phase) -> None:
    """Tick as `Supervisor.run` does; the clock of the supervisor does not move."""
    deadline = time.monotonic() + 90
    while supervisor.state.phase != phase:
        assert time.monotonic() < deadline, f"not {phase}: {supervisor.state}"
        supervisor.tick()
        time.sleep(0.05)


def run_instead_of_a_peer(monkeypatch: pytest.MonkeyPatch, script: str) -> list[int]:
    """Let supervisors start this Python script; returns the micro-batch limits of all starts so far."""
    limits: list[int] = []

    def fast_command(desired: DesiredState, folder: Path, micro_batch_limit: int = 0) -> list[str]:
        limits.append(micro_batch_limit)
        return [sys.executable, "-S", "-c", script, str(folder)]

    monkeypatch.setattr("ttt.swarm.process.supervisor.peer_command", fast_command)
    return limits


def test_a_peer_that_fails_is_restarted_with_back_off_and_shows_the_reason(
    launcher: Launcher, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_files.write(launcher.folder, order(tmp_path))
    supervisor = Supervisor(launcher.folder, clock=clock, back_off=(2.0, 5.0, 7.0))
    tick_until(supervisor, "waiting")  # a real peer
    view = launcher.view()
    assert "absent.toml does not exist" in view.reason
    assert any("absent.toml" in line for line in view.log)
    with pytest.raises(InvalidInput, match="runs already"):
        launcher.start(order(tmp_path))
    run_instead_of_a_peer(monkeypatch, "raise ValueError('it broke')")
    waits = []
    for restarts in range(1, 5):
        view = launcher.view()
        assert view.restarts == restarts and view.next_attempt is not None
        waits.append(view.next_attempt - clock.now)
        clock.now = view.next_attempt - 0.01
        supervisor.tick()
        assert supervisor.state.phase == "waiting", "it did not wait"
        clock.now = view.next_attempt
        supervisor.tick()
        assert supervisor.state.phase == "starting"
        tick_until(supervisor, "waiting")
        assert "it broke" in launcher.view().reason
    assert waits == pytest.approx([2.0, 5.0, 7.0, 7.0])
    launcher.stop()
    assert supervisor.tick()
    assert supervisor.state.phase == "off" and supervisor.state.reason == "stopped by the owner"


def test_a_peer_that_was_healthy_restarts_the_back_off(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_instead_of_a_peer(monkeypatch, "import sys; sys.exit(3)")
    control_files.write(tmp_path, order(tmp_path))
    supervisor = Supervisor(tmp_path, clock=clock)
    for expected in (2.0, 5.0, 2.0):
        supervisor.tick()
        if expected == 2.0:
            clock.now += HEALTHY_SECONDS + 1
        tick_until(supervisor, "waiting")
        assert supervisor.state.next_attempt == pytest.approx(clock.now + expected)
        clock.now += expected


def test_secrets_of_the_app_do_not_reach_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret of the app")
    monkeypatch.setenv("HF_TOKEN", "for the data set")
    run_instead_of_a_peer(monkeypatch, "import os; raise ValueError('Error ' + ','.join(sorted(os.environ)))")
    control_files.write(tmp_path, order(tmp_path))
    supervisor = Supervisor(tmp_path)
    tick_until(supervisor, "waiting")
    assert "HF_TOKEN" in supervisor.state.reason
    assert not [name for name in SECRETS if name in supervisor.state.reason]


KILL_ITSELF = """
import json, os, signal, sys, time
status = {"state": "computing", "pid": os.getpid(), "started": time.time(), "time": time.time(), "micro_batch": 6}
open(sys.argv[1] + "/status.json", "w").write(json.dumps(status))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_an_out_of_memory_kill_the_peer_restarts_with_half_the_micro_batch(
    launcher: Launcher, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = run_instead_of_a_peer(monkeypatch, KILL_ITSELF)
    control_files.write(launcher.folder, order(tmp_path))
    supervisor = Supervisor(launcher.folder, clock=clock)
    tick_until(supervisor, "starting")
    tick_until(supervisor, "waiting")
    view = launcher.view()
    assert "out of memory" in view.reason and "micro-batch of 3 instead of 6" in view.hint
    clock.now += 10
    tick_until(supervisor, "starting")
    tick_until(supervisor, "waiting")
    assert limits == [0, 3]
    launcher.stop()
    supervisor.tick()


@pytest.mark.parametrize(("chosen", "limit", "given"), [(0, 0, []), (0, 3, [3]), (8, 0, [8]), (8, 3, [3]), (2, 3, [2])])
def test_a_micro_batch_is_given_to_the_peer_only_if_chosen_or_limited(
    tmp_path: Path, chosen: int, limit: int, given: list[int]
) -> None:
    line = peer_command(order(tmp_path, micro_batch=chosen), tmp_path, limit)
    assert [int(line[i + 1]) for i, word in enumerate(line) if word == "--micro-batch"] == given


def test_a_launcher_in_another_process_finds_the_peer_and_can_stop_it(launcher: Launcher, tmp_path: Path) -> None:
    launcher.start(order(tmp_path))
    other = Launcher(launcher.folder)
    assert other.view().active
    with pytest.raises(InvalidInput, match="runs already"):
        other.start(order(tmp_path))
    other.pause()
    until(lambda: launcher.view().phase == "paused", "paused")
    launcher.resume()
    until(lambda: launcher.view().phase != "paused", "resumed")
    other.stop()
    assert other.wait_until_off(60)


def test_it_ends_at_the_chosen_time(launcher: Launcher, tmp_path: Path, clock: Clock) -> None:
    control_files.write(launcher.folder, order(tmp_path, stop_at=clock.now + 5, desired="pause"))
    supervisor = Supervisor(launcher.folder, clock=clock)
    assert not supervisor.tick()
    clock.now += 5
    assert supervisor.tick()
    assert supervisor.state.reason == "the chosen time to stop has come"


def test_it_ends_with_the_process_that_it_belongs_to(launcher: Launcher, tmp_path: Path) -> None:
    companion = subprocess.Popen(["sleep", "600"])
    launcher.start(order(tmp_path, exit_with_pid=companion.pid))
    assert launcher.view().active
    companion.kill()
    companion.wait()
    assert launcher.wait_until_off(60)
    assert launcher.view().reason == "the program that it belongs to has ended"


def test_a_pause_ends_at_its_time(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    run_instead_of_a_peer(monkeypatch, "")
    control_files.write(tmp_path, order(tmp_path, desired="pause", pause_until=clock.now + 60))
    supervisor = Supervisor(tmp_path, clock=clock)
    tick_until(supervisor, "paused")
    clock.now += 60
    tick_until(supervisor, "starting")
    tick_until(supervisor, "waiting")


def test_a_time_that_has_passed_starts_nothing(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has passed already"):
        launcher.start(order(tmp_path, stop_at=time.time() - 1))
    assert launcher.view().phase == "off" and not launcher.folder.exists()


def test_what_is_not_running_cannot_be_paused(launcher: Launcher) -> None:
    with pytest.raises(InvalidInput, match="no peer is running"):
        launcher.pause()
    launcher.stop()


@pytest.mark.parametrize("hours", [0.0, -1.0, 1e6, float("nan")])
def test_a_pause_has_a_length(launcher: Launcher, hours: float) -> None:
    with pytest.raises(InvalidInput, match="more than 0"):
        launcher.pause(hours)


def test_a_pid_that_now_belongs_to_another_process_is_ignored(launcher: Launcher) -> None:
    mine = start_ticks(os.getpid())
    assert mine is not None
    control_files.write(
        launcher.folder, SupervisorState(pid=os.getpid(), start_ticks=mine - 1, phase="running", peer_pid=5)
    )
    view = launcher.view()
    assert view.phase == "off" and view.peer_pid == 0 and "supervisor was killed" in view.reason
    assert start_ticks(2**22 + 5) is None


def test_contributions_are_counted_once_over_processes_and_supervisors(launcher: Launcher) -> None:
    status = PeerStatus(pid=77, samples=10, steps_done=2, started=100.0, time=160.0, sent_bytes=3)
    launcher.folder.mkdir()
    write_status(launcher.folder, status)
    accumulated = Contribution(samples=5, steps=1, seconds=40.0)
    control_files.write(launcher.folder, SupervisorState(peer_pid=77, accumulated=accumulated))
    assert launcher.view().contribution == Contribution(samples=15, steps=3, sent_bytes=3, seconds=100.0)
    assert (
        Supervisor(launcher.folder).state.accumulated.samples == 15
    )  # its predecessor was killed before it had counted
    control_files.write(launcher.folder, SupervisorState(peer_pid=0, accumulated=launcher.view().contribution))
    assert launcher.view().contribution.samples == 15
    assert Supervisor(launcher.folder).state.accumulated.samples == 15


def test_a_folder_that_cannot_be_written_does_not_stop_the_supervisor(tmp_path: Path) -> None:
    control_files.write(tmp_path, order(tmp_path, desired="pause"))
    obstacle = tmp_path / "supervisor.json"
    obstacle.mkdir()
    supervisor = Supervisor(tmp_path)
    supervisor._set_phase("starting")
    assert not supervisor.tick() and supervisor.state.phase == "paused"
    obstacle.rmdir()
    assert not supervisor.tick()
    written = control_files.read(SupervisorState, tmp_path)
    assert written is not None and written.phase == "paused"


def test_a_peer_that_cannot_be_started_is_restarted_later(tmp_path: Path) -> None:
    control_files.write(tmp_path, order(tmp_path))
    (tmp_path / "log").mkdir()
    supervisor = Supervisor(tmp_path)
    assert not supervisor.tick()
    assert supervisor.state.phase == "waiting" and "could not be started" in supervisor.state.reason


def test_another_process_with_the_pid_of_an_old_peer_does_not_delay_the_start(tmp_path: Path) -> None:
    mine = start_ticks(os.getpid())
    assert mine is not None
    control_files.write(tmp_path, order(tmp_path))
    (tmp_path / "log").mkdir()  # nothing is really started
    for ticks, waits in ((mine, True), (mine - 1, False)):
        control_files.write(tmp_path, SupervisorState(peer_pid=os.getpid(), peer_start_ticks=ticks))
        supervisor = Supervisor(tmp_path)
        supervisor._set_phase("starting")
        supervisor.tick()
        assert (supervisor.state.phase == "starting") is waits


def test_incomplete_and_invalid_files_count_as_missing(launcher: Launcher) -> None:
    launcher.folder.mkdir()
    for text in ("", "{", "[]", '{"run": ""}', '{"phase": "odd"}'):
        (launcher.folder / "desired.json").write_text(text)
        (launcher.folder / "supervisor.json").write_text(text)
        assert launcher.view().phase == "off" and launcher.view().desired_state is None


def test_the_command_of_a_peer_passes_every_option_on(tmp_path: Path) -> None:
    import typer.main

    from ttt.__main__ import app

    chosen = {
        "run": "run.toml", "initial_peers": (ADDRESS, ADDRESS + "x"), "coordinator": ADDRESS[-46:],
        "name": "--odd name", "device": "cpu", "precision": "float32", "micro_batch": 3, "limit": 2.5,
        "host": "127.0.0.1", "port": 4001, "announce": ("/dns4/example.org/tcp/80",), "client": True, "relay": False,
        "until": 7, "seed": 11, "plain": True,
    }  # fmt: skip
    line = peer_command(DesiredState.model_validate(chosen), tmp_path)
    assert line[1:4] == ["-m", "ttt", "peer"]
    peer = typer.main.get_command(app).commands["peer"]  # type: ignore[attr-defined]
    given = peer.make_context("peer", line[4:]).params
    given = {"initial_peers": given.pop("initial_peer", None), "relay": not given.pop("no_relay", False), **given}
    for name, value in chosen.items():
        assert tuple(given[name]) == value if isinstance(value, tuple) else given[name] == value, name
    only_auxiliary = {"auxiliary"}
    assert set(chosen) | only_auxiliary == set(JoinOptions.model_fields), "an option is not tested"
    assert "--auxiliary" in peer_command(order(tmp_path, auxiliary=True), tmp_path)


def test_a_desired_state_is_checked_like_the_options_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--coordinator must be a peer id"):
        DesiredState(run="run.toml", initial_peers=(ADDRESS,), coordinator="the organiser")
    with pytest.raises(InvalidInput, match="micro_batch must be a whole number from 0"):
        DesiredState(run="run.toml", initial_peers=(ADDRESS,), micro_batch=-1)


def test_the_end_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {i}\n\n" for i in range(10_000)))
    assert tail(tmp_path / "log", 2) == ["line 9998", "line 9999"]
    assert tail(tmp_path / "absent", 2) == []


def test_a_second_supervisor_of_a_folder_exits_at_once(launcher: Launcher, tmp_path: Path) -> None:
    launcher.start(order(tmp_path))
    first = control_files.read(SupervisorState, launcher.folder)
    line = [sys.executable, "-m", "ttt.swarm.process.supervisor", str(launcher.folder)]
    assert subprocess.run(line, timeout=60).returncode == 0
    second = control_files.read(SupervisorState, launcher.folder)
    assert first is not None and second is not None and first.pid == second.pid
    os.kill(first.pid, signal.SIGTERM)
    assert launcher.wait_until_off(60)
    assert launcher.view().reason == "stopped by the system (SIGTERM)"
