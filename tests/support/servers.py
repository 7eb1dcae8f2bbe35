"""A server on this machine that breaks off, redirects, stalls, lies and changes its files."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` under any name, in the way that its attributes say."""

    body = b""
    absent: tuple[str, ...] = ("/absent", "/absent.tif")  # ends of the names that it does not have
    breaks = 0  # how many answers end half-way
    etag = '"one"'
    ranges = True  # False: it always begins anew
    careless = False  # it answers a range without a look at If-Range
    piece = ""  # what Content-Range says, if not the truth
    busy: tuple[int, str] | None = None  # status and Retry-After of its next `refusals` answers
    refusals = 0
    slow = False
    stalls = False  # half of it comes, and then nothing
    log: list[tuple[str, str | None]]
    users: list[str | None]  # what each request said in Authorization

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, address: Any) -> None:
        """A connection that was cut is what is tested."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.log.append((self.path, wanted))
        self.server.users.append(self.headers.get("Authorization"))
        if self.path.endswith(self.server.absent):
            self.send_error(404)
            return
        if self.server.refusals:
            self.server.refusals -= 1
            status, after = self.server.busy or (503, "")
            self.send_response(status)
            if after:
                self.send_header("Retry-After", after)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved") or "/weights.pdparams")
            self.end_headers()
            return
        body, first = self.server.body, 0
        if wanted and self.server.ranges and (self.server.careless or self.headers.get("If-Range") == self.server.etag):
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        if first:
            self.send_header("Content-Range", self.server.piece or f"bytes {first}-{len(body) - 1}/{len(body)}")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        if self.server.slow:
            self.wfile.write(body[:1000])
            threading.Event().wait(1.5)
            first = 1000
        if self.server.breaks or self.server.stalls:
            self.wfile.write(body[first : first + (len(body) - first) // 2])
            if self.server.stalls:
                threading.Event().wait(1.5)
            self.server.breaks -= bool(self.server.breaks)
            self.connection.close()
        else:
            self.wfile.write(body[first:])

    def log_message(self, *_: Any) -> None:
        """Silence."""


@contextmanager
def serving(body: bytes) -> Iterator[Server]:
    """A running server."""
    own = Server(("127.0.0.1", 0), Handler)
    own.body, own.log, own.users = body, [], []
    threading.Thread(target=own.serve_forever, daemon=True).start()
    yield own
    own.shutdown()
    own.server_close()
