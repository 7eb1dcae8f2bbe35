"""Downloads from a real server on this machine that breaks off, redirects, lies and changes its files."""

from __future__ import annotations

import errno
import hashlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.runs import ROOT
from support.servers import Server, serving

from paddlex_feat.errors import DownloadError, WeightsError
from paddlex_feat.fileio import os_locks
from paddlex_feat.hub import download
from paddlex_feat.hub.cache import download_lock
from paddlex_feat.hub.fetch import PICKLE, fetch_url, fetch_weights, is_absent
from paddlex_feat.hub.urls import ENV_MIRROR, MAX_NAME_BYTES, OFFICIAL, apply_mirror, file_name

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
    return fetch_url(url, "weights", "Give a file.", magic=PICKLE, **options).read_bytes()


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
            assert fetch_weights(address, "Give a file.").read_bytes() == body
        else:
            with pytest.raises(DownloadError, match="not a file of the expected kind"):
                fetch_weights(address, "Give a file.")


def test_both_forms_of_torch_save_are_known_by_their_beginning(server):
    for body in (b"PK\x03\x04" + bytes(99), b"\x80\x02\x8a\n" + bytes(99)):
        server.body = body
        assert fetch_weights(f"{server.url}/{body[0]}.pth", "Give a file.").read_bytes() == body
    server.body = b"<!DOCTYPE html>"
    with pytest.raises(DownloadError, match="not a file of the expected kind"):
        fetch_weights(f"{server.url}/page.pth", "Give a file.")


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
    assert len(server.log) == download.ATTEMPTS
    server.busy = (403, "1")
    with pytest.raises(DownloadError, match="403"):
        get(server)
    assert len(server.log) == download.ATTEMPTS + 1


def test_a_later_run_goes_on_too(server, tmp_path, monkeypatch):
    server.breaks = 1
    monkeypatch.setattr(download, "ATTEMPTS", 1)
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
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(DownloadError):
        get(server)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    for name, value in after.items():
        setattr(server, name, value)
    server.body = b"\x80" + b"B" * (len(BODY) - 1)
    assert get(server) == server.body


def test_attempts_that_bring_something_new_are_not_counted(server, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 1000)
    server.breaks = download.ATTEMPTS + 4
    assert get(server) == BODY and len(server.log) == download.ATTEMPTS + 5


def test_a_file_beyond_the_bound_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(DownloadError, match="longer than 1000 bytes"):
        get(server, max_bytes=1000)
    assert leftovers(tmp_path) == []
    assert get(server, max_bytes=len(BODY)) == BODY


def test_a_mirrors_password_is_not_shown(server, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setenv(ENV_MIRROR, server.url.replace("//", "//joe:s3cret@"))
    with pytest.raises(DownloadError) as caught:
        fetch_url(f"{OFFICIAL}/absent", "weights", "Give a file.")
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
    assert 1 + download.ATTEMPTS <= len(server.log) < 2 + 2 * download.ATTEMPTS  # the first of them bring something


def test_two_processes_that_want_one_file_get_it_once_and_whole(server, tmp_path):
    server.slow = True
    url = f"{server.url}/weights.pdparams"
    code = f"from paddlex_feat.hub.fetch import fetch_url; print(len(fetch_url({url!r}, 'weights', 'x').read_bytes()))"
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
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="Timeout"):
        fetch_url(f"http://127.0.0.1:{silent.getsockname()[1]}/x", "weights", "Give a file.")


@contextmanager
def dripping(answer: bytes) -> Iterator[str]:
    """The address of a server that sends `answer`, and then a byte now and then."""
    ended = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(answer)
            while not ended.wait(0.05):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=(listening,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        finally:
            ended.set()
            thread.join()


DRIPS = b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n"


def test_a_server_that_drips_is_given_up(tmp_path, monkeypatch, caplog):
    """Each byte comes in time, the file never would."""
    caplog.set_level("INFO")
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download, "SLOWEST_SECONDS", 1)
    with dripping(DRIPS) as url, pytest.raises(DownloadError, match="less than 65536 bytes came in 1 s") as caught:
        fetch_url(url, "weights", "Give a file.")
    assert caught.value.code == "download-failed" and "trying again" not in caplog.text


