"""A server on 127.0.0.1 for as long as a test needs it, and a handler that keeps quiet. Knows nothing above HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def answer(self, status: int, **headers: object) -> None:
        """Nothing but a status and headers, whose names are written with _ for -."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(handler: type[Handler], address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """Its URL."""
    server = ThreadingHTTPServer(address, handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{address[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
