"""Download one file; an interrupted download is resumed where it stopped."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import IO, Any

import requests
import urllib3

from paddlex_feat.hub.urls import without_password
from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)
ATTEMPTS = 4  # consecutive ones with less than CHUNK new bytes
TIMEOUT_SECONDS = 30  # without a byte
CHUNK = 2**16  # bytes
SLOWEST_SECONDS = 120  # for CHUNK bytes
MAX_WAIT_SECONDS = 60  # before the next attempt, whatever Retry-After asks for
_BUSY = {429, 502, 503, 504}  # answers of a server that may have the file later


class Cancelled(Exception):
    """Nobody waits for this download any more."""


class ResumableDownloader:
    """Downloads an address into the file `part`, with the server's mark of the version in a file beside it.

    urllib3's Retry is not used: it repeats requests but does not resume bodies, and its waits cannot be cancelled.

    Args:
        url: may hold user and password, which messages and errors do not show.
        part: file to append to; a later download of the same version resumes it (Range and If-Range).
        magic: pattern of the first bytes of the expected kind of file; a file of another kind is refused and removed.
        max_bytes: a longer file is refused and removed.
        cancel: once it is set, the download is given up at the next byte, at the latest after TIMEOUT_SECONDS.
        shown: log the download, and show a bar.
    """

    def __init__(
        self, url: str, part: Path, magic: bytes, max_bytes: int, cancel: threading.Event | None, shown: bool = True
    ):
        user = requests.utils.get_auth_from_url(url)
        self._auth = user if any(user) else None  # not in the address, which errors quote
        self._url = without_password(url)
        self._part = part
        self._version = part.with_name(f"{part.name}.version")
        self._magic = magic
        self._max_bytes = max_bytes
        self._cancel = cancel
        self._shown = shown

    def run(self) -> None:
        """Download the whole file.

        Raises requests' and urllib3's errors after ATTEMPTS in a row with less than CHUNK new bytes, TimeoutError if
        less than CHUNK bytes arrive in SLOWEST_SECONDS, ValueError for a file that is refused, Cancelled, OSError.
        """
        log.log(logging.INFO if self._shown else logging.DEBUG, "Downloading %s", self._url)
        try:
            with self._part.open("ab") as stream:
                self._attempt(stream)
            with self._part.open("rb") as stream:
                start = stream.read(40)
            if not re.match(self._magic, start, re.DOTALL):
                raise ValueError(f"{self._url} is not a file of the expected kind; it begins with {start!r}")
        except ValueError as error:
            if not isinstance(error, requests.RequestException):  # some of which are ValueErrors too
                self.discard()
            raise

    def discard(self) -> None:
        """Remove what has been downloaded."""
        self._part.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)

    def move_to(self, target: Path) -> None:
        """Give the whole file its name."""
        self._part.replace(target)
        self._version.unlink(missing_ok=True)

    def _attempt(self, stream: IO[bytes]) -> None:
        size, attempt = stream.seek(0, os.SEEK_END), 0
        while True:
            attempt += 1
            self._check_cancelled()
            try:
                self._request(stream)
                return
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                self._check_cancelled()
                now = stream.seek(0, os.SEEK_END)
                if now >= size + CHUNK:
                    size, attempt = now, 1
                if attempt >= ATTEMPTS or not _is_temporary(error):
                    raise
                seconds = _pause(error, attempt)
                log.info("The download was interrupted (%s); trying again in %g s.", type(error).__name__, seconds)
                wait = self._cancel.wait if self._cancel else time.sleep
                wait(seconds)

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled

    def _request(self, stream: IO[bytes]) -> None:
        """Append the missing bytes; start over if the file has changed or the server cannot resume."""
        version = self._version.read_text() if self._version.is_file() else ""
        if not version:
            stream.truncate(0)
        have = stream.seek(0, os.SEEK_END)
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": version}
        with (
            requests.Session() as session,
            session.get(self._url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS, auth=self._auth) as response,
        ):
            total = self._check_answer(response, have, version)
            if response.status_code != requests.codes.partial_content:
                stream.truncate(0)
            self._copy(response, stream, total)

    def _check_answer(self, response: requests.Response, have: int, version: str) -> int | None:
        """The length of the whole file, if the server tells it; the version is remembered.

        Raises requests.ConnectionError for a part other than the one asked for, requests.HTTPError.
        """
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            self._version.unlink(missing_ok=True)
            raise requests.ConnectionError("the server has another file now")
        response.raise_for_status()
        now = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if response.status_code == requests.codes.partial_content:
            part = re.fullmatch(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not part or now not in ("", version):
                self._version.unlink(missing_ok=True)
                raise requests.ConnectionError("the server sent another part than the one asked for")
            total = int(part[1])
        if "Content-Encoding" in response.headers:  # although none was asked for: lengths are not the file's
            now, total = "", None
        self._version.write_text(now)
        return total

    def _copy(self, response: requests.Response, stream: IO[bytes], total: int | None) -> None:
        size = mark = stream.seek(0, os.SEEK_END)
        since = time.monotonic()
        with bar(total, self._part.stem, "B", self._shown) as progress:
            progress.update(size)
            while data := response.raw.read1(CHUNK, decode_content=True):  # what has come, without waiting for more
                self._check_cancelled()
                size += stream.write(data)
                progress.update(len(data))
                if size > self._max_bytes:
                    raise ValueError(f"it is longer than {self._max_bytes} bytes")
                if size >= mark + CHUNK:
                    mark, since = size, time.monotonic()
                elif time.monotonic() - since > SLOWEST_SECONDS:
                    raise TimeoutError(f"less than {CHUNK} bytes came in {SLOWEST_SECONDS} s")
        stream.flush()
        if total is not None and size != total:
            raise requests.ConnectionError(f"{size} of {total} bytes came")


def _is_temporary(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, requests.HTTPError):
        return getattr(error.response, "status_code", None) in _BUSY
    return isinstance(error, requests.ConnectionError | requests.Timeout | urllib3.exceptions.HTTPError)


def _pause(error: Exception, attempt: int) -> float:
    """Seconds until the next attempt: as Retry-After asks, within bounds, else more each time."""
    response: Any = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    # It may be a date too, by another clock.
    return float(min(int(asked[:9]), MAX_WAIT_SECONDS)) if re.fullmatch(r"[0-9]+", asked) else 2 ** (attempt - 1) / 2