def test_a_download_is_cancelled_while_it_drips_and_while_it_waits(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    server.busy, server.refusals = (503, "60"), 99
    with dripping(DRIPS) as slow:
        for url in (slow, f"{server.url}/busy"):
            cancel = threading.Event()
            threading.Timer(0.3, cancel.set).start()
            started = time.monotonic()
            with pytest.raises(DownloadError, match="Cancelled"):
                fetch_url(url, "weights", "Give a file.", cancel=cancel)
            assert time.monotonic() - started < 10  # not the 60 s of the server, nor the 120 of a slow one
    assert len(server.log) == 1


def test_ctrl_c_ends_a_download_from_a_silent_server(tmp_path):
    code = f"from paddlex_feat.hub.fetch import fetch_url; fetch_url(%r, {str(tmp_path)!r}, 'x')"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        child = subprocess.Popen([sys.executable, "-c", code % url], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        connection, _ = silent.accept()
        with connection:
            connection.recv(4096)
            child.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in child.communicate(timeout=20)[1]


@pytest.mark.parametrize(
    ("name", "ends"), [("n" * 300 + ".pdparams", "n.pdparams"), ("é" * 150 + ".x", "é.x"), ("a." + "b" * 250, "b")]
)
def test_a_name_too_long_for_a_file_is_cut(server, tmp_path, name, ends):
    assert get(server, name) == BODY and get(server, name) == BODY and len(server.log) == 1
    (kept,) = leftovers(tmp_path)
    assert kept.endswith(ends) and 230 < len(kept.encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://a/b/c:d*e.pdparams?download=true", "c_d_e.pdparams"),
        ("http://a/weights. ..", "weights_"),
        ("http://a/..", "file"),
        ("http://a", "file"),
    ],
)
def test_names_in_the_cache_are_names_on_every_system(url, name):
    assert file_name(url) == name


def test_waiting_for_another_download_is_said(tmp_path, caplog):
    caplog.set_level("INFO")

    def second() -> None:
        with download_lock(tmp_path):
            pass

    waiting = threading.Thread(target=second)
    with download_lock(tmp_path):
        assert "waiting" not in caplog.text
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and "waiting for it" in caplog.text
    waiting.join()


def test_a_mirror_stands_for_paddles_server_and_shares_its_copies(server, tmp_path, monkeypatch):
    address = f"{OFFICIAL}/paddlex/x.pdparams"
    monkeypatch.setenv(ENV_MIRROR, f"{server.url}/under/")
    found = fetch_url(address, "weights", "Give a file.")
    assert found.read_bytes() == BODY and server.log == [("/under/paddlex/x.pdparams", None)]
    monkeypatch.delenv(ENV_MIRROR)
    assert fetch_url(address, "weights", "Give a file.") == found
    monkeypatch.setenv(ENV_MIRROR, "mirror.local")
    assert fetch_url(address, "weights", "Give a file.") == found
    with pytest.raises(DownloadError, match=r"'mirror\.local', which is not an address"):
        fetch_url(f"{OFFICIAL}/y", "weights", "Give a file.")
    assert apply_mirror(f"{OFFICIAL}.example/x") == f"{OFFICIAL}.example/x"  # another server


def test_an_error_says_whether_the_server_has_no_such_file(server, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    for name, breaks, absent in (("absent", 0, True), ("x", 1, False)):
        server.breaks = breaks
        with pytest.raises(DownloadError) as caught:
            get(server, name)
        assert is_absent(caught.value) is absent


def test_a_damaged_weight_file_says_how_to_be_rid_of_it(server):
    """A server can declare a truncated file complete."""
    pytest.importorskip("paddle")
    from paddlex_feat.models import weights

    get(server)
    found = fetch_url(f"{server.url}/weights.pdparams", "weights", "Give a file.")
    with pytest.raises(WeightsError, match="delete it, and it is downloaded again") as caught:
        weights.read(found)
    assert caught.value.where == str(found)


def test_where_files_cannot_be_locked_a_download_still_comes(server, monkeypatch, caplog):
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(os_locks.fcntl, "flock", refuse)
    assert get(server) == BODY and "does not support locks" in caplog.text
