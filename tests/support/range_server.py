"""A server on 127.0.0.1 that serves a folder by ranges, and drops, refuses or delays responses as a test configures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.http import Handler, serve


@dataclass
class RangeServer:
    """What the server serves and how it misbehaves; may be changed while it runs."""

    folder: Path
    url: str = ""
    cut_after: int | None = None
    """Bytes of a body after which the connection is dropped, `cuts` times."""
    cuts: int = 0
    refuse: int = 0
    """Number of requests that are refused with `status` and `headers`."""
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    """Names that are answered with 404."""
    ranges: bool = True
    """False: every response is the whole file, as simple servers send it."""
    whole: int = 0
    """Number of range requests that are answered with status 200 and the whole file."""
    surplus: int = 0
    """Bytes that are sent beyond the range."""
    total: str = ""
    """Size of the file in Content-Range, if it is not to be the true one."""
    delay: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    headers_seen: list[str] = field(default_factory=list)
    sent: int = 0
    """Bytes of all bodies."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """True if one of the `cuts`, `refuse` or `whole` was left; uses it up."""
        with self.lock:
            left: int = getattr(self, name)
            setattr(self, name, max(left - 1, 0))
            return left > 0


@contextmanager
def serve_ranges(folder: Path, **settings: object) -> Iterator[RangeServer]:
    state = RangeServer(folder, **settings)  # type: ignore[arg-type]

    class Ranges(_Ranges):
        server_state = state

    with serve(Ranges) as state.url:
        yield state


class _Ranges(Handler):
    server_state: RangeServer

    def do_GET(self) -> None:
        state, name = self.server_state, self._name()
        with state.lock:
            state.requests[name] += 1
            state.headers_seen.append(str(self.headers))
        time.sleep(state.delay)
        path = state.folder / name
        if state.take("refuse"):
            return self.answer(state.status, **state.headers)
        if name in state.gone or not path.is_file():
            return self.answer(404)
        size = path.stat().st_size
        is_partial = state.ranges and "Range" in self.headers and not state.take("whole")
        start, end = self._range(size) if is_partial else (0, size)
        if is_partial and start >= size:
            return self.answer(416, Content_Range=f"bytes */{size}")
        with path.open("rb") as file:
            file.seek(start)
            self._send(file.read(end - start + state.surplus), start, size, is_partial)
        return None

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    def _range(self, size: int) -> tuple[int, int]:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1 if last else size, size)

    def _send(self, body: bytes, start: int, size: int, is_partial: bool) -> None:
        state = self.server_state
        self.send_response(206 if is_partial else 200)
        if is_partial:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{state.total or size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = state.cut_after is not None and len(body) > state.cut_after and state.take("cuts")
        body = body[: state.cut_after] if cut else body
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        with state.lock:
            state.sent += len(body)
        self.close_connection = self.close_connection or cut
