"""Reads the bytes of a shard from the disk or over HTTP, and survives bad connections. Independent of Parquet.

A dropped response is resumed at the byte where it stopped, so that any connection that delivers something finishes in
the end; only attempts that bring nothing are counted. (fsspec, through which `datasets` streams, throws such a partial
response away and requests the range again: it never finishes if a server drops every response after 100 KB.)
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import IO, TYPE_CHECKING, Any

from ttt.errors import Cancelled
from ttt.text import error_summary, format_bytes

if TYPE_CHECKING:
    import httpx2

READ_BYTES = 1 << 20
GONE = {401, 403, 404, 410, 451}
"""Status codes that no further attempt will change."""
THROTTLED = {429, 503}
"""Status codes with which a server asks for a pause; its own estimate of the pause is then respected."""
MAX_WAIT = 30.0
"""Longest pause between two attempts, in seconds, unless the server asks for more."""
MAX_REQUESTED_WAIT = 900.0
"""Longest pause that a server may ask for. The Hub counts requests in windows of 5 minutes."""


class FileMissing(Exception):
    """The file does not exist, or may not be read by us."""


class FileUnreachable(Exception):
    """All attempts failed."""


@dataclass(frozen=True)
class RetryPolicy:
    """How many attempts that bring nothing are made, and the pauses between them: exponential back-off with jitter."""

    attempts: int = 8
    first_wait: float = 1.0
    timeout: float = 30.0
    """Seconds without a byte after which a connection counts as dropped."""

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row; jitter keeps a thousand peers from returning at once."""
        return float(min(self.first_wait * 2 ** (failures - 1), MAX_WAIT)) * random.uniform(0.7, 1.3)


@dataclass
class HttpClient:
    """One HTTP client for all shards of a stream. Setting `stop` ends its pauses; `on_retry` hears of every failure."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stop: threading.Event = field(default_factory=threading.Event)
    on_retry: Callable[[str], None] = lambda reason: None
    _client: httpx2.Client | None = None

    @property
    def client(self) -> httpx2.Client:
        import httpx2

        if self._client is None:
            headers = {"Accept-Encoding": "identity"}  # byte ranges of a compressed response are of no use
            self._client = httpx2.Client(headers=headers, timeout=self.retry.timeout, follow_redirects=True)
        return self._client

    def authorize(self, token: str) -> None:
        """Send the Hub's token from now on; a redirect to another host does not get it."""
        self.client.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self.stop.set()
        if self._client is not None:
            self._client.close()

    def retrying(self, what: str, attempt: Callable[[], bool]) -> None:
        """Call `attempt` until it returns True. False means progress; an error of the network counts as a failure.

        Raises FileMissing, FileUnreachable, or Cancelled once the client is closed.
        """
        import httpx2

        failures, throttled_seconds = 0, 0.0
        while True:
            if self.stop.is_set():
                raise Cancelled("the stream was closed")
            try:
                if attempt():
                    return
                failures = 0
                continue
            except httpx2.UnsupportedProtocol:
                raise FileMissing(f"{what} is not an HTTP address") from None
            except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:  # the Hub's errors are OSErrors
                response = getattr(error, "response", None)
                status = getattr(response, "status_code", None)
                if status in GONE:
                    raise FileMissing(f"{what}: the server answered with status {status}") from None
                failures, reason = failures + 1, f"status {status}" if status else error_summary(error)
                requested = requested_wait(response.headers) if response is not None and status in THROTTLED else 0.0
            # A server that answers 429 is reachable: its limit is waited out, however many attempts that takes.
            is_throttled = status == 429 and throttled_seconds < MAX_REQUESTED_WAIT
            if failures >= self.retry.attempts and not is_throttled:
                raise FileUnreachable(f"{what} could not be read in {failures} attempts ({reason})")
            self.on_retry(f"{what}: {reason}")
            wait = max(self.retry.wait(failures), requested)
            throttled_seconds += wait if status == 429 else 0.0
            self.stop.wait(wait)

    def fetch(self, url: str, limit: int) -> bytes:
        """A small file as a whole. Raises ValueError if it is larger than `limit` bytes."""
        content = bytearray()

        def attempt() -> bool:
            content.clear()
            with self.client.stream("GET", url) as response:
                response.raise_for_status()
                for part in response.iter_bytes():
                    content.extend(part)
                    if len(content) > limit:
                        raise ValueError(f"{url} is larger than {format_bytes(limit)}")
            return True

        self.retrying(url, attempt)
        return bytes(content)


