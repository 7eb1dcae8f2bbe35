"""Downloads from a real server on this machine that breaks off, redirects, lies and changes its files."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddlex_feat import hub
from paddlex_feat.errors import DownloadError

BODY = b"\x80" + bytes(range(256)) * 4000  # about a megabyte
HALF = len(BODY) // 2


class Server(http.server.ThreadingHTTPServer):
    """Serves BODY under any name, in the way that its attributes say."""

    breaks = 0  # how many answers end half-way
    etag = '"one"'
    ranges = True
    slow = False
    page = b""  # served instead of BODY
    log: list[tuple[str, str | None]]

    def handle_error(self, request: Any, address: Any) -> None:
        """A connection that was cut is what is tested."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.log.append((self.path, wanted))
        if self.path == "/absent":
            self.send_error(404)
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/weights.pdparams")
            self.end_headers()
            return
        body, first = self.server.page or BODY, 0
        if wanted and self.server.ranges and self.headers.get("If-Range") == self.server.etag:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        if self.server.slow:
            self.wfile.write(body[:1000])
            threading.Event().wait(1.5)
            first = 1000
        if self.server.breaks:
            self.server.breaks -= 1
            self.wfile.write(body[first : first + (len(body) - first) // 2])
            self.connection.close()
        else:
            self.wfile.write(body[first:])

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    own = Server(("127.0.0.1", 0), Handler)
    own.log = []
    threading.Thread(target=own.serve_forever, daemon=True).start()
    yield own
    own.shutdown()
    own.server_close()


def get(server: Server, name: str = "weights.pdparams", **options: Any) -> bytes:
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    return hub.fetch(url, "weights", "Give a file.", begins=b"\x80", **options).read_bytes()


def begin(server: Server, request: int) -> int:
    """Where a request asked the server to go on."""
    return int((server.log[request][1] or "bytes=0-").removeprefix("bytes=").rstrip("-"))


def leftovers(tmp_path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != ".lock")


def test_a_file_is_fetched_once_and_redirects_are_followed(server, tmp_path):
    assert get(server) == BODY and get(server) == BODY and len(server.log) == 1
    assert get(server, "moved") == BODY
    assert leftovers(tmp_path) == ["moved", "weights.pdparams"]


def test_a_download_that_breaks_off_goes_on_where_it_stood(server, tmp_path):
    server.breaks = 2
    assert get(server) == BODY
    assert server.log[0][1] is None and 0 < begin(server, 1) < HALF < begin(server, 2) < len(BODY)
    assert leftovers(tmp_path) == ["weights.pdparams"]


def test_a_later_run_goes_on_too(server, tmp_path, monkeypatch):
    server.breaks = 1
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="Give a file"):
        get(server)
    assert leftovers(tmp_path) == ["weights.pdparams.part", "weights.pdparams.part.version"]
    assert get(server) == BODY and 0 < begin(server, -1) < HALF


@pytest.mark.parametrize("change", [{"etag": '"two"'}, {"ranges": False}, {"etag": ""}])
def test_pieces_of_two_versions_are_never_joined(server, monkeypatch, change):
    """The file changed, or the server cannot continue one: it comes anew."""
    server.etag = change.get("etag", server.etag) if "etag" in change and not change["etag"] else server.etag
    server.breaks = 1
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    with pytest.raises(DownloadError):
        get(server)
    for name, value in change.items():
        setattr(server, name, value)
    assert get(server) == BODY


def test_what_is_no_weight_file_is_refused_and_not_kept(server, tmp_path):
    server.page = b"<html>Please log in to this network</html>"
    with pytest.raises(DownloadError, match="Please log in"):
        get(server)
    assert leftovers(tmp_path) == []
    server.page = b""
    assert get(server) == BODY


def test_a_checksum_in_the_address_is_checked(server, tmp_path):
    right = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(DownloadError, match=r"(?i)hash"):
        get(server, f"weights.pdparams#sha256={'0' * 64}")
    assert "weights.pdparams" not in leftovers(tmp_path)
    assert get(server, f"weights.pdparams#sha256={right}") == BODY


def test_a_server_that_always_breaks_off_or_has_nothing_is_an_error(server):
    with pytest.raises(DownloadError, match="404"):
        get(server, "absent")
    server.breaks = 99
    with pytest.raises(DownloadError):
        get(server)
    assert len(server.log) == 1 + hub.ATTEMPTS


def test_two_processes_that_want_one_file_get_it_once_and_whole(server, tmp_path):
    server.slow = True
    url = f"http://127.0.0.1:{server.server_port}/weights.pdparams"
    code = f"from paddlex_feat import hub; print(len(hub.fetch({url!r}, 'weights', 'x').read_bytes()))"
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [int(p.communicate(timeout=60)[0]) for p in both] == [len(BODY)] * 2
    assert len(server.log) == 1


def test_a_cached_file_is_checked_too(server):
    assert get(server) == BODY
    with pytest.raises(DownloadError, match=r"(?i)hash"):
        get(server, f"weights.pdparams#sha256={'0' * 64}")


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    import socket

    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(hub, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="Timeout"):
        hub.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", "weights", "Give a file.")
