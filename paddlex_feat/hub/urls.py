"""Addresses: what counts as one, a mirror of Paddle's server, file names for the cache, no passwords in messages."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlparse

from paddlex_feat.errors import DownloadError
from paddlex_feat.fileio.addresses import is_url, without_password

__all__ = ["apply_mirror", "file_name", "is_url", "without_password"]

OFFICIAL = "https://paddle-model-ecology.bj.bcebos.com"  # Paddle's server of weights and models
ENV_MIRROR = "PADDLEX_FEAT_MIRROR"  # environment: address of another server with the same files
MAX_NAME_BYTES = 240  # of a file's name; with `.part.version` it fits into the 255 of most file systems
_MAX_SUFFIX_BYTES = 20
_NOT_IN_NAMES = re.compile(r'[<>:"\\|?*\x00-\x1f]|[. ]+$')  # which Windows refuses or drops


def apply_mirror(url: str) -> str:
    """The address to fetch `url` from: below PADDLEX_FEAT_MIRROR, if set, in place of Paddle's server.

    Raises DownloadError if the variable is not an http(s) address.
    """
    mirror = os.environ.get(ENV_MIRROR, "").rstrip("/")
    if not mirror or not url.startswith(f"{OFFICIAL}/"):
        return url
    if not is_url(mirror):
        raise DownloadError(
            f"{ENV_MIRROR} is {mirror!r}, which is not an address.",
            where=ENV_MIRROR,
            fix="It must start with https:// or http://.",
            code="mirror-invalid",
        )
    return mirror + url.removeprefix(OFFICIAL)


def file_name(url: str) -> str:
    """The last part of an address's path as a file name for any system; "file" if there is none.

    A name that is too long is cut, and keeps its suffix.
    """
    name = _NOT_IN_NAMES.sub("_", Path(urlparse(url).path).name)
    if name in ("", "_", ".lock"):
        return "file"
    if _size(name) <= MAX_NAME_BYTES:
        return name
    suffix = Path(name).suffix if _size(Path(name).suffix) <= _MAX_SUFFIX_BYTES else ""
    while _size(name + suffix) > MAX_NAME_BYTES:
        name = name[:-1]
    return name + suffix


def _size(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))
