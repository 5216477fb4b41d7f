"""Runs a whole swarm on this machine: a coordinator, three peers of different speeds, and the app to watch them.

    make swarm                                    or: python -m examples.swarm --port 7860
    make swarm ARGS="--folder runs"               keeps the run, which is otherwise deleted at the end

The demo's transformer is trained from random weights on captioned scenes. Open the page: Dashboard shows the falling
loss and the participants; Contribute adds this machine as a fourth peer. Kill one peer (its pid is printed), and the
others continue. Ctrl-C stops everything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ttt.swarm.config.run_config import RunSettings
from ttt.swarm.config.run_file import write_run_file
from ttt.swarm.process.launcher import Launcher
from ttt.swarm.process.lifecycle import die_with_parent
from ttt.swarm.process.status import PeerStatus, read_status

ROOT = Path(__file__).resolve().parents[1]
PEERS = {"fast": 4.0, "steady": 2.0, "slow": 1.0}
"""Name -> limit in samples per second, so that speeds differ on every machine."""
ADDRESS_SECONDS, STOP_SECONDS = 180.0, 60.0


def settings(port: int) -> RunSettings:
    """Settings with short steps, as all peers are on one machine."""
    return RunSettings.model_validate(
        {
            "run": {"name": "demo-swarm", "title": "A swarm on one machine"},
            "model": {"bundle": "demo"},
            "data": {"source": "scenes"},
            "optimizer": {"name": "lamb8bit", "learning_rate": 5e-3, "warmup_steps": 10, "total_steps": 2000,
                          "bias_correction": True},
            "batch": {"global_batch": 64},
            "averaging": {"matchmaking_time": 2.0, "request_timeout": 1.0, "chunk_timeout": 10.0,
                          "averaging_timeout": 25.0, "progress_lifetime": 15.0},
            "network": {"host": "127.0.0.1", "port": port},
            "checkpoints": {"every_seconds": 60.0},
            "metrics": {"every_seconds": 3.0},
        }
    )  # fmt: skip


class Swarm:
    """The processes of the swarm, each of which ends with this one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder / "demo-swarm", folder / "demo-swarm" / "run.toml"
        self.launcher = Launcher(self.folder / "volunteer")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, log: bool = True) -> None:
        parent, folder = os.getpid(), self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("wb") as file:
            output = file if log else None
            self.processes[name] = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True, preexec_fn=lambda: die_with_parent(parent),
            )  # fmt: skip

    def start_command(self, name: str, command: str, *options: str) -> None:
        folder = str(self.folder / name)
        self.start(name, "-m", "ttt", command, "--run", str(self.run), "--folder", folder, *options)

    def status(self, name: str) -> PeerStatus:
        return read_status(self.folder / name) or PeerStatus()

    def address(self) -> str:
        """Wait until the coordinator has started the run; return its address."""
        deadline = time.monotonic() + ADDRESS_SECONDS
        while self.status("coordinator").state != "watching":
            if self.processes["coordinator"].poll() is not None or time.monotonic() > deadline:
                raise SystemExit((self.folder / "coordinator" / "log").read_text(errors="replace"))
            time.sleep(0.2)
        return self.status("coordinator").addresses[0]

    def stop(self) -> None:
        """Let every process leave in order; kill those that take too long."""
        with contextlib.suppress(Exception):
            self.launcher.stop()
        for process in self.processes.values():
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.launcher.wait_until_off(STOP_SECONDS)


@contextlib.contextmanager
def run_folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder.absolute()
        return
    temporary = tempfile.mkdtemp(prefix="ttt-swarm-")
    try:
        yield Path(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def watch(swarm: Swarm) -> None:
    """Print a line at every step of the swarm and whenever a process has ended; return when the app has ended."""
    shown, running = -1, {"coordinator", *PEERS}
    while swarm.processes["app"].poll() is None:
        status = swarm.status("coordinator")
        for name in sorted(running):
            if swarm.processes[name].poll() is not None:
                running.remove(name)
                print(f"{name} has ended; its log: {swarm.folder / name / 'log'}", flush=True)
        if status.step != shown:
            shown = status.step
            each = ", ".join(f"{name} {swarm.status(name).samples}" for name in PEERS)
            losses = [loss for name in PEERS if (loss := swarm.status(name).loss) is not None]
            loss = f"loss {sum(losses) / len(losses):.3f}, " if losses else ""
            print(f"step {status.step}: {loss}{status.peers} peers; samples: {each}", flush=True)
        time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a whole swarm on this machine.")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where to keep the run; default: a folder that is deleted at the end"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with run_folder(arguments.folder) as folder:
        swarm = Swarm(folder)
        try:
            write_run_file(swarm.run, settings(free_port()), overwrite=True)
            print("The coordinator starts the run ...", flush=True)
            swarm.start_command("coordinator", "coordinator")
            address = swarm.address()
            swarm.start(
                "app", "app.py", "--port", str(arguments.port), "--runs", str(folder), "--run", str(swarm.run),
                "--initial-peer", address, "--peer-folder", str(swarm.launcher.folder),
                "--peer-ends-with", str(os.getpid()), log=False,
            )  # fmt: skip
            for name, limit in PEERS.items():
                swarm.start_command(name, "peer", "--initial-peer", address, "--host", "127.0.0.1", "--name", name,
                             "--micro-batch", "2", "--limit", str(limit))  # fmt: skip
                print(
                    f"peer {name}: pid {swarm.processes[name].pid}; to stop it: kill {swarm.processes[name].pid}",
                    flush=True,
                )
            watch(swarm)
        except KeyboardInterrupt:
            print("Stopping ...", flush=True)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            swarm.stop()


if __name__ == "__main__":
    main()
