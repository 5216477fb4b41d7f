"""Starts members of a swarm by forking a process that has imported torch and hivemind: saves each 5 s of CPU.

    process = start(command, log=..., environment=...)   # like subprocess.Popen, in a session of its own

The server runs as `python -m tests.support.warm_ttt`. It reads one JSON line per process on stdin, and writes a line
when a process starts or ends. It has no threads and computes nothing, so that its children are safe to fork. Unlike
those of `warm.py`, they have their own session, output and command line, and may have children.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class WarmProcess:
    """The part of subprocess.Popen that `LocalSwarm` needs, for a process that is a child of the server."""

    def __init__(self, pid: int, server: _Server) -> None:
        self.pid, self._server = pid, server

    def poll(self) -> int | None:
        return self._server.exit_codes.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (3600 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    def __init__(self) -> None:
        self.exit_codes: dict[int, int] = {}
        self._started: list[int] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_ttt"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        atexit.register(self._process.kill)
        threading.Thread(target=self._read, daemon=True, name="warm server").start()

    def start(self, request: dict[str, Any]) -> WarmProcess:
        """Start one process at a time: the server answers in the order of the requests."""
        with self._changed:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            assert self._changed.wait_for(lambda: self._started, timeout=120), "the warm server does not answer"
            return WarmProcess(self._started.pop(), self)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                if "code" in message:
                    self.exit_codes[message["pid"]] = message["code"]
                else:
                    self._started.append(message["pid"])
                self._changed.notify_all()


_servers: dict[int, _Server] = {}
"""Process id -> server: a forked test process must not use its parent's."""


def start(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> WarmProcess:
    """Run `[python, "-m", "ttt", ...]` or `[python, "script.py", ...]`; output is appended to `log`."""
    server = _servers.get(os.getpid()) or _servers.setdefault(os.getpid(), _Server())
    request = {"command": list(command), "log": str(log), "environment": dict(environment), "cwd": str(Path.cwd())}
    return server.start(request)


def _serve() -> dict[str, Any] | None:
    """Fork a child per request. Returns a request in the child, None in the server once stdin is closed."""
    waiting = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.05)
        if ready:
            data = os.read(0, 1 << 16)
            if not data:
                return None
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                if (pid := os.fork()) == 0:
                    return dict(json.loads(line))
                _write({"pid": pid})
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            _write({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _write(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _become(request: dict[str, Any]) -> None:
    """Turn this child into the process that the command would have started."""
    import random

    import numpy as np
    import torch

    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    # All children have inherited the same generators, and hivemind draws the ids of its nodes from them.
    random.seed()
    np.random.seed()
    torch.seed()
    command = request["command"]
    sys.orig_argv[:] = command  # a peer that rejoins after a roll-back executes it again
    if command[1] == "-m":
        sys.argv[:] = ["ttt", *command[3:]]
        runpy.run_module("ttt", run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = command[1:]
        runpy.run_path(command[1], run_name="__main__")


def _main() -> None:
    from ttt.swarm.process.lifecycle import check_machine, skip_compiler_import
    from ttt.swarm.process.reporter import quiet_hivemind

    check_machine()
    quiet_hivemind()
    skip_compiler_import()
    import typer  # noqa: F401

    import ttt.pipeline
    import ttt.swarm.coordinator.coordinator
    import ttt.swarm.peer.peer  # noqa: F401

    if (request := _serve()) is not None:
        _become(request)


if __name__ == "__main__":
    _main()
