"""Servers, clients and browsers for the end-to-end tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)


@dataclass
class Server:
    url: str
    diary: Path
    process: subprocess.Popen
    log: Path

    def events(self, prompt: str) -> list[str]:
        """What the slow model did with this prompt."""
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [line.split(" ", 1)[0] for line in lines if line.split(" ", 1)[1] == prompt]


def wait_until(true: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what or true}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(folder: Path, command: list[str], *options: str, **variables: str) -> Server:
    """The app with these variables of the environment, answering; another port where somebody else was quicker."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("SPACE_ID", "TTT_BUNDLE", "TTT_MODEL", "TTT_RESULTS", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
        environment.pop(name, None)
    environment |= variables
    for _ in range(3):
        port, log = free_port(), folder / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *command, "--port", str(port), *options],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = Server(f"http://127.0.0.1:{port}/", folder / "diary", process, log)
        end = time.monotonic() + 240
        while process.poll() is None:
            if time.monotonic() > end:
                process.kill()
                pytest.fail(f"no answer within 240 s:\n{log.read_text()}")
            try:
                if httpx2.get(server.url, timeout=5).status_code == 200:
                    return server
            except httpx2.TransportError:
                time.sleep(0.1)
        if "Cannot find empty port" not in log.read_text():
            break
    return pytest.fail(f"the app ended:\n{log.read_text()}")


@contextmanager
def serve(folder: Path, command: list[str], *options: str, **variables: str) -> Iterator[Server]:
    server = start(folder, command, *options, **variables)
    try:
        yield server
        assert server.process.poll() is None, f"the app ended:\n{server.log.read_text()}"
    finally:
        server.process.terminate()
        try:
            server.process.wait(15)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real app with the drawn model; shared by all tests, which use prompts of their own."""
    folder = tmp_path_factory.mktemp("slow")
    command = [str(Path(__file__).parent / "slow_app.py"), str(folder / "diary")]
    with serve(folder, command, "--bundle", str(folder / "half-downloaded"), "--model", "demo") as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("NO BROWSER TESTS: chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: object) -> Iterator:
    fresh = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")  # type: ignore[attr-defined]
    fresh.set_default_timeout(40_000)
    yield fresh
    fresh.close()
