"""A quiet HTTP server on 127.0.0.1 that runs for as long as a test needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # a client that closes its connection early is part of the tests
            self.close_connection = True

    def answer(self, status: int, **headers: object) -> None:
        """Send a status and headers without a body; an underscore in the name of a header stands for a hyphen."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(handler: type[Handler], address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """Run the server while the context is open; yields its URL."""
    server = ThreadingHTTPServer(address, handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{address[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
