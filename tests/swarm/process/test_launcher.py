"""The launcher and its supervisor with real peers that cannot even begin: back-off, reasons, limits, one at a time."""

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
from ttt.swarm.process import control_files as files
from ttt.swarm.process.control_files import Contribution, DesiredState, SupervisorState
from ttt.swarm.process.launcher import Launcher, start_ticks, tail
from ttt.swarm.process.status import PeerStatus, write_status
from ttt.swarm.process.supervisor import SECRETS, Supervisor, command

ADDRESS = "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "peer")
    yield launcher
    launcher.stop()
    assert launcher.wait_until_off(60)


def order(folder: Path, **fields: object) -> DesiredState:
    """Of a run whose file is not there, so that the peer ends at once."""
    return DesiredState.model_validate({"run": str(folder / "absent.toml"), "initial_peers": [ADDRESS], **fields})


def until(true: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def test_a_peer_that_dies_is_tried_again_with_back_off_and_the_reason_is_told(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRETS[0], "a secret of the app")
    launcher.start(order(tmp_path))
    until(lambda: launcher.view().restarts >= 1, "the first failure")
    view = launcher.view()
    assert "absent.toml is not there" in view.reason
    with pytest.raises(InvalidInput, match="runs already"):
        launcher.start(order(tmp_path))
    until(lambda: launcher.view().restarts >= 2 and launcher.view().phase == "waiting", "the second failure")
    view = launcher.view()
    assert view.next_attempt is not None and view.next_attempt - time.time() > 2  # more than after the first
    assert any("absent.toml" in line for line in view.log)
    launcher.stop()
    assert launcher.wait_until_off(60)
    view = launcher.view()
    assert view.phase == "off" and view.reason == "stopped by its owner" and not view.active


def test_the_launcher_of_another_process_finds_it_and_may_stop_it(launcher: Launcher, tmp_path: Path) -> None:
    launcher.start(order(tmp_path))
    other = Launcher(launcher.folder)
    assert other.view().active
    with pytest.raises(InvalidInput, match="runs already"):
        other.start(order(tmp_path))
    other.pause()
    until(lambda: launcher.view().phase == "paused", "paused")
    launcher.resume()
    until(lambda: launcher.view().phase != "paused", "it goes on")
    other.stop()
    assert other.wait_until_off(60)


def test_it_ends_at_its_time_and_with_the_process_it_belongs_to(launcher: Launcher, tmp_path: Path) -> None:
    launcher.start(order(tmp_path, stop_at=time.time() + 5))
    assert launcher.wait_until_off(60)
    assert launcher.view().reason == "the time it was given is over"
    companion = subprocess.Popen(["sleep", "600"])
    launcher.start(order(tmp_path, exit_with_pid=companion.pid))
    assert launcher.view().active
    companion.kill()
    companion.wait()
    assert launcher.wait_until_off(60)
    assert launcher.view().reason == "the program it belonged to has ended"


def test_a_time_that_has_passed_starts_nothing(launcher: Launcher, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has passed already"):
        launcher.start(order(tmp_path, stop_at=time.time() - 1))
    assert launcher.view().phase == "off" and not launcher.folder.exists()


def test_what_is_not_running_cannot_be_paused(launcher: Launcher) -> None:
    with pytest.raises(InvalidInput, match="no peer runs here"):
        launcher.pause()
    launcher.stop()


@pytest.mark.parametrize("hours", [0.0, -1.0, 1e6, float("nan")])
def test_a_pause_has_a_length(launcher: Launcher, hours: float) -> None:
    with pytest.raises(InvalidInput, match="more than 0"):
        launcher.pause(hours)


def test_a_pid_of_another_process_is_not_taken_for_ours(launcher: Launcher) -> None:
    mine = start_ticks(os.getpid())
    assert mine is not None
    files.write(launcher.folder, SupervisorState(pid=os.getpid(), start_ticks=mine - 1, phase="running", peer_pid=5))
    view = launcher.view()
    assert view.phase == "off" and view.peer_pid == 0 and "supervisor was killed" in view.reason
    assert start_ticks(2**22 + 5) is None


def test_work_is_counted_once_over_processes_and_supervisors(launcher: Launcher) -> None:
    status = PeerStatus(pid=77, samples=10, steps_done=2, started=100.0, time=160.0, sent_bytes=3)
    launcher.folder.mkdir()
    write_status(launcher.folder, status)
    accumulated = Contribution(samples=5, steps=1, seconds=40.0)
    files.write(launcher.folder, SupervisorState(peer_pid=77, accumulated=accumulated))
    assert launcher.view().contribution == Contribution(samples=15, steps=3, sent_bytes=3, seconds=100.0)
    assert Supervisor(launcher.folder).now.accumulated.samples == 15  # its predecessor was killed before it had counted
    files.write(launcher.folder, SupervisorState(peer_pid=0, accumulated=launcher.view().contribution))
    assert launcher.view().contribution.samples == 15
    assert Supervisor(launcher.folder).now.accumulated.samples == 15


def test_a_folder_that_takes_nothing_ends_no_supervisor(tmp_path: Path) -> None:
    files.write(tmp_path, order(tmp_path, desired="pause"))
    obstacle = tmp_path / "supervisor.json"
    obstacle.mkdir()
    supervisor = Supervisor(tmp_path)
    supervisor._set_phase("starting")
    assert not supervisor._turn() and supervisor.now.phase == "paused"
    obstacle.rmdir()
    assert not supervisor._turn()
    told = files.read(SupervisorState, tmp_path)
    assert told is not None and told.phase == "paused"


def test_a_peer_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    files.write(tmp_path, order(tmp_path))
    (tmp_path / "log").mkdir()
    supervisor = Supervisor(tmp_path)
    assert not supervisor._turn()
    assert supervisor.now.phase == "waiting" and "could not be started" in supervisor.now.reason


def test_a_stranger_with_the_pid_of_a_peer_keeps_nobody_waiting(tmp_path: Path) -> None:
    mine = start_ticks(os.getpid())
    assert mine is not None
    files.write(tmp_path, order(tmp_path))
    (tmp_path / "log").mkdir()  # nothing is really started
    for its_birth, waits in ((mine, True), (mine - 1, False)):
        files.write(tmp_path, SupervisorState(peer_pid=os.getpid(), peer_start_ticks=its_birth))
        supervisor = Supervisor(tmp_path)
        supervisor._set_phase("starting")
        supervisor._turn()
        assert (supervisor.now.phase == "starting") is waits


def test_files_that_are_torn_or_odd_are_no_files(launcher: Launcher) -> None:
    launcher.folder.mkdir()
    for text in ("", "{", "[]", '{"run": ""}', '{"phase": "odd"}'):
        (launcher.folder / "desired.json").write_text(text)
        (launcher.folder / "supervisor.json").write_text(text)
        assert launcher.view().phase == "off" and launcher.view().desired_state is None


def test_the_command_of_a_peer_is_one_of_the_command_line(tmp_path: Path) -> None:
    import typer.main

    from ttt.__main__ import app

    line = command(order(tmp_path, client=True, name="--odd name"), tmp_path)
    assert line[1:4] == ["-m", "ttt", "peer"]
    peer = typer.main.get_command(app).commands["peer"]  # type: ignore[attr-defined]
    context = peer.make_context("peer", line[4:])
    assert context.params["client"] is True and context.params["name"] == "--odd name"
    assert context.params["initial_peer"] == [ADDRESS]


def test_the_end_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {i}\n\n" for i in range(10_000)))
    assert tail(tmp_path / "log", 2) == ["line 9998", "line 9999"]
    assert tail(tmp_path / "absent", 2) == []


def test_a_second_supervisor_of_a_folder_goes_at_once(launcher: Launcher, tmp_path: Path) -> None:
    launcher.start(order(tmp_path))
    first = files.read(SupervisorState, launcher.folder)
    line = [sys.executable, "-m", "ttt.swarm.process.supervisor", str(launcher.folder)]
    assert subprocess.run(line, timeout=60).returncode == 0
    second = files.read(SupervisorState, launcher.folder)
    assert first is not None and second is not None and first.pid == second.pid
    os.kill(first.pid, signal.SIGTERM)
    assert launcher.wait_until_off(60)
    assert launcher.view().reason == "asked to stop by the system"
