"""Commands of a run, as a terminal gives them, as far as they need no network."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

if sys.platform != "linux":
    pytest.skip("a peer needs Linux", allow_module_level=True)

from tests.swarm.peers import ID
from ttt.__main__ import app
from ttt.errors import InvalidInput
from ttt.swarm.config.options import PeerOptions
from ttt.swarm.config.run_file import new_settings, read_run_file, render
from ttt.swarm.history.export import Example
from ttt.swarm.history.schema import HISTORY_FILE
from ttt.swarm.history.types import Event
from ttt.swarm.history.writer import HistoryWriter

ADDRESS = f"/ip4/203.0.113.5/tcp/8080/p2p/{ID['ada']}"


class GivesRunFile(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(render(new_settings(f"version-{len(self.asked)}")).encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def host() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (GivesRunFile,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/run.toml", handler.asked  # type: ignore[attr-defined]
        server.shutdown()


def test_a_run_file_is_read_once_a_start(host: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = host
    line = ["peer", "--run", url, "--initial-peer", ADDRESS, "--folder", str(tmp_path), "--plain"]
    done = CliRunner().invoke(app, [*line, "--device", "no-device"])
    assert done.exit_code == 2 and "no-device" in done.output
    assert asked == ["/run.toml"]
    done = CliRunner().invoke(app, ["peer", "--run", url, "--initial-peer", ADDRESS, "--coordinator", "no id"])
    assert done.exit_code == 2 and "--coordinator must be a peer id" in done.output
    assert asked == ["/run.toml"], "options are checked before the run file is read"


def test_the_home_folder_is_found_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not expand --folder=~/x, and the web page none at all."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.toml").write_text(render(new_settings("cats")))
    line = ["peer", "--run", "~/run.toml", "--initial-peer", ADDRESS, "--folder=~/peer", "--plain"]
    done = CliRunner().invoke(app, [*line, "--device", "no-device"])
    assert done.exit_code == 2 and "no-device" in done.output
    assert (tmp_path / "peer" / "status.json").exists()


@pytest.mark.parametrize("host", ["::", "example.org", "127.0.0.1/tcp/1", "1.2.3"])
def test_a_host_that_cannot_be_listened_on_is_told(tmp_path: Path, host: str) -> None:
    run, folder = tmp_path / "run.toml", str(tmp_path / "folder")
    run.write_text(render(new_settings("cats")))
    line = ["--run", str(run), "--folder", folder, "--initial-peer", ADDRESS, "--host", host]
    for command in ("peer", "coordinator"):
        done = CliRunner().invoke(app, [command, *line])
        assert done.exit_code == 2, done.output
        assert "--host must be an IPv4 address, such as 0.0.0.0" in done.output and repr(host) in done.output
    PeerOptions(run="run.toml", initial_peers=(ADDRESS,), folder=tmp_path, host="::", client=True)


def test_a_run_is_named_as_asked_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "my run.toml"
    done = CliRunner().invoke(app, ["run", "new", str(file), "--name", "Ünïcode Name!!"])
    assert done.exit_code == 2 and "--name unicode-name" in done.output and not file.exists()
    done = CliRunner().invoke(app, ["run", "new", str(file)])
    assert done.exit_code == 0 and f"--run '{file}'" in done.output
    assert read_run_file(file).run.name == "my-run"


def test_a_history_is_exported_and_can_be_shown(tmp_path: Path) -> None:
    with HistoryWriter(tmp_path / HISTORY_FILE, "cats", title="Cats") as history:
        history.add_event(Event(1.0, "rollback", "", "to step 5"))
    line = ["run", "export", "--folder", str(tmp_path), "--out", str(tmp_path / "history.json")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    example = Example(tmp_path / "history.json")
    assert example.about().title == "Cats" and example.events()[0].text == "to step 5"
    example.close()
    done = CliRunner().invoke(app, [*line[:3], str(tmp_path / "nowhere")])
    assert done.exit_code == 2 and "does not exist yet" in done.output
    done = CliRunner().invoke(app, [*line[:-1], str(tmp_path)])
    assert done.exit_code == 2 and "cannot be written" in done.output


def test_whose_word_counts_can_be_said_apart_from_where_to_join(tmp_path: Path) -> None:
    other = ADDRESS.replace(ID["ada"], ID["bob"])
    options = PeerOptions(run="run.toml", initial_peers=(ADDRESS, other), folder=tmp_path)
    assert options.coordinators == [ID["ada"], ID["bob"]]
    for coordinator in (ID["eve"], ADDRESS.replace(ID["ada"], ID["eve"])):
        options = PeerOptions(run="run.toml", initial_peers=(other,), coordinator=coordinator, folder=tmp_path)
        assert options.coordinators == [ID["eve"]]
    with pytest.raises(InvalidInput, match="--coordinator must be a peer id"):
        PeerOptions(run="run.toml", initial_peers=(other,), coordinator="/p2p/", folder=tmp_path)
