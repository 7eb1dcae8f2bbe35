"""Images of a data set that are addresses: refused, or downloaded where the user allows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.images.source import ImageSource, file_of
from paddlex_feat.data.lists.columns import Texts
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import FeatError
from paddlex_feat.fileio.addresses import is_url, without_password
from paddlex_feat.runtime.progress import bar

Fetch = Callable[[str], Path]  # address -> local copy; raises FeatError
_AT_ONCE = 8  # downloads
URL = FindingSpec(
    "image-url",
    "error",
    "an image of a data set is an address",
    "Set CheckDataset.urls=download to download such images, or download them and give their paths.",
)
FAILED = FindingSpec(
    "image-url-failed", "error", "an image cannot be downloaded", "Check the address, or take the image out."
)
FINDINGS = (URL, FAILED)


def may_be_image(path: str, folder: Path) -> bool:
    """Whether a path of a data set is an address, or that of a file in its folder."""
    return is_url(path) or (bool(path) and "\0" not in path and os.path.isfile(folder / path))


def image_at(address: str) -> ImageSource:
    """The image at an address; its name leaves out user and password, which messages and files must not show."""
    return ImageSource(without_password(address), address)


def resolve_addresses(lists: dict[str, ImageList], fetch: Fetch | None) -> Iterator[Finding]:
    """Give each image that is an address the file of its local copy; take it off where there is none.

    Args:
        lists: by name; changed in place.
        fetch: downloads an image, called from several threads; None: addresses are refused.
    """
    found = (file_of(path) for records in lists.values() if _may_have_addresses(records) for path in records.paths)
    addresses = list(dict.fromkeys(filter(is_url, found)))
    if not addresses:
        return
    copies = _download(addresses, fetch) if fetch else dict.fromkeys(addresses)
    told: set[tuple[str, str]] = set()  # gallery and query may be the same images
    for name, records in lists.items():
        kept, paths = list[int](), list(records.paths)
        for index, path in enumerate(paths):
            address = file_of(path)
            if not is_url(address):
                kept.append(index)
            elif isinstance(copy := copies[address], Path):
                box = path.box if isinstance(path, ImageSource) else None
                paths[index] = ImageSource(path, str(copy), box=box)
                kept.append(index)
            elif (path, where := records.where(index)) not in told:
                told.add((path, where))
                yield _unusable(path, where, copy)
        records.paths = paths
        if len(kept) < len(records):
            lists[name] = records.part(kept)
            lists[name].leave_one_out = records.leave_one_out


def _may_have_addresses(records: ImageList) -> bool:
    return not isinstance(records.paths, Texts) or records.paths.hold(b"://")


def _unusable(path: str, where: str, error: FeatError | None) -> Finding:
    if error is None:
        return URL.at(where, f"{path[:200]} is an address, and these are refused.")
    return FAILED.at(where, f"{path[:200]}: {error.what}")


def _download(addresses: list[str], fetch: Fetch) -> dict[str, Path | FeatError | None]:
    """The local copy of each address, or the error that prevented it."""

    def copy_of(address: str) -> Path | FeatError:
        try:
            return fetch(address)
        except FeatError as error:
            return error

    copies: dict[str, Path | FeatError | None] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool, bar(len(addresses), "Downloading images", "images") as progress:
        try:
            for address, copy in zip(addresses, pool.map(copy_of, addresses), strict=True):
                copies[address] = copy
                progress.update()
        except BaseException:  # an interrupt: downloads that have not begun are not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return copies
