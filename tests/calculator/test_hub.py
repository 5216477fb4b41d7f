"""Downloads from the Hub, against a fake server that can also misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from calculator import CalculatorError
from calculator.__main__ import main
from calculator.hf_config import from_hub
from calculator.hub import LARGEST_FILE, fetch
from tests.support.hub_server import FakeHub, serve_hub

CONFIG = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}
TEXT = json.dumps(CONFIG).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def test_a_hub_id_is_a_model(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repo("somebody/tiny").commit({"config.json": TEXT, "model.safetensors": b"x" * 100})
    assert from_hub("somebody/tiny").hidden == 64
    assert hub.requests == [("GET", "/somebody/tiny/resolve/main/config.json")]
    assert main(["--hub", "somebody/tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"]["layers"] == 2


def test_a_gated_model_needs_a_token_with_access(hub: FakeHub) -> None:
    repo = hub.repo("lab/gated")
    repo.commit({"config.json": TEXT})
    repo.gated, repo.reader = True, "hf_member"
    with pytest.raises(CalculatorError, match="lab/gated is gated: enter a token"):
        from_hub("lab/gated")
    with pytest.raises(CalculatorError, match="this token has no access"):
        from_hub("lab/gated", token="hf_other")
    assert from_hub("lab/gated", token="hf_member").heads == 4


def test_a_rename_is_followed_and_the_token_is_sent_only_to_the_same_host(hub: FakeHub) -> None:
    repo = hub.repo("lab/new")
    repo.commit({"config.json": TEXT})
    repo.token = "hf_owner"
    hub.moved["lab/old"] = "lab/new"
    assert from_hub("lab/old", token="hf_owner").layers == 2
    with pytest.raises(CalculatorError, match="gated, private or does not exist"):
        from_hub("lab/old")
    with serve_hub() as elsewhere:
        hub.moved["lab/away"] = f"/{elsewhere.url.removeprefix('http://')}/lab/new"  # "//host:port/..."
        elsewhere.repos["lab/new"] = repo
        with pytest.raises(CalculatorError, match="token has no access to it"):
            from_hub("lab/away", token="hf_owner")
        assert elsewhere.requests


def test_missing_models_and_files(hub: FakeHub) -> None:
    hub.repo("lab/empty").commit({"README.md": b"hello"})
    with pytest.raises(CalculatorError, match="lab/empty has no config.json"):
        from_hub("lab/empty")
    with pytest.raises(CalculatorError, match="private or does not exist"):
        from_hub("lab/nothing")
    with pytest.raises(CalculatorError, match="does not exist, or this token"):
        from_hub("lab/nothing", token="hf_x")


@pytest.mark.parametrize(("status", "message"), [(404, "has no model"), (429, "wait a minute"), (503, "answered 503")])
def test_error_responses(hub: FakeHub, status: int, message: str) -> None:
    hub.status = status
    with pytest.raises(CalculatorError, match=message):
        from_hub("lab/x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * (LARGEST_FILE + 1), "at most 1,000,000 bytes, this one has 1,000,001"),
        (b"<html>sign in</html>", "not the JSON"),
        (b"\xff\xfe\x00", "not the JSON"),
        (b"", "not the JSON"),
        (b'{"model_type": "mamba"}', "not supported"),
    ],
)
def test_content_that_is_not_a_config(hub: FakeHub, content: bytes, message: str) -> None:
    hub.repo("lab/odd").commit({"config.json": content})
    with pytest.raises(CalculatorError, match=message):
        from_hub("lab/odd")


def test_a_dropped_connection(hub: FakeHub) -> None:
    hub.repo("lab/tiny").commit({"config.json": TEXT})
    hub.cut_after, hub.cuts = {"config.json": 10}, 1
    with pytest.raises(CalculatorError, match="cannot reach the Hub|not the JSON"):
        from_hub("lab/tiny")


def test_a_silent_server_times_out(hub: FakeHub) -> None:
    hub.pause = 3.0
    with pytest.raises(CalculatorError, match="cannot reach the Hub.*timed out.*paste"):
        fetch("lab/tiny", timeout=0.2)


def test_a_server_that_sends_single_bytes_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = time.monotonic()
    try:
        with pytest.raises(CalculatorError, match="takes too long"):
            fetch("lab/tiny", timeout=0.5)
        assert time.monotonic() - started < 10  # it would never end
    finally:
        stop.set()
        listener.close()
        thread.join()


def test_a_port_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(CalculatorError, match="cannot reach the Hub.*paste the config.json"):
        from_hub("lab/x")


@pytest.mark.parametrize("token", ["hf_a b", "hf_\n", "hf_é"])
def test_tokens_with_characters_that_cannot_be_sent(token: str) -> None:
    with pytest.raises(CalculatorError, match="hf_"):
        fetch("lab/x", token=token)
