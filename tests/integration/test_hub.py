"""Downloads from a real server on this machine that breaks off, redirects, lies and changes its files."""

from __future__ import annotations

import errno
import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.servers import Server, serving

from paddlex_feat.errors import DownloadError, WeightsError
from paddlex_feat.hub import download, fetch

BODY = b"\x80" + bytes(range(256)) * 4000  # about a megabyte
HALF = len(BODY) // 2


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serving(BODY) as own:
        yield own


def get(server: Server, name: str = "weights.pdparams", **options: Any) -> bytes:
    url = f"{server.url}/{name}"
    return fetch.fetch(url, "weights", "Give a file.", begins=fetch.PICKLE, **options).read_bytes()


def begin(server: Server, request: int) -> int:
    """Where a request asked the server to go on."""
    return int((server.log[request][1] or "bytes=0-").removeprefix("bytes=").rstrip("-"))


def leftovers(tmp_path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != ".lock")


def test_a_file_is_fetched_once_and_redirects_are_followed(server, tmp_path):
    assert get(server) == BODY and get(server) == BODY and len(server.log) == 1
    assert get(server, "moved") == BODY
    assert leftovers(tmp_path) == ["moved", "weights.pdparams"]


def test_safetensors_are_known_by_their_beginning(server):
    """The page of a network's login would else be kept under the name of a weight file."""
    for body, taken in (
        ((40).to_bytes(8, "little") + b"{" + bytes(99), True),
        (b"<!DOCTYPE html>", False),
        (BODY, False),
    ):
        server.body = body
        address = f"{server.url}/{len(body)}.safetensors?download=true"
        if taken:
            assert fetch.weight_file(address, "Give a file.").read_bytes() == body
        else:
            with pytest.raises(DownloadError, match="no file of the expected kind"):
                fetch.weight_file(address, "Give a file.")


def test_a_download_that_breaks_off_goes_on_where_it_stood(server, tmp_path):
    server.breaks = 2
    assert get(server) == BODY
    assert server.log[0][1] is None and 0 < begin(server, 1) <= HALF < begin(server, 2) < len(BODY)
    assert leftovers(tmp_path) == ["weights.pdparams"]


@pytest.mark.parametrize(
    ("status", "after", "waits"),
    [
        (503, "7", [7, 7]),
        (429, "86400", [60, 60]),
        (502, "Wed, 21 Oct 2015 07:28:00 GMT", [0.5, 1]),
        (504, "", [0.5, 1]),
    ],
)
def test_a_busy_server_is_asked_again_when_it_says_but_within_bounds(server, monkeypatch, status, after, waits):
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    server.busy, server.refusals = (status, after), 2
    assert get(server) == BODY and waited == waits


def test_a_server_that_stays_busy_is_given_up_and_one_that_refuses_is_not_asked_again(server):
    server.busy, server.refusals = (503, ""), 99
    with pytest.raises(DownloadError, match="503"):
        get(server)
    assert len(server.log) == fetch.ATTEMPTS
    server.busy = (403, "1")
    with pytest.raises(DownloadError, match="403"):
        get(server)
    assert len(server.log) == fetch.ATTEMPTS + 1


def test_a_later_run_goes_on_too(server, tmp_path, monkeypatch):
    server.breaks = 1
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="Give a file"):
        get(server)
    assert leftovers(tmp_path) == ["weights.pdparams.part", "weights.pdparams.part.version"]
    assert get(server) == BODY and 0 < begin(server, -1) <= HALF


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"etag": '"two"'}),
        ({}, {"etag": '"two"', "careless": True}),
        ({}, {"ranges": False}),
        ({"etag": ""}, {}),
        ({}, {"piece": "bytes 0-9/10"}),
    ],
)
def test_pieces_of_two_versions_are_never_joined(server, monkeypatch, before, after):
    """The file changed, or the server cannot continue one, or sends another piece: it comes anew."""
    for name, value in before.items():
        setattr(server, name, value)
    server.breaks = 1
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    with pytest.raises(DownloadError):
        get(server)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    for name, value in after.items():
        setattr(server, name, value)
    server.body = b"\x80" + b"B" * (len(BODY) - 1)
    assert get(server) == server.body


