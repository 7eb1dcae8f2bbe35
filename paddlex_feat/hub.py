"""Files from the network: fetched once, kept in a cache, never half-written.

pooch keeps the cache and checks hashes; what it lacks, going on with a download that broke off,
is the downloader here.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urldefrag, urlparse

from paddlex_feat.errors import DownloadError
from paddlex_feat.progress import bar

log = logging.getLogger(__name__)
ATTEMPTS, TIMEOUT_SECONDS, CHUNK = 4, 30, 2**16  # a chunk is what a break loses at most
SLOWEST_SECONDS = 120  # for a chunk; a server that drips bytes is given up, what came of the others is kept
_LOOK_SECONDS = 0.2  # between two looks at whether a download is still wanted, and moves
LONGEST_WAIT = 60  # seconds, whatever a busy server asks for
_BUSY = {429, 502, 503, 504}  # answers of a server that may have the file later
PICKLE = rb"\x80"  # the first byte of every .pdparams file
SAFETENSORS = rb".{5}\0{3}\{"  # the length of a header of less than 2^40 bytes, and its beginning
OFFICIAL = "https://paddle-model-ecology.bj.bcebos.com"  # Paddle's server of weights and models
MIRROR = "PADDLEX_FEAT_MIRROR"  # the environment variable that names another one


def cache_folder() -> Path:
    """PADDLE_PDX_CACHE_HOME, PaddleX's variable, else ~/.paddlex. Raises DownloadError if there is no home."""
    try:
        return Path(os.environ.get("PADDLE_PDX_CACHE_HOME") or Path.home() / ".paddlex")
    except RuntimeError as error:
        raise DownloadError(
            f"There is no place for a cache ({error}).",
            where="PADDLE_PDX_CACHE_HOME",
            fix="Set it to a folder that can be written.",
        ) from error


def is_url(text: str) -> bool:
    """Does the text start with http:// or https://, in small letters or capitals?"""
    return text[:8].lower().startswith(("http://", "https://"))


def source(address: str) -> str:
    """Where `address` is fetched from: what PADDLEX_FEAT_MIRROR names stands for Paddle's server.

    Raises DownloadError if that is no http(s) address.
    """
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    if not mirror or not address.startswith(f"{OFFICIAL}/"):
        return address
    if not is_url(mirror):
        raise DownloadError(
            f"{MIRROR} is {mirror!r}, which is no address.", where=MIRROR, fix="It must start with https:// or http://."
        )
    return mirror + address.removeprefix(OFFICIAL)


def absent(error: Exception) -> bool:
    """Is this `fetch`'s error because the server has no such file?"""
    response = getattr(error.__cause__, "response", None)
    return getattr(response, "status_code", None) == 404


def fetch(
    url: str, folder: str, fix: str, begins: bytes = b"", most: int = 2**34, ended: threading.Event | None = None
) -> Path:
    """The local copy of `url`; downloaded unless the cache has it.

    A download that breaks off is tried again, and goes on where it stood, in a later run too, if
    the server can; one that brings less than CHUNK bytes in SLOWEST_SECONDS is given up. The length is checked
    against the server's where it gives one, and the content against a checksum where the address ends in
    `#sha256=<64 hexadecimal digits>`. A mirror (`source`) shares the copy of the original.

    Args:
        folder: sub-folder of the cache, or the absolute path of a folder in its place.
        fix: what the user can do where the network cannot be reached.
        begins: pattern of how a file of the expected kind begins; another one is refused and not kept.
        most: bytes that are taken; a longer file is refused.
        ended: the download is given up soon after this is set, or the program ends.

    Raises DownloadError. Two addresses that end in the same file name do not share a copy.
    """
    try:
        address, fragment = urldefrag(url)
    except ValueError as error:
        what = f"This is no address ({without_password(str(error))})."
        raise DownloadError(what, where=without_password(url), fix=fix) from None  # the error's text has the password
    checksum = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    name = Path(urlparse(address).path).name
    name = "file" if name in ("", "..", ".lock") else name
    target = cache_folder() / folder / hashlib.sha256(address.encode()).hexdigest()[:12]
    if (target / name).is_file() and not checksum:
        return target / name
    origin = source(address)
    import pooch  # brings requests; only a download, or a checksum, needs it

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        with alone(target):
            found = pooch.retrieve(  # the cached file, if it is there and has the checksum
                origin,
                known_hash=f"sha256:{checksum[1].lower()}" if checksum else None,
                fname=name,
                path=target,
                downloader=_Resuming(target / f"{name}.part", begins, most, ended),
            )
    except Exception as error:  # requests, urllib3 and OSError families, and pooch's own
        raise DownloadError(
            f"The download failed ({type(error).__name__}: {without_password(_reason(error))[:200]}).",
            where=without_password(origin),
            fix=fix,
        ) from error
    return Path(found)


