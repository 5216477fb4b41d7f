"""Uploads of checkpoints, against a server that takes commits as the Hub does."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ttt.errors import InvalidInput
from ttt.swarm.coordinator.checkpoints import Checkpoint, Manifest
from ttt.swarm.coordinator.hub_upload import Uploader, upload


class TakesCommits(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    commits: list[str]
    status = 200

    def do_GET(self) -> None:
        self._answer({"name": "owner", "type": "user", "id": "1", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/repos/create"):
            self._answer({"url": "https://huggingface.co/owner/model", "id": "owner/model"})
        elif "/preupload/" in self.path:
            wanted = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]}
            )
        elif "/commit/" in self.path:
            self.commits.append(self.path)
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer({"commitUrl": "https://huggingface.co/owner/model/commit/abc", "commitOid": "abc"})
        else:
            self._answer({})

    def log_message(self, format: str, *args: object) -> None: ...

    def _answer(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[TakesCommits]]:
    handler = type("Handler", (TakesCommits,), {"files": {}, "commits": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield handler
        server.shutdown()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "step-00000007"
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "config.json").write_text('{"name": "seven"}')
    (folder / "state.json").write_text("{}")
    return Checkpoint(folder, Manifest(format=1, run="tiny", generation=0, step=7, time=1.0, files={}))


def later(checkpoint: Checkpoint) -> Checkpoint:
    path = checkpoint.path.with_name("step-00000008")
    shutil.copytree(checkpoint.path, path)
    return Checkpoint(path, checkpoint.manifest.model_copy(update={"step": 8}))


def test_the_bundle_lies_at_the_root_and_the_rest_beside_it(hub: type[TakesCommits], checkpoint: Checkpoint) -> None:
    reported: list[tuple[str, str]] = []
    uploader = Uploader("owner/model", 3600, lambda name, text: reported.append((name, text)))
    assert uploader.offer(checkpoint)
    uploader.wait(60)
    assert reported == [("step-00000007", "https://huggingface.co/owner/model/commit/abc")]
    assert hub.files == {"config.json": b'{"name": "seven"}', "training/state.json": b"{}"}
    assert len(hub.commits) == 1
    assert not uploader.offer(later(checkpoint)), "too early for another"
    uploader.finish(60)
    assert reported[1:] == [("step-00000008", "https://huggingface.co/owner/model/commit/abc")], (
        "the last one stays away"
    )
    uploader.finish(60)
    assert len(hub.commits) == 2, "it is there already"


def test_a_hub_that_fails_is_told_and_stops_nobody(hub: type[TakesCommits], checkpoint: Checkpoint) -> None:
    hub.status = 403
    reported: list[tuple[str, str]] = []
    uploader = Uploader("owner/model", 3600, lambda name, text: reported.append((name, text)))
    assert uploader.offer(checkpoint)
    uploader.wait(120)
    [(name, text)] = reported
    assert name == ""
    assert "upload to owner/model failed" in text
    hub.status = 200
    assert uploader.offer(later(checkpoint)), "a failure does not begin the interval"
    uploader.wait(60)
    assert reported[-1][0] == "step-00000008"


@pytest.mark.parametrize("repo", ["model", "owner/", "/model", "owner/model/more"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_trained(repo: str) -> None:
    with pytest.raises(InvalidInput, match="owner/name"):
        Uploader(repo, 3600, lambda name, text: None)


def test_without_a_repository_nothing_is_uploaded(checkpoint: Checkpoint) -> None:
    assert not Uploader("", 0, lambda name, text: None).offer(checkpoint)
    with pytest.raises(InvalidInput, match="owner/name"):
        upload(checkpoint.path, "model")