def test_attempts_that_bring_something_new_are_not_counted(server, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 1000)
    server.breaks = fetch.ATTEMPTS + 4
    assert get(server) == BODY and len(server.log) == fetch.ATTEMPTS + 5


def test_a_file_beyond_the_bound_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(DownloadError, match="longer than 1000 bytes"):
        get(server, most=1000)
    assert leftovers(tmp_path) == []
    assert get(server, most=len(BODY)) == BODY


def test_a_mirrors_password_is_not_shown(server, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    monkeypatch.setenv(fetch.MIRROR, server.url.replace("//", "//joe:s3cret@"))
    with pytest.raises(DownloadError) as caught:
        fetch.fetch(f"{fetch.OFFICIAL}/absent", "weights", "Give a file.")
    assert "s3cret" not in f"{caught.value}{caught.value.where}{caplog.text}"


def test_what_is_no_weight_file_is_refused_and_not_kept(server, tmp_path):
    server.body = b"<html>Please log in to this network</html>"
    with pytest.raises(DownloadError, match="Please log in"):
        get(server)
    assert leftovers(tmp_path) == []
    server.body = BODY
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
    assert 1 + fetch.ATTEMPTS <= len(server.log) < 2 + 2 * fetch.ATTEMPTS  # the first of them bring something


def test_two_processes_that_want_one_file_get_it_once_and_whole(server, tmp_path):
    server.slow = True
    url = f"{server.url}/weights.pdparams"
    code = f"from paddlex_feat.hub.fetch import fetch; print(len(fetch({url!r}, 'weights', 'x').read_bytes()))"
    root = Path(__file__).resolve().parent.parent.parent
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [int(p.communicate(timeout=60)[0]) for p in both] == [len(BODY)] * 2
    assert len(server.log) == 1


def test_a_cached_file_is_checked_too(server):
    assert get(server) == BODY
    with pytest.raises(DownloadError, match=r"(?i)hash"):
        get(server, f"weights.pdparams#sha256={'0' * 64}")


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="Timeout"):
        fetch.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", "weights", "Give a file.")


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n"])
def test_a_server_that_drips_is_given_up_and_its_connection_with_it(tmp_path, monkeypatch, caplog, begun):
    """Each byte comes in time, the file never would: neither in the head of the answer nor in its body."""
    caplog.set_level("INFO")
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download, "SLOWEST_SECONDS", 1)
    ended = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(begun)
            while not ended.wait(0.05):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        started = time.monotonic()
        try:
            with pytest.raises(DownloadError, match="less than 65536 bytes came in 1 s"):
                fetch.fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/x", "weights", "Give a file.")
            assert time.monotonic() - started < 10
            for left in (t for t in threading.enumerate() if t.name == "download"):
                left.join(5)
                assert not left.is_alive()
            assert "trying again" not in caplog.text
        finally:
            ended.set()
            thread.join()


