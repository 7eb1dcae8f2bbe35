"""One download that goes on where an earlier one broke off, and can be given up at any time."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)
TIMEOUT_SECONDS = 30  # without a byte
CHUNK = 2**16  # what a break loses at most
SLOWEST_SECONDS = 120  # for a chunk; a server that drips bytes is given up, what came of the others is kept
_LOOK_SECONDS = 0.2  # between two looks at whether a download is still wanted, and moves
LONGEST_WAIT = 60  # seconds, whatever a busy server asks for
_BUSY = {429, 502, 503, 504}  # answers of a server that may have the file later


def _passing(error: Exception) -> bool:
    """May the same request succeed a little later?"""
    import requests

    if isinstance(error, requests.HTTPError):
        return getattr(error.response, "status_code", None) in _BUSY
    return isinstance(error, (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError))


def _wait(error: Exception, attempt: int) -> float:
    """Seconds until the next attempt: what the server asks for, within bounds, else more each time."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    # It may be a date too, which another clock has written.
    return float(min(int(asked[:9]), LONGEST_WAIT)) if re.fullmatch(r"[0-9]+", asked) else 2 ** (attempt - 1) / 2


class _NotWanted(Exception):
    """Nobody waits for this download any more."""


class TooLong(ValueError):
    """A file of more bytes than are taken."""


def _watched(work: Callable[[], None], look: Callable[[], None]) -> None:
    """Do `work` in a thread, and leave that to itself once `look`, which is called all the while, raises.

    Nothing ends from outside the wait for a server of names, or for a connection. The thread keeps no program
    from ending. Raises what `work` or `look` does.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    while not wait([done], _LOOK_SECONDS).done:
        look()
    done.result()


class Resuming:
    """A pooch downloader that keeps what it has got in `part`, with the server's mark of its version beside it.

    Args:
        part: the file, of which a later download goes on.
        shown: the address without user and password, which is requested and which messages name.
        begins, most, ended: as for `hub.fetch`.
        attempts: how many in a row may bring nothing new, less than CHUNK bytes.
    """

    def __init__(self, part: Path, shown: str, begins: bytes, most: int, ended: threading.Event | None, attempts: int):
        self._shown = shown
        self._most_attempts = attempts
        self._most = most
        self._ended = ended
        self._part = part
        self._mark = part.with_name(f"{part.name}.version")
        self._begins = begins
        self._left = False  # to itself: the thread that fetches must not touch a file any more
        self._sockets: list[Any] = []  # of its connections
        self._moved = time.monotonic()  # when the last chunk came, or the last attempt began

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        log.info("Downloading %s", self._shown)
        with self._part.open("ab") as stream:
            try:
                _watched(lambda: self._attempts(url, stream), self._look)
            except TooLong:
                self._forget()
                raise
            finally:
                self._left = True
                self._disconnect()
            self._check()
            self._part.replace(output_file)
            self._mark.unlink(missing_ok=True)

    def _attempts(self, url: str, stream: IO[bytes]) -> None:
        import requests

        most, attempt = stream.seek(0, os.SEEK_END), 0  # bytes that there were at once, attempts since
        while True:
            self._moved = time.monotonic()
            attempt += 1
            try:
                self._continue(url, stream)
                return
            except requests.RequestException as error:
                self._require_wanted()
                size = stream.seek(0, os.SEEK_END)
                if size >= most + CHUNK:
                    most, attempt = size, 1
                if attempt >= self._most_attempts or not _passing(error):
                    raise
                seconds = _wait(error, attempt)
                log.info("The download broke off (%s); trying again in %g s.", type(error).__name__, seconds)
                self._ended.wait(seconds) if self._ended else time.sleep(seconds)
            self._require_wanted()

    def _require_wanted(self) -> None:
        # The interpreter joins the threads of every pool before it runs what atexit knows: only this says so in time.
        closing = getattr(threading, "_SHUTTING_DOWN", False)
        if self._left or closing or (self._ended is not None and self._ended.is_set()):
            raise _NotWanted

    def _connected(self, connection: Any) -> None:
        self._sockets.append(connection)
        self._require_wanted()  # else it was left while it connected, and nobody would end the connection

    def _disconnect(self) -> None:
        """End what the thread that is left still waits for: a server may drip for days."""
        for connection in self._sockets:
            with suppress(OSError, TypeError):  # closed; or no plain socket, as of TLS in TLS
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _look(self) -> None:
        self._require_wanted()
        if time.monotonic() - self._moved > SLOWEST_SECONDS:
            raise TimeoutError(f"less than {CHUNK} bytes came in {SLOWEST_SECONDS} s")

    def _continue(self, url: str, stream: IO[bytes]) -> None:
        """Append what is missing; from the beginning if the file changed or the server knows no ranges."""
        import requests

        version = self._mark.read_text() if self._mark.is_file() else ""
        if not version:
            stream.truncate(0)
        have = stream.seek(0, os.SEEK_END)
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": version}
        user = requests.utils.get_auth_from_url(url)
        auth = user if any(user) else None  # not in the address, which errors quote
        with (
            _session(self._connected) as session,
            session.get(self._shown, headers=headers, stream=True, timeout=TIMEOUT_SECONDS, auth=auth) as response,
        ):
            self._require_wanted()
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                self._mark.unlink(missing_ok=True)
                raise requests.ConnectionError("the server has another file now")
            response.raise_for_status()
            now = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            if response.status_code == requests.codes.partial_content:
                piece = re.fullmatch(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
                if not piece or now not in ("", version):
                    self._mark.unlink(missing_ok=True)
                    raise requests.ConnectionError("the server sent another piece than the one asked for")
                total: int | None = int(piece[1])
            else:
                stream.truncate(0)
                have = 0
                length = response.headers.get("Content-Length")
                total = int(length) if length else None
            if "Content-Encoding" in response.headers:  # although none was asked for: lengths are not the file's
                now, total = "", None
            self._mark.write_text(now)
            with bar(total, self._part.stem, "B") as progress:
                progress.update(have)
                for chunk in response.iter_content(CHUNK):
                    self._require_wanted()
                    self._moved = time.monotonic()
                    if stream.write(chunk) and stream.tell() > self._most:
                        raise TooLong(f"it is longer than {self._most} bytes")
                    progress.update(len(chunk))
            stream.flush()
            if total is not None and stream.tell() != total:
                raise requests.ConnectionError(f"{stream.tell()} of {total} bytes came")

    def _check(self) -> None:
        with self._part.open("rb") as stream:
            begin = stream.read(40)
        if not re.match(self._begins, begin, re.DOTALL):
            self._forget()
            raise ValueError(f"{self._shown} is no file of the expected kind; it begins with {begin[:40]!r}")

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


def _session(connected: Callable[[Any], None]) -> Any:
    """A session of requests that calls `connected` with the socket of each connection it makes."""
    import requests

    class Adapter(requests.adapters.HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
            pool = super().get_connection_with_tls_context(*args, **options)

            class Connection(pool.ConnectionCls):  # type: ignore[name-defined]
                def connect(self) -> None:
                    super().connect()
                    connected(self.sock)

            pool.ConnectionCls = Connection
            return pool

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session
