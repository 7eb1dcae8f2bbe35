"""Files from the network: fetched once, kept in a cache, never half-written.

pooch keeps the cache and checks hashes; what it lacks, going on with a download that broke off,
is download.py.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urldefrag, urlparse

from paddlex_feat.errors import DownloadError
from paddlex_feat.fileio.paths import expand_home, fault
from paddlex_feat.fileio.temporary import private_folder
from paddlex_feat.fileio.user_folders import can_write, home
from paddlex_feat.hub.download import Resuming

log = logging.getLogger(__name__)
ATTEMPTS = 4  # in a row that bring nothing new
LONGEST_NAME = 240  # bytes of a file's name; with `.part.version` it fits into the 255 of most file systems
_LONGEST_SUFFIX = 20
PICKLE = rb"\x80"  # the first byte of every .pdparams file
SAFETENSORS = rb".{5}\0{3}\{"  # the length of a header of less than 2^40 bytes, and its beginning
OFFICIAL = "https://paddle-model-ecology.bj.bcebos.com"  # Paddle's server of weights and models
MIRROR = "PADDLEX_FEAT_MIRROR"  # the environment variable that names another one


_warned: set[str] = set()
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
CACHE = "PADDLE_PDX_CACHE_HOME"  # the environment variable, PaddleX's, that names the cache folder


def cache_folder() -> Path:
    """PADDLE_PDX_CACHE_HOME, PaddleX's variable, else ~/.paddlex.

    Where that is not there and the home folder cannot be written, $XDG_CACHE_HOME/paddlex takes its place, if set.
    Raises DownloadError if there is no home folder either.
    """
    named, users, general = os.environ.get(CACHE), home(), os.environ.get("XDG_CACHE_HOME")
    if named:
        named = expand_home(named)
        wrong = fault(named, written=True)
        if wrong:
            fix = "Set it to a folder that can be written."
            raise DownloadError(f"There is no place for a cache ({wrong}).", where=CACHE, fix=fix)
        return Path(named)
    usual = users and users / ".paddlex"
    if general and not (usual and (usual.exists() or can_write(usual))):
        return Path(general) / "paddlex"
    if usual:
        return usual
    raise DownloadError(
        "There is no home folder for a cache.",
        where=CACHE,
        fix="Set it to a folder that can be written.",
    )


def cache_to_write() -> Path:
    """The cache folder, or a temporary one of this process where the home folder cannot be written, with a warning.

    The folder that PADDLE_PDX_CACHE_HOME names has no such substitute: the user chose it.
    """
    try:
        folder = cache_folder()
        if os.environ.get(CACHE) or can_write(folder):
            return folder
        reason = f"The cache folder {folder} cannot be written"
    except DownloadError:
        reason = "There is no home folder for a cache"
    if reason not in _warned:
        _warned.add(reason)
        log.warning(
            "%s: what is fetched or converted is kept for this run alone. %s names another folder.", reason, CACHE
        )
    return private_folder() / "cache"


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
    the server can, until ATTEMPTS in a row bring less than CHUNK bytes; one that brings less than
    those in SLOWEST_SECONDS is given up. The length is checked
    against the server's where it gives one, and the content against a checksum where the address ends in
    `#sha256=<64 hexadecimal digits>`. A mirror (`source`) shares the copy of the original.

    Args:
        folder: sub-folder of the cache, or the absolute path of a folder in its place.
        fix: what the user can do where the network cannot be reached.
        begins: pattern of how a file of the expected kind begins; another one is refused and not kept.
        most: bytes that are taken; a longer file is refused and not kept.
        ended: the download is given up soon after this is set, or the program ends.

    Raises DownloadError. Two addresses that end in the same file name do not share a copy.
    """
    try:
        address, fragment = urldefrag(url)
    except ValueError as error:
        what = f"This is no address ({without_password(str(error))})."
        raise DownloadError(what, where=without_password(url), fix=fix) from None  # the error's text has the password
    checksum = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    name = _file_name(address)
    part = Path(folder, hashlib.sha256(address.encode()).hexdigest()[:12])
    target = part if part.is_absolute() else _cache_for(part / name) / part
    if (target / name).is_file() and not checksum:
        return target / name
    origin = source(address)
    import pooch  # brings requests; only a download, or a checksum, needs it

    if checksum and (target / name).is_file() and pooch.file_hash(str(target / name)) == checksum[1].lower():
        return target / name
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        with download_lock(target):
            found = pooch.retrieve(  # or the file that another process has fetched meanwhile
                origin,
                known_hash=f"sha256:{checksum[1].lower()}" if checksum else None,
                fname=name,
                path=target,
                downloader=Resuming(target / f"{name}.part", without_password(origin), begins, most, ended, ATTEMPTS),
            )
    except Exception as error:  # requests, urllib3 and OSError families, and pooch's own
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            variable = "TMPDIR" if part.is_absolute() else CACHE
            fix = f"Free space, fix the permissions, or name another folder than {target} with {variable}."
        raise DownloadError(
            f"The download failed ({type(error).__name__}: {without_password(_reason(error))[:200]}).",
            where=without_password(origin),
            fix=fix,
        ) from error
    return Path(found)


def _cache_for(file: Path) -> Path:
    """The cache folder if it has the file, else one that can be written."""
    with suppress(DownloadError):  # there is no home folder
        if (cache_folder() / file).is_file():
            return cache_folder()
    return cache_to_write()


def _file_name(address: str) -> str:
    """The last part of an address's path; of one that is too long for a file the beginning, and its suffix."""
    name = Path(urlparse(address).path).name
    if name in ("", "..", ".lock"):
        return "file"
    if _size(name) <= LONGEST_NAME:
        return name
    suffix = Path(name).suffix if _size(Path(name).suffix) <= _LONGEST_SUFFIX else ""
    while _size(name + suffix) > LONGEST_NAME:
        name = name[:-1]
    return name + suffix


def _size(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))


def without_password(text: str) -> str:
    """A text in which addresses, and what urllib says of one, do not show user and password."""
    return re.sub(r"(//|\bnetloc )[^/?#\s]*@", r"\1", text)


def _reason(error: Exception) -> str:
    """The cause alone where urllib3 wraps it in the address and the attempts, which would push it out of a line."""
    return str(getattr(error.args[0] if error.args else None, "reason", None) or error)


@contextmanager
def download_lock(folder: Path) -> Iterator[None]:
    """One process at a time: a second one waits, and then finds the file that the first one fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("Another process downloads into %s; waiting for it.", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # some network file systems
            log.warning("%s knows no locks: nothing keeps a second download out.", folder)
        yield


def local_file(path_or_url: str, folder: str, fix: str, begins: bytes = b"") -> Path:
    """A path as it is, a URL by way of the cache."""
    return fetch(path_or_url, folder, fix, begins=begins) if is_url(path_or_url) else Path(path_or_url)


def weight_file(path_or_url: str, fix: str) -> Path:
    """A weight file, `.pdparams` or `.safetensors`: a path as it is, a URL by way of the cache."""
    of_tensors = re.search(r"\.safetensors([?#]|$)", path_or_url.lower())
    return local_file(path_or_url, "weights", fix, SAFETENSORS if of_tensors else PICKLE)
