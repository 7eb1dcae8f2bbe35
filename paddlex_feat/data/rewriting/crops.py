"""Images that are no files of their own, boxes and bytes within a file, become files."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

from paddlex_feat.data.images.decode import read_bgr, read_content
from paddlex_feat.data.images.formats import suffix_of
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.source import ImageSource, box_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError, ImageError
from paddlex_feat.fileio.atomic_folder import atomic_folder

log = logging.getLogger(__name__)
CROPS = "crops"  # folder of images that become files; crops.1 and so on if it is there


def write_crops(root: Path, lists: dict[str, ImageList], skip: bool) -> dict[str, str]:
    """Write the images that are no files of their own into a new folder; their paths there, "" for one that is skipped.

    A box becomes a PNG of its pixels, bytes within a file become a file of the same bytes. The folder appears whole.

    Args:
        root: of the data set.
        lists: their images.
        skip: leave out images that cannot be decoded; else they are errors.

    Raises DatasetError that names them.
    """
    sources = [
        path for path in dict.fromkeys(p for r in lists.values() for p in r.paths) if isinstance(path, ImageSource)
    ]
    if not sources:
        return {}
    numbered = (f"{CROPS}.{number}" if number else CROPS for number in count())
    folder = next(name for name in numbered if not (root / name).exists())
    paths, failed = {}, list[ImageError]()
    with atomic_folder(root / folder) as place:
        for number, source in enumerate(sources):
            try:
                content, suffix = _file_of(source)
            except ImageError as error:
                failed.append(error)
                paths[str(source)] = ""
                continue
            paths[str(source)] = f"{folder}/{number:07d}{suffix}"
            (place / f"{number:07d}{suffix}").write_bytes(content)
        if failed and not skip:
            shown = "\n    ".join(f"{error.where}: {error.what}" for error in failed[:10])
            raise DatasetError(
                f"{len(failed)} images cannot be decoded:\n    {shown}",
                where=str(root),
                fix="Correct or remove their annotations, or leave them out with -o CheckDataset.fix=[undecodable].",
                code="crops-undecodable",
            )
    for one in failed:
        log.warning("Left out: %s: %s", one.where, one.what)
    return paths


def _file_of(source: ImageSource) -> tuple[bytes, str]:
    if box_of(source) is None:
        content = read_content(source)
        return content, suffix_of(content)
    return cv2.imencode(".png", read_bgr(source))[1].tobytes(), ".png"