def requested_wait(headers: Any) -> float:
    """Seconds that a server asks to wait, at most `MAX_REQUESTED_WAIT`; 0 if it does not.

    Understands Retry-After (seconds or a date) and RateLimit, with which the Hub announces the end of its window:
    `RateLimit: "resolvers";r=0;t=158` (draft-ietf-httpapi-ratelimit-headers).
    """
    waits = [0.0]
    retry_after = str(headers.get("Retry-After", "")).strip()
    if retry_after.isascii() and retry_after.isdigit():
        waits.append(float(retry_after))
    elif retry_after:
        with contextlib.suppress(ValueError, TypeError, OverflowError):  # neither seconds nor a date
            waits.append(parsedate_to_datetime(retry_after).timestamp() - time())
    for policy in str(headers.get("RateLimit", "")).split(","):
        values = dict(re.findall(r";\s*([rt])\s*=\s*(\d{1,9})", policy, re.ASCII))
        if "t" in values and int(values.get("r", 0)) == 0:  # r: requests that are left until the window ends
            waits.append(float(values["t"]) + 1)  # t is rounded down
    return min(max(waits), MAX_REQUESTED_WAIT)


class HttpFile(io.RawIOBase):
    """A file behind HTTP, read by ranges; if the server does not support ranges, through a temporary file."""

    max_spooled = 4 << 30
    """Largest file, in bytes, that is spooled to the disk: no shard of the published sets has a tenth of it."""

    def __init__(self, url: str, http: HttpClient) -> None:
        super().__init__()
        self.url, self.http, self.position = url, http, 0
        self._spooled: IO[bytes] | None = None
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
        if self._spooled is not None:
            self._spooled.seek(start)
            return self._spooled.read(end - start)
        return self._range(start, end)

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if self._spooled is not None:
            self._spooled.close()
        super().close()

    def _find_size(self) -> int:
        size = 0

        def attempt() -> bool:
            nonlocal size
            with self.http.client.stream("GET", self.url, headers={"Range": "bytes=0-0"}) as response:
                if response.status_code == 416:  # an empty file has no byte 0; the header still carries the size
                    size = _total(response) or 0
                    return True
                response.raise_for_status()
                if response.status_code == 206:
                    total = _total(response)
                    size = self._size_without_range() if total is None else total
                else:
                    size = self._spool(response)
                return True

        self.http.retrying(self.url, attempt)
        return size

    def _size_without_range(self) -> int:
        """Size of a file whose ranges do not carry it (`Content-Range: bytes 0-0/*`)."""
        with self.http.client.stream("GET", self.url) as response:
            response.raise_for_status()
            size = response.headers.get("Content-Length", "")
            # Closing the response here stops the transfer of its body.
            return int(size) if size.isascii() and size.isdigit() else self._spool(response)

    def _spool(self, response: httpx2.Response) -> int:
        """Write the whole response to a temporary file, for the time in which this shard is read."""
        spooled = tempfile.TemporaryFile()  # noqa: SIM115 - closed together with this object
        try:
            for part in response.iter_bytes(READ_BYTES):
                spooled.write(part)
                if spooled.tell() > self.max_spooled:
                    limit = format_bytes(self.max_spooled)
                    raise FileMissing(f"{self.url} is larger than {limit}, and its server does not support ranges")
        except BaseException:
            spooled.close()
            raise
        self._spooled = spooled
        return spooled.tell()

    def _range(self, start: int, end: int) -> bytes:
        import httpx2

        content = bytearray()

        def attempt() -> bool:
            before = len(content)
            position = start + before
            try:
                with self.http.client.stream("GET", self.url, headers=_range_header(position, end)) as response:
                    response.raise_for_status()
                    surplus = position - self._first_byte(response, position)
                    for part in response.iter_raw():
                        content.extend(part[surplus:])
                        surplus = max(0, surplus - len(part))
                        if len(content) >= end - start:
                            del content[end - start :]  # a server may send more than was requested
                            break
            except (httpx2.TransportError, OSError) as error:
                if len(content) == before:
                    raise
                self.http.on_retry(f"{self.url}: {type(error).__name__}")
            if len(content) == before:
                raise ConnectionError("an empty response")
            return len(content) == end - start

        self.http.retrying(self.url, attempt)
        return bytes(content)

    def _first_byte(self, response: httpx2.Response, position: int) -> int:
        """Position in the file of the response's first byte; ValueError if the file is not the one that was opened.

        Some servers answer a range with the whole file (status 200), or start earlier than requested.
        """
        if response.status_code == 206:
            first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""), re.ASCII)
            begins, size = int(first[1]) if first else position + 1, _total(response)
        else:
            length = response.headers.get("Content-Length", "")
            begins, size = 0, int(length) if length.isascii() and length.isdigit() else None
        if begins > position or size not in (self.size, None):
            raise ValueError(f"{self.url} has changed while it was read")
        return begins


def open_file(location: str, http: HttpClient) -> IO[bytes]:
    """Open a shard by its path or address. Raises FileMissing or FileUnreachable."""
    if is_url(location):
        return HttpFile(location, http)  # type: ignore[return-value]
    try:
        return Path(location).open("rb")
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise FileMissing(f"{location} cannot be opened ({error.strerror})") from None


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _range_header(start: int, end: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{end - 1}"}


def _total(response: httpx2.Response) -> int | None:
    """Size of the whole file, after the slash of a Content-Range; None if the server does not report it."""
    size = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if size.isascii() and size.isdigit() else None
