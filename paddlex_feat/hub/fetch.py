"""Files from the network: fetched once, kept in a cache, never half-written."""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urldefrag

from paddlex_feat.config.base import STARTER
from paddlex_feat.errors import DownloadError
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.hub.cache import ENV_CACHE, cache_folder, cache_to_write, download_lock
from paddlex_feat.hub.starter import starter_weights
from paddlex_feat.hub.urls import apply_mirror, file_name, is_url, without_password

PICKLE = rb"\x80|PK\x03\x04"  # how every .pdparams file begins, and the two forms of torch.save
SAFETENSORS = rb".{5}\0{3}\{"  # the length of a header of less than 2^40 bytes, and its beginning
MAX_IMAGE_BYTES = 2**30
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def fetch_url(
    url: str,
    folder: str,
    fix: str,
    magic: bytes = b"",
    max_bytes: int = 2**34,
    cancel: threading.Event | None = None,
    shown: bool = True,
) -> Path:
    """The local copy of `url`, which is downloaded unless the cache has it.

    An interrupted download is resumed, also by a later run (`hub.download`). The length is checked against the
    server's where it tells one, the content against a checksum where the address ends in `#sha256=<64 hexadecimal
    digits>`. A mirror (`apply_mirror`) shares the copy of the original. One process at a time fetches a file.

    Args:
        url: address of the file; a fragment `#sha256=` is not sent to the server.
        folder: sub-folder of the cache, or the absolute path of a folder in its place.
        fix: what the user can do if the network cannot be reached.
        magic: pattern of the first bytes of the expected kind of file; another kind is refused and not kept.
        max_bytes: a longer file is refused and not kept.
        cancel: once it is set, the download is given up within the read timeout of 30 seconds.
        shown: log the download, and show a bar.

    Raises DownloadError. Two addresses that end in the same file name do not share a copy.
    """
    try:
        address, fragment = urldefrag(url)
    except ValueError as error:
        what = f"This is not an address ({without_password(str(error))})."
        where = without_password(url)
        raise DownloadError(what, where=where, fix=fix, code="url-invalid") from None  # its text has the password
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    checksum = match[1].lower() if match else ""
    name = file_name(address)
    part = Path(folder, hashlib.sha256(address.encode()).hexdigest()[:12])
    target = part / name if part.is_absolute() else _cache_for(part / name) / part / name
    if _is_complete(target, checksum):
        return target
    origin = apply_mirror(address)
    try:
        with download_lock(target.parent):
            if not _is_complete(target, checksum):  # else another process has fetched it meanwhile
                _download(origin, target, checksum, magic, max_bytes, cancel, shown)
    except Exception as error:  # of requests, urllib3 and the system
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            variable = "TMPDIR" if part.is_absolute() else ENV_CACHE
            fix = f"Free space, fix the permissions, or name another folder than {target.parent} with {variable}."
        raise DownloadError(
            f"The download failed ({type(error).__name__}: {without_password(_reason(error))[:200]}).",
            where=without_password(origin),
            fix=fix,
            code="download-failed",
        ) from error
    return target


def image_fetcher(urls: str) -> Callable[[str], Path] | None:
    """What downloads an image of a data set into the cache: `CheckDataset.urls` is download; None: it is refuse."""
    if urls != "download":
        return None
    fix = "Check the address and the network, or take the image out of the data set."
    return partial(fetch_url, folder="images", fix=fix, max_bytes=MAX_IMAGE_BYTES, shown=False)


def _is_complete(file: Path, checksum: str) -> bool:
    return file.is_file() and (not checksum or sha256_file(file) == checksum)


def _download(
    url: str, target: Path, checksum: str, magic: bytes, max_bytes: int, cancel: threading.Event | None, shown: bool
) -> None:
    from paddlex_feat.hub.download import ResumableDownloader  # imports requests

    part = target.with_name(f"{target.name}.part")
    downloader = ResumableDownloader(url, part, magic, max_bytes, cancel, shown)
    downloader.run()
    found = sha256_file(part) if checksum else ""
    if found != checksum:
        downloader.discard()
        raise ValueError(f"its SHA-256 hash is {found}, not {checksum}")
    downloader.move_to(target)


def _cache_for(file: Path) -> Path:
    """The cache folder if it has the file, else one that can be written."""
    with suppress(DownloadError):  # there is no home folder
        if (cache_folder() / file).is_file():
            return cache_folder()
    return cache_to_write()


def _reason(error: Exception) -> str:
    """The cause alone where urllib3 wraps it in the address and the attempts, which would push it out of a line."""
    return str(getattr(error.args[0] if error.args else None, "reason", None) or error)


def is_absent(error: Exception) -> bool:
    """Whether `fetch_url` raised this error because the server does not have the file."""
    response = getattr(error.__cause__, "response", None)
    return getattr(response, "status_code", None) == 404


def local_file(path_or_url: str, folder: str, fix: str, magic: bytes = b"") -> Path:
    """A path as it is; a URL by way of the cache."""
    return fetch_url(path_or_url, folder, fix, magic=magic) if is_url(path_or_url) else Path(path_or_url)


def fetch_weights(path_or_url: str, fix: str) -> Path:
    """A weight file: a path as it is, a URL by way of the cache, `starter` from its installed package.

    Raises DownloadError; for `starter` DependencyError and WeightsError.
    """
    if path_or_url == STARTER:
        return starter_weights()
    of_tensors = re.search(r"\.safetensors([?#]|$)", path_or_url.lower())
    return local_file(path_or_url, "weights", fix, SAFETENSORS if of_tensors else PICKLE)
