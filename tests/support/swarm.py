"""Real swarms on this machine: coordinator and peers as separate processes, all killed at the end of the block."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.tiny import write_tiny_bundle
from ttt.swarm.averaging.training_state import fingerprint_distance
from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.config.run_file import write_run_file
from ttt.swarm.process.status import STATUS_FILE, PeerStatus, RoundRecord, read_rounds, read_status, read_steps

ROOT = Path(__file__).resolve().parents[2]
FAST = {
    "matchmaking_time": 4.0, "request_timeout": 1.5, "chunk_timeout": 8.0, "averaging_timeout": 20.0,
    "progress_lifetime": 10.0, "state_every": 1,
}  # fmt: skip
"""Averaging on one machine; on the Internet everything takes ten times as long."""
AGREE = 0.02
"""Greatest distance of two peers' parameters, as a share of their norm: 16-bit averaging leaves 0.0003, a step on the
peer's own gradients (which is allowed) 0.002."""


def tiny_run(folder: Path, **sections: dict[str, Any]) -> RunSettings:
    """A run of the tests' tiny model; `sections` change its settings."""
    bundle = folder / "tiny"
    if not bundle.exists():
        write_tiny_bundle(bundle)
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny"},
        "model": {"bundle": str(bundle)},
        "optimizer": {"name": "lamb", "learning_rate": 0.01, "warmup_steps": 3, "total_steps": 10_000,
                      "bias_correction": True},
        "batch": {"global_batch": 64},
        "averaging": FAST,
        "network": {"host": "127.0.0.1", "port": free_port()},
        "checkpoints": {"every_seconds": 5.0},
        "metrics": {"every_seconds": 2.0},
        "sample_images": {"candidates": 0},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return RunSettings.model_validate(values)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass
class Member:
    """One process of a swarm, in a session of its own."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def status(self) -> PeerStatus:
        return read_status(self.folder) or PeerStatus()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def wait(self, condition: Callable[[PeerStatus], bool], seconds: float = 120.0) -> PeerStatus:
        """Return the first status that fulfils the condition; fail with the log if none does in time."""
        deadline = time.monotonic() + seconds
        while not condition(status := self.status):
            dead = self.process.poll() is not None
            assert not dead or condition(self.status), f"{self.folder.name} has ended\n{self.log[-3000:]}"
            assert time.monotonic() < deadline, (
                f"{self.folder.name} is still {status.state!r} ({status.message}) at step {status.step} after "
                f"{seconds} s\n{self.log[-3000:]}"
            )
            time.sleep(0.1)
        return status

    def stop(self, seconds: float = 40.0) -> int:
        """Ask for a clean end; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """`kill -9` of the main process alone."""
        self.process.kill()
        self.process.wait()


@dataclass
class LocalSwarm:
    """with LocalSwarm(folder, settings) as swarm: swarm.coordinator(); swarm.peer("a", "--micro-batch", "4")"""

    folder: Path
    settings: RunSettings
    members: dict[str, Member] = field(default_factory=dict)
    wrap: Callable[[str, list[str]], list[str]] = lambda name, command: command
    """Turns a member's command into the one that is run, such as one in a network of its own."""

    def __enter__(self) -> LocalSwarm:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_run_file(self.run_file, self.settings, overwrite=True)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(member.process.pid, signal.SIGKILL)
            member.process.wait()

    @property
    def run_file(self) -> Path:
        return self.folder / "run.toml"

    def coordinator(self, *options: str, seconds: float = 180.0) -> Member:
        """Start it, and wait until it has founded or resumed the run."""
        member = self.start("coordinator", "coordinator", *options)
        member.wait(lambda status: status.state == "watching", seconds)
        return member

    def peer(self, name: str, *options: str, at: Member | None = None) -> Member:
        """Start a peer. at: the member at whose address it joins; None: the coordinator."""
        address = (at or self.members["coordinator"]).status.addresses[0]
        return self.start(name, "peer", "--host", "127.0.0.1", "--name", name, "--initial-peer", address, *options)

    def start(self, name: str, command: str, *options: str) -> Member:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / STATUS_FILE).unlink(missing_ok=True)  # of a killed predecessor
        line = [sys.executable, "-m", "ttt", command, "--run", str(self.run_file), "--folder", str(folder), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        line = self.wrap(name, line)
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.members[name] = Member(folder, process)
        return self.members[name]


def processes_of(session: int) -> list[int]:
    """Living processes of a session, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(int(stat.parent.name))
    return found


def sick_peer(kind: str) -> Callable[[str, list[str]], list[str]]:
    """Makes the gradients or the parameters of the member called "sick" NaN after a while (`wrap` of LocalSwarm)."""
    script = ROOT / "tests" / "e2e" / "sick_peer.py"

    def wrap(name: str, command: list[str]) -> list[str]:
        return [command[0], str(script), kind, *command[3:]] if name == "sick" else command

    return wrap


def parameter_gaps(*members: Member, since: int = 0) -> dict[int, float]:
    """Step -> largest distance of any member's parameters from the first one's, after that step."""
    first, *others = ({record.step: record for record in read_steps(member.folder)} for member in members)
    shared = sorted(step for step in first if step > since and all(step in other for other in others))
    return {
        step: max(
            fingerprint_distance(first[step].fingerprint, other[step].fingerprint, first[step].norm)
            for other in others
        )
        for step in shared
    }  # fmt: skip


def complete_rounds(member: Member, size: int) -> list[RoundRecord]:
    """Rounds of averaging gradients in groups of this size in which nothing was missing or refused."""
    return [r for r in read_rounds(member.folder) if r.complete and r.group_size == size and r.kind == "gradients"]


def wait_for_steps(*members: Member, steps: int) -> int:
    """Wait until each member has made so many steps more than any had; return the step at which that began."""
    began = max(member.wait(lambda status: status.steps_done > 0, 180).step for member in members)
    for member in members:
        member.wait(lambda status: status.step >= began + steps, 240)
    return began
