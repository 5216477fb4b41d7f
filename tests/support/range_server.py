"""A server on 127.0.0.1 that serves a folder by ranges, and drops, refuses or delays as it is told."""

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
    """What it serves and how it misbehaves; may be changed while it runs."""

    folder: Path
    url: str = ""
    cut_after: int | None = None
    """Bytes of a body after which the connection is dropped, as often as `cuts` says."""
    cuts: int = 0
    refuse: int = 0
    """So many requests are answered with `status`."""
    status: int = 503
    gone: set[str] = field(default_factory=set)
    """Names that are answered with 404."""
    ranges: bool = True
    """False: as simple servers do, every answer is the whole file."""
    total: str = ""
    """What a Content-Range says instead of the file's size."""
    delay: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    headers_seen: list[str] = field(default_factory=list)
    sent: int = 0
    """Bytes of bodies."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, name: str) -> bool:
        """One of the `cuts` or `refuse` that are left."""
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
        state, name = self.server_state, unquote(urlsplit(self.path).path).lstrip("/")
        with state.lock:
            state.requests[name] += 1
            state.headers_seen.append(str(self.headers))
        time.sleep(state.delay)
        path = state.folder / name
        if state.take("refuse"):
            return self.answer(state.status)
        if name in state.gone or not path.is_file():
            return self.answer(404)
        size = path.stat().st_size
        start, end = self._asked(size) if state.ranges else (0, size)
        if start >= size and "Range" in self.headers and state.ranges:
            return self.answer(416)
        with path.open("rb") as file:
            file.seek(start)
            self._send(file.read(end - start), start, size)
        return None

    def _asked(self, size: int) -> tuple[int, int]:
        text = self.headers.get("Range")
        if not text:
            return 0, size
        first, _, last = text.removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1 if last else size, size)

    def _send(self, body: bytes, start: int, size: int) -> None:
        state = self.server_state
        partial = state.ranges and "Range" in self.headers
        self.send_response(206 if partial else 200)
        if partial:
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
