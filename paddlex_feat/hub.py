"""Files from the network: fetched once, kept in a cache, never half-written."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from urllib.parse import urlparse

from paddlex_feat.errors import DownloadError

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """PADDLE_PDX_CACHE_HOME, PaddleX's variable, else ~/.paddlex."""
    return Path(os.environ.get("PADDLE_PDX_CACHE_HOME") or Path.home() / ".paddlex")


def is_url(text: str) -> bool:
    """Does the text start with http:// or https://?"""
    return text.startswith(("http://", "https://"))


def fetch(url: str, folder: str, fix: str, refresh: bool = False) -> Path:
    """The local copy of `url`; downloaded unless the cache has it.

    Args:
        folder: sub-folder of the cache.
        fix: what the user can do where the network cannot be reached.
        refresh: download it even so, for what may change behind its address.

    Raises DownloadError. Two addresses that end in the same file name do not share a copy.
    """
    name = Path(urlparse(url).path).name or "file"
    target = cache_folder() / folder / hashlib.sha256(url.encode()).hexdigest()[:12]
    if (target / name).is_file():
        if not refresh:
            return target / name
        (target / name).unlink()
    import pooch  # brings requests; only a download needs it

    pooch.get_logger().setLevel(logging.WARNING)
    log.info("Downloading %s", url)
    try:
        return Path(
            pooch.retrieve(url, known_hash=None, fname=name, path=target, downloader=pooch.HTTPDownloader(timeout=30))
        )
    except Exception as error:  # requests, urllib3 and OSError families, and pooch's own
        raise DownloadError(
            f"The download failed ({type(error).__name__}: {str(error)[:200]}).", where=url, fix=fix
        ) from error


def local_file(path_or_url: str, folder: str, fix: str) -> Path:
    """A path as it is, a URL by way of the cache."""
    return fetch(path_or_url, folder, fix) if is_url(path_or_url) else Path(path_or_url)