def without_password(text: str) -> str:
    """A text in which addresses, and what urllib says of one, do not show user and password."""
    return re.sub(r"(//|\bnetloc )[^/?#\s]*@", r"\1", text)


def _reason(error: Exception) -> str:
    """The cause alone where urllib3 wraps it in the address and the attempts, which would push it out of a line."""
    return str(getattr(error.args[0] if error.args else None, "reason", None) or error)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time: a second one waits, and then finds the file that the first one fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # some network file systems
            log.warning("%s knows no locks: nothing keeps a second download out.", folder)
        yield


def local_file(path_or_url: str, folder: str, fix: str, begins: bytes = b"") -> Path:
    """A path as it is, a URL by way of the cache."""
    return fetch(path_or_url, folder, fix, begins=begins) if is_url(path_or_url) else Path(path_or_url)


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


def weight_file(path_or_url: str, fix: str) -> Path:
    """A weight file, `.pdparams` or `.safetensors`: a path as it is, a URL by way of the cache."""
    of_tensors = re.search(r"\.safetensors([?#]|$)", path_or_url.lower())
    return local_file(path_or_url, "weights", fix, SAFETENSORS if of_tensors else PICKLE)


class _NotWanted(Exception):
    """Nobody waits for this download any more."""


def _watched(work: Callable[[], None], look: Callable[[], None]) -> None:
    """Do `work` in a thread, and leave that to itself once `look`, which is called all the while, raises.

    Nothing ends from outside what a silent server, or one of names, is waited for. The thread keeps no program
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


class _Resuming:
    """A pooch downloader that keeps what it has got in `part`, with the server's mark of its version beside it."""

    def __init__(self, part: Path, begins: bytes, most: int, ended: threading.Event | None):
        self._most = most
        self._ended = ended
        self._part = part
        self._mark = part.with_name(f"{part.name}.version")
        self._begins = begins
        self._left = False  # to itself: the thread that fetches must not touch a file any more
        self._moved = time.monotonic()  # when the last chunk came, or the last attempt began

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        log.info("Downloading %s", without_password(url))
        with self._part.open("ab") as stream:
            try:
                _watched(lambda: self._attempts(url, stream), self._look)
            finally:
                self._left = True
            self._check(url)
            self._part.replace(output_file)
            self._mark.unlink(missing_ok=True)

    def _attempts(self, url: str, stream: IO[bytes]) -> None:
        import requests

        for attempt in range(1, ATTEMPTS + 1):
            self._moved = time.monotonic()
            try:
                self._continue(url, stream)
                return
            except requests.RequestException as error:
                if attempt == ATTEMPTS or not _passing(error):
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
        auth = user if any(user) else None
        shown = without_password(url)  # errors quote it
        with requests.get(shown, headers=headers, stream=True, timeout=TIMEOUT_SECONDS, auth=auth) as response:
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
                        raise ValueError(f"it is longer than {self._most} bytes")
                    progress.update(len(chunk))
            stream.flush()
            if total is not None and stream.tell() != total:
                raise requests.ConnectionError(f"{stream.tell()} of {total} bytes came")

    def _check(self, url: str) -> None:
        with self._part.open("rb") as stream:
            begin = stream.read(40)
        if not re.match(self._begins, begin, re.DOTALL):
            self._part.unlink()
            self._mark.unlink(missing_ok=True)
            raise ValueError(f"{without_password(url)} is no file of the expected kind; it begins with {begin[:40]!r}")
