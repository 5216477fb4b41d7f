"""A real swarm whose peers exchange factors of their gradients: broken numbers of one peer, then a roll-back."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.swarm import (
    AGREE,
    FAST,
    LocalSwarm,
    complete_rounds,
    parameter_gaps,
    sick_peer,
    tiny_run,
    wait_for_steps,
)
from ttt.swarm.coordinator.checkpoints import CheckpointStore
from ttt.swarm.process.status import read_steps

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="hivemind is for Linux"),
    pytest.mark.timeout(600),
]
PACE = ("--micro-batch", "4", "--limit", "24")


def test_broken_parameters_are_restored_and_peers_follow_a_roll_back(tmp_path: Path) -> None:
    """With gradients as factors of rank 4, as in no other test."""
    averaging = {**FAST, "power_sgd_rank": 4}
    settings = tiny_run(tmp_path, averaging=averaging, checkpoints={"every_seconds": 3.0, "keep_last": 50})
    with LocalSwarm(tmp_path / "swarm", settings, wrap=sick_peer("parameters")) as swarm:
        coordinator = swarm.coordinator(seconds=180)
        healthy, ill = swarm.peer("healthy", *PACE, "--seed", "1"), swarm.peer("sick", *PACE, "--seed", "2")
        ill.wait(lambda status: status.restored == 1, 240)
        assert any("restored from the swarm" in problem for problem in ill.status.problems)
        since = max(ill.status.step, wait_for_steps(healthy, ill, steps=5))
        assert healthy.status.restored == 0
        gaps = parameter_gaps(healthy, ill, since=since)
        assert len(gaps) >= 2 and max(gaps.values()) < AGREE
        assert len(complete_rounds(ill, 2)) > 2

        assert coordinator.stop() == 0
        kept = CheckpointStore(coordinator.folder, "tiny", settings.checkpoints).all()
        to = kept[1].step
        assert to < healthy.status.step - 2
        line = ["run", "rollback", "--run", str(swarm.run_file), "--folder", str(coordinator.folder), "--to", str(to)]
        subprocess.run([sys.executable, "-m", "ttt", *line], check=True, timeout=300)
        began = time.time()
        again = swarm.coordinator(seconds=180)
        for peer in (healthy, ill):
            peer.wait(lambda status, peer=peer: "rolled back" in peer.log and status.state == "computing", 240)
        again.wait(lambda status: status.peers == 2 and status.step >= to + 2, 120)  # it counts those of its own run
        records = [record for peer in (healthy, ill) for record in read_steps(peer.folder) if record.time > began]
        assert min(record.step for record in records) == to + 1
