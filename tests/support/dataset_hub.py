"""A server on 127.0.0.1 that imitates the Hub for one data set, as far as `datasets` needs to find its files."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.http import Handler, serve
from tests.support.range_server import RangeServer, serve_ranges

_reserved: list[socket.socket] = []


def reserve() -> str:
    """Address for a server that is started later: the Hub's library reads it when it is imported."""
    _reserved.append(socket.create_server(("127.0.0.1", 0)))
    return f"http://127.0.0.1:{_reserved[0].getsockname()[1]}"


@dataclass
class DatasetHub:
    folder: Path
    repo_id: str
    token: str
    storage: RangeServer
    """Where downloads are redirected to: another host, which must not see the token."""
    commit: str = "a" * 40
    known: set[str] = field(default_factory=lambda: {"a" * 40, "b" * 40})
    leaked: list[str] = field(default_factory=list)

    @property
    def cuts(self) -> int:
        return self.storage.cuts


@contextmanager
def serve_dataset(folder: Path, repo_id: str, token: str) -> Iterator[DatasetHub]:
    with serve_ranges(folder, cut_after=400, cuts=10) as storage:
        hub = DatasetHub(folder, repo_id, token, storage)

        class Answers(_Answers):
            state = hub

        address = _reserved[0].getsockname()
        _reserved.pop().close()
        with serve(Answers, address):
            try:
                yield hub
            finally:
                hub.leaked += [text for text in storage.headers_seen if token in text]


class _Answers(Handler):
    state: DatasetHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        api = f"/api/datasets/{hub.repo_id}"
        if not path.startswith((api, f"/datasets/{hub.repo_id}/")):
            return self._error("RepoNotFound", 404 if "none" in path else 401)
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._error("RepoNotFound", 401)
        files = sorted(file for file in hub.folder.iterdir() if file.is_file())
        if path.startswith(f"{api}/tree/"):
            found = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            return self._json(found)
        if path.startswith(api):
            revision = path.removeprefix(api).removeprefix("/revision/")
            commit = revision if revision in hub.known else hub.commit
            info = {"id": hub.repo_id, "sha": commit, "private": True, "tags": [], "downloads": 0, "likes": 0}
            return self._json(info | {"siblings": [{"rfilename": f.name} for f in files]})
        return self._resolve(path.partition("/resolve/")[2].partition("/")[2])

    def _resolve(self, name: str) -> None:
        hub = self.state
        if not (hub.folder / name).is_file():
            return self._error("EntryNotFound", 404)
        elsewhere = f"{hub.storage.url}/{name}".replace("127.0.0.1", "localhost")
        return self.answer(302, Location=elsewhere, X_Repo_Commit=hub.commit)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, code: str, status: int) -> None:
        self.answer(status, X_Error_Code=code, X_Repo_Commit=self.state.commit)
