"""The status and the records of a peer, and the checks of its machine before it starts."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ttt.errors import SwarmError
from ttt.swarm.process import lifecycle as processes
from ttt.swarm.process.reporter import Reporter, describe_round
from ttt.swarm.process.status import (
    PeerStatus,
    RoundRecord,
    append_record,
    read_rounds,
    read_status,
    write_status,
)


def record(**values: object) -> RoundRecord:
    base = {
        "kind": "gradients", "step": 3, "time": 1.0, "seconds": 0.5, "group_size": 4, "results_received": 1.0,
        "inputs_received": 1.0, "sent_bytes": 10, "received_bytes": 10,
    }  # fmt: skip
    return RoundRecord.model_validate({**base, **values})


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    status = PeerStatus(state="computing", run="cats", step=7, loss=2.5, pid=os.getpid(), time=time.time())
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status
    assert status.running
    assert not status.model_copy(update={"time": time.time() - 60}).running, "it hangs"
    assert not status.model_copy(update={"state": "stopped"}).running
    (tmp_path / "status.json").write_text('{"state": "flying"}')
    assert read_status(tmp_path) is None


def test_the_status_of_a_killed_process_does_not_count_as_running() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not PeerStatus(state="computing", pid=process.pid, time=time.time()).running


def test_rounds_are_counted_and_incomplete_ones_explained(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, run="cats")
    bad = [
        record(results_received=0.5),
        record(inputs_received=0.75, kind="state"),
        record(refused=["Qm: it holds NaN or infinity"]),
        record(failed="no group was found", group_size=1, results_received=0, inputs_received=0),
    ]
    reporter.record_rounds([record(), *bad])
    reporter.close("stopped", "done")
    status = read_status(tmp_path)
    assert status is not None
    assert (status.rounds, status.complete_rounds, status.state) == (5, 1, "stopped")
    assert [one.complete for one in read_rounds(tmp_path)] == [True, False, False, False, False]
    for problem, part in zip(status.problems, ["50%", "75%", "NaN", "matchmaking_time"], strict=True):
        assert part in problem
    assert "chunk_timeout" in describe_round(bad[0])


def test_half_a_line_of_a_killed_process_is_skipped(tmp_path: Path) -> None:
    append_record(tmp_path, record())
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"kind": "gra')
    assert len(read_rounds(tmp_path)) == 1


def test_a_status_with_long_texts_can_be_read(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path)
    for number in range(30):
        reporter.report_problem(f"{number} " + "é\n" * 5000)
    reporter.update(addresses=[f"/ip4/127.0.0.1/tcp/{port}" for port in range(100)])
    reporter.close("failed", "x" * 5000)
    status = read_status(tmp_path)
    assert status is not None
    assert (len(status.message), len(status.addresses), len(status.problems)) == (2000, 64, 20)
    assert status.problems[-1].startswith("29 ")


def test_records_stay_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttt.swarm.process.status.MAX_RECORDS", 10_000)
    monkeypatch.setattr("ttt.swarm.process.status.KEPT_RECORDS", 5000)
    for step in range(200):
        append_record(tmp_path, record(step=step))
    kept = [one.step for one in read_rounds(tmp_path)]
    assert (tmp_path / "rounds.jsonl").stat().st_size <= 10_000
    assert 10 < len(kept) < 100 and kept == list(range(200 - len(kept), 200))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are Unix's")
def test_a_full_disk_does_not_stop_the_reporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.full_disk import full_disk

    reporter = Reporter(tmp_path)
    with (tmp_path / "log").open("wb", buffering=0) as log:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(log, write_through=True))
        with full_disk():
            reporter.set_state("computing", "on a full disk")
            reporter.record_rounds([record(results_received=0.5)])
            append_record(tmp_path, record())
        monkeypatch.undo()
    reporter.close("stopped")
    status = read_status(tmp_path)
    assert status is not None and status.rounds == 1 and "50%" in status.problems[0]
    assert read_rounds(tmp_path) == []


def test_too_little_shared_memory_is_reported_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    need = processes.shared_memory_needed(10**6, trains=True, eight_bit=True)
    assert need == (8 + 6) * 10**6 + (32 << 20), "averaged parameters and gradients, and one state on its way"
    assert processes.shared_memory_needed(10**6, trains=False, eight_bit=False) == (4 + 12) * 10**6 + (32 << 20)
    processes.check_shared_memory(1000)
    with pytest.raises(SwarmError, match=r"needs 953674316 MiB .*--shm-size=953674380m"):
        processes.check_shared_memory(10**15)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.4.0" if name == "numpy" else "1.1.12")
    with pytest.raises(SwarmError, match=r"numpy<2\.4"):
        processes.check_machine()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SwarmError, match="needs Linux"):
        processes.check_machine()


def test_a_child_dies_with_its_parent() -> None:
    code = (
        "import os, sys, time\n"
        "from ttt.swarm.process.lifecycle import init_child_process\n"
        "parent = os.getpid()\n"
        "if (child := os.fork()) == 0:\n"
        "    init_child_process(parent)\n"
        "    os.write(1, b'ready\\n')\n"  # one write a line, or the two mix
        "    time.sleep(60)\n"
        "os.write(1, f'{child}\\n'.encode())\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = {parent.stdout.readline().strip() for _ in range(2)} - {"ready"}
    child = int(lines.pop())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/status").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.05)
