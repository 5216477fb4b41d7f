"""A server on 127.0.0.1 that answers as the Hub does, as far as `hf_hub_download` asks; it can also misbehave."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.http import Handler, serve

ID = "someone/tiny"
NOBODY = "http://127.0.0.1:9"
"""An address where no server answers."""


@dataclass
class Repo:
    """Files by commit; `refs` names the commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    reader: str | None = None
    """The token that may read a gated repository."""
    token: str | None = None
    """Only requests with this token see a private repository."""

    def commit(self, folder: Path | dict[str, bytes], ref: str = "main") -> str:
        """A new commit with the files of a folder."""
        files = folder if isinstance(folder, dict) else {p.name: p.read_bytes() for p in folder.iterdir()}
        digests = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
        sha = hashlib.sha1(repr(digests).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha


@dataclass
class FakeHub:
    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    """Old id -> new id, answered with a redirect."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    cut_after: dict[str, int] = field(default_factory=dict)
    """File name -> bytes after which the connection is dropped, as often as `cuts` says."""
    cuts: int = 0
    status: int | None = None
    """Answer everything with this status."""
    pause: float = 0.0
    """Seconds before each answer."""

    def repo(self, repo_id: str) -> Repo:
        return self.repos.setdefault(repo_id, Repo())

    def downloads(self, name: str) -> int:
        """How often the content of a file was asked for."""
        return sum(method == "GET" and path.endswith(f"/{name}") for method, path in self.requests)


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Answers(_Answers):
        state = hub

    with serve(Answers) as hub.url:
        yield hub


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub asks there: it reads HF_ENDPOINT once, at import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


class _Answers(Handler):
    state: FakeHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        time.sleep(hub.pause)
        if hub.status is not None:
            return self._error(hub.status, "", "")
        before, _, after = path.partition("/resolve/")
        repo_id, (revision, _, name) = before.strip("/"), after.partition("/")
        if repo_id in hub.moved:
            return self.answer(307, Location=f"/{hub.moved[repo_id]}/resolve/{after}")
        repo = hub.repos.get(repo_id)
        if repo is None or (repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            return self._error(401, "RepoNotFound", "Repository not found")
        given = self.headers.get("Authorization")
        if repo.gated and not (repo.reader and given == f"Bearer {repo.reader}"):
            status = 401 if repo.reader and given is None else 403
            return self._error(status, "GatedRepo", "Access to this model is restricted")
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name not in repo.commits[sha]:
            return self._error(404, "EntryNotFound", "Entry not found", sha)
        self._send_file(repo.commits[sha][name], name, sha, body)
        return None

    def _send_file(self, data: bytes, name: str, sha: str, body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not body:
            return
        cut = self.state.cut_after.get(name)
        if cut is not None and self.state.cuts > 0:
            self.state.cuts -= 1
            self.wfile.write(data[start : start + cut])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _error(self, status: int, code: str, message: str, sha: str | None = None) -> None:
        commit = {"X_Repo_Commit": sha} if sha else {}
        self.answer(status, X_Error_Code=code, X_Error_Message=message, **commit)