def test_a_thread_that_is_left_touches_nothing_of_the_download_that_goes_on(tmp_path, monkeypatch):
    """Its connection could not be ended, and answers while the next download is under way."""
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "SLOWEST_SECONDS", 2)
    monkeypatch.setattr(download.Resuming, "_disconnect", lambda _: None)
    asked: list[bytes] = []

    def accept(listening: socket.socket) -> socket.socket:
        connection, _ = listening.accept()
        asked.append(connection.recv(4096).partition(b"bytes=")[2].partition(b"-")[0])
        return connection

    def send(connection: socket.socket, at: int, end: int) -> None:
        piece = f"Content-Range: bytes {at}-{len(BODY) - 1}/{len(BODY)}\r\n"
        head = f"HTTP/1.1 {206 if at else 200} OK\r\nETag: one\r\n{piece}Content-Length: {len(BODY) - at}\r\n\r\n"
        connection.sendall(head.encode() + BODY[at:end])

    def answer(listening: socket.socket) -> None:
        with accept(listening) as first:
            send(first, 0, HALF)
        with accept(listening) as left, accept(listening) as third:
            send(third, int(asked[-1]), HALF + 2**17)
            threading.Event().wait(0.3)
            left.sendall(b"HTTP/1.1 416 Range Not Satisfiable\r\n\r\n")
            threading.Event().wait(0.3)
        with accept(listening) as last:
            send(last, int(asked[-1] or 0), len(BODY))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        monkeypatch.setattr(fetch, "ATTEMPTS", 1)
        for message in ("failed", "less than 65536 bytes"):
            with pytest.raises(DownloadError, match=message):
                fetch.fetch(url, "weights", "Give a file.")
        assert any(t.name == "download" for t in threading.enumerate())
        monkeypatch.setattr(fetch, "ATTEMPTS", 2)
        assert fetch.fetch(url, "weights", "Give a file.").read_bytes() == BODY
        thread.join()
    assert leftovers(tmp_path) == ["x"] and 0 < int(asked[1]) == int(asked[2]) < int(asked[3])


@pytest.mark.parametrize(
    ("name", "ends"), [("n" * 300 + ".pdparams", "n.pdparams"), ("é" * 150 + ".x", "é.x"), ("a." + "b" * 250, "b")]
)
def test_a_name_too_long_for_a_file_is_cut(server, tmp_path, name, ends):
    assert get(server, name) == BODY and get(server, name) == BODY and len(server.log) == 1
    (kept,) = leftovers(tmp_path)
    assert kept.endswith(ends) and 230 < len(kept.encode()) <= fetch.LONGEST_NAME


def test_waiting_for_another_download_is_said(tmp_path, caplog):
    caplog.set_level("INFO")

    def second() -> None:
        with fetch.alone(tmp_path):
            pass

    waiting = threading.Thread(target=second)
    with fetch.alone(tmp_path):
        assert "waiting" not in caplog.text
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and "waiting for it" in caplog.text
    waiting.join()


def test_a_mirror_stands_for_paddles_server_and_shares_its_copies(server, tmp_path, monkeypatch):
    address = f"{fetch.OFFICIAL}/paddlex/x.pdparams"
    monkeypatch.setenv(fetch.MIRROR, f"{server.url}/under/")
    found = fetch.fetch(address, "weights", "Give a file.")
    assert found.read_bytes() == BODY and server.log == [("/under/paddlex/x.pdparams", None)]
    monkeypatch.delenv(fetch.MIRROR)
    assert fetch.fetch(address, "weights", "Give a file.") == found
    monkeypatch.setenv(fetch.MIRROR, "mirror.local")
    assert fetch.fetch(address, "weights", "Give a file.") == found
    with pytest.raises(DownloadError, match=r"'mirror\.local', which is no address"):
        fetch.fetch(f"{fetch.OFFICIAL}/y", "weights", "Give a file.")
    assert fetch.source(f"{fetch.OFFICIAL}.example/x") == f"{fetch.OFFICIAL}.example/x"  # another server


def test_an_error_says_whether_the_server_has_no_such_file(server, monkeypatch):
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    for name, breaks, absent in (("absent", 0, True), ("x", 1, False)):
        server.breaks = breaks
        with pytest.raises(DownloadError) as caught:
            get(server, name)
        assert fetch.absent(caught.value) is absent


def test_a_damaged_weight_file_says_how_to_be_rid_of_it(server):
    """A server can declare a truncated file complete."""
    pytest.importorskip("paddle")
    from paddlex_feat.models import weights

    get(server)
    found = fetch.fetch(f"{server.url}/weights.pdparams", "weights", "Give a file.")
    with pytest.raises(WeightsError, match="delete it, and it is fetched again") as caught:
        weights.read(found)
    assert caught.value.where == str(found)


def test_where_files_cannot_be_locked_a_download_still_comes(server, monkeypatch, caplog):
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fetch.fcntl, "flock", refuse)
    assert get(server) == BODY and "knows no locks" in caplog.text
