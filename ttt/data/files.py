"""Bytes of a shard, on disk or over HTTP, that survive a bad connection. Knows no Parquet and no data set.

A dropped answer is taken up at the byte where it stopped, so that any connection that delivers something gets there in
the end; only attempts that bring nothing at all are counted. (fsspec, which `datasets` streams through, throws such a
half away and begins the range again: a server that drops every answer after 100 KB never serves it.)
"""

from __future__ import annotations

import io
import os
import random
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ttt.errors import Cancelled

if TYPE_CHECKING:
    import httpx2

READ_BYTES = 1 << 20
GONE = {401, 403, 404, 410, 451}
"""Answers that no further attempt will change."""
LONGEST_WAIT = 30.0


class FileMissing(Exception):
    """A file that is not there, or that is not for us."""


class FileUnreachable(Exception):
    """All attempts failed."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a read that brings nothing is tried, and how long is waited between: doubling, with chance in it."""

    attempts: int = 8
    first_wait: float = 1.0
    timeout: float = 30.0
    """Seconds without a byte after which a connection counts as dropped."""

    def wait(self, failures: int) -> float:
        """Seconds after so many failures in a row; chance keeps a thousand peers from coming back at one moment."""
        return float(min(self.first_wait * 2 ** (failures - 1), LONGEST_WAIT)) * random.uniform(0.7, 1.3)


@dataclass
class HttpClient:
    """One HTTP client for all shards of a stream; `stop` ends its waits, `retried` hears of every failure."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stop: threading.Event = field(default_factory=threading.Event)
    retried: Callable[[str], None] = lambda why: None
    _client: httpx2.Client | None = None

    @property
    def client(self) -> httpx2.Client:
        import httpx2

        if self._client is None:
            headers = {"Accept-Encoding": "identity"}
            self._client = httpx2.Client(headers=headers, timeout=self.retry.timeout, follow_redirects=True)
        return self._client

    def authorize(self, token: str) -> None:
        """Show the Hub's token from now on; a redirect to another host does not get it."""
        self.client.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self.stop.set()
        if self._client is not None:
            self._client.close()

    def retrying(self, what: str, attempt: Callable[[], bool]) -> None:
        """Call `attempt` until it is True; False is progress, an error of the network is none."""
        import httpx2

        failures = 0
        while True:
            if self.stop.is_set():
                raise Cancelled("the stream was closed")
            try:
                if attempt():
                    return
                failures = 0
            except httpx2.HTTPStatusError as error:
                status, said = error.response.status_code, error.response.headers.get("Retry-After", "")
                if status in GONE:
                    raise FileMissing(f"{what} answers with status {status}") from None
                failures, why = failures + 1, f"status {status}"
                asked = float(said) if said.isascii() and said.isdigit() else 0.0
            except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
                if isinstance(error, httpx2.UnsupportedProtocol):
                    raise FileMissing(f"{what} is not an HTTP address") from None
                failures, why, asked = failures + 1, _told(error), 0.0
            if failures:
                if failures >= self.retry.attempts:
                    raise FileUnreachable(f"{what} could not be read in {failures} attempts ({why})")
                self.retried(f"{what}: {why}")
                self.stop.wait(max(self.retry.wait(failures), min(asked, LONGEST_WAIT)))

    def fetch(self, url: str, limit: int) -> bytes:
        """A small file, whole. ValueError where it is larger than `limit` bytes."""
        got = bytearray()

        def attempt() -> bool:
            got.clear()
            with self.client.stream("GET", url) as answer:
                answer.raise_for_status()
                for part in answer.iter_bytes():
                    got.extend(part)
                    if len(got) > limit:
                        raise ValueError(f"{url} is larger than {limit:,} bytes")
            return True

        self.retrying(url, attempt)
        return bytes(got)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


class HttpFile(io.RawIOBase):
    """A file behind HTTP, read by ranges; where the server knows no ranges, through a temporary file."""

    most_spooled = 4 << 30
    """Bytes of such a file: no shard of the published sets has a tenth of it."""

    def __init__(self, url: str, web: HttpClient) -> None:
        super().__init__()
        self.url, self.web, self.position = url, web, 0
        self._whole: IO[bytes] | None = None
        self.size = self._find_size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        end = self.size if size is None or size < 0 else min(self.position + size, self.size)
        start, self.position = self.position, max(end, self.position)
        if end <= start:
            return b""
        if self._whole is not None:
            self._whole.seek(start)
            return self._whole.read(end - start)
        return self._range(start, end)

    def readinto(self, buffer: Any) -> int:
        got = self.read(len(buffer))
        buffer[: len(got)] = got
        return len(got)

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()
        super().close()

    def _find_size(self) -> int:
        size = 0

        def attempt() -> bool:
            nonlocal size
            with self.web.client.stream("GET", self.url, headers={"Range": "bytes=0-0"}) as answer:
                if answer.status_code == 416:  # an empty file has no byte 0
                    return True
                answer.raise_for_status()
                size = self._told_size(answer) if answer.status_code == 206 else self._spool(answer)
                return True

        self.web.retrying(self.url, attempt)
        return size

    def _told_size(self, answer: httpx2.Response) -> int:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not (size.isascii() and size.isdigit()):
            raise FileMissing(f"{self.url} does not tell its size")
        return int(size)

    def _spool(self, answer: httpx2.Response) -> int:
        """No ranges: this one shard, and no other, is on the disk while it is read."""
        whole = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as we do
        try:
            for part in answer.iter_bytes(READ_BYTES):
                whole.write(part)
                if whole.tell() > self.most_spooled:
                    raise FileMissing(f"{self.url} is larger than {self.most_spooled:,} bytes, and knows no ranges")
        except BaseException:
            whole.close()
            raise
        self._whole = whole
        return whole.tell()

    def _range(self, start: int, end: int) -> bytes:
        import httpx2

        got = bytearray()

        def attempt() -> bool:
            before = len(got)
            asked = f"bytes={start + before}-{end - 1}"
            try:
                with self.web.client.stream("GET", self.url, headers={"Range": asked}) as answer:
                    answer.raise_for_status()
                    self._check_range(answer, start + before)
                    for part in answer.iter_raw():
                        got.extend(part)
                        if len(got) > end - start:
                            raise ValueError(f"{self.url} sends more than it was asked for")
            except (httpx2.TransportError, OSError) as error:
                if len(got) == before:
                    raise
                self.web.retried(f"{self.url}: {type(error).__name__}")
            if len(got) == before:
                raise ConnectionError("an empty answer")
            return len(got) == end - start

        self.web.retrying(self.url, attempt)
        return bytes(got)

    def _check_range(self, answer: httpx2.Response, start: int) -> None:
        """ValueError where the file is no longer the one that was opened."""
        said = answer.headers.get("Content-Range", "")
        if answer.status_code != 206 or not said.startswith(f"bytes {start}-") or not said.endswith(f"/{self.size}"):
            raise ValueError(f"{self.url} has changed while it was read")


def open_file(where: str, web: HttpClient) -> IO[bytes]:
    """A shard by its path or address. FileMissing, FileUnreachable."""
    if is_url(where):
        return HttpFile(where, web)  # type: ignore[return-value]
    try:
        return Path(where).open("rb")
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise FileMissing(f"{where} cannot be opened ({error.strerror})") from None


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))
