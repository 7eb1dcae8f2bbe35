"""Walk a folder for images, without hidden files and those that systems add, such as Thumbs.db.

The rule is the same for predict's inputs, LabelMe's annotations and images, and the search for list files. It applies
below the folder that the user names, not to that folder itself. Files and folders that are left out are counted.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paddlex_feat.data.images.formats import BEGINNING, SUFFIXES, looks_like_image
from paddlex_feat.fileio.reading import first_bytes

log = logging.getLogger(__name__)

# Thumbnails, recycle bins, metadata and notes of Windows, macOS, Linux and network storage, in lower case; most others
# are hidden: ._*, .DS_Store, .Trash-1000, .thumbnails, .ipynb_checkpoints.
_SYSTEM = {"#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@tmp", "__macosx",
           "__pycache__", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "found.000", "icon\r", "lost+found",
           "network trash folder", "picasa.ini", "system volume information", "temporary items", "thumbs.db",
           "zbthumbnail.info"}  # fmt: skip
# Raw data, which are TIFF files that hold a thumbnail as their image, and previews of cameras: not opened.
_CAMERA_SUFFIXES = re.compile(
    r"\.(3fr|arw|cr[23w]|dcr|dng|erf|gpr|iiq|k25|kdc|mef|mos|mrw|nef|nrw|orf|pef|raf|raw|rw[2l]|sr[2fw]|thm|x3f)"
)
_OTHER_PICTURES = {".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd"}
OURS = ".paddlex_feat."  # begins the names of files that this program itself leaves in a user's folder
_HARMLESS = ("hidden files", "hidden folders", "system files", "system folders")
_SHOWN = 8  # reasons in a line
_SUFFIX = re.compile(r"\.(?!\d+$)\w{1,12}")  # names a kind of file; a number, as in log.20240101, does not


def in_words(counts: Counter[str]) -> str:
    """Counts as "hidden files: 2, .txt files: 1", the largest first; beyond some, only how many others there are."""
    most = counts.most_common(_SHOWN)
    others = counts.total() - sum(count for _, count in most)
    return ", ".join([f"{reason}: {count}" for reason, count in most] + [f"others: {others}"] * bool(others))


def unread_pictures(left_out: Counter[str]) -> Counter[str]:
    """Those of `Walk.left_out` that are pictures, of formats that are not read; they are taken out of it."""
    found: Counter[str] = Counter()
    for reason in list(left_out):
        suffix = reason.removesuffix(" files")
        if suffix in _OTHER_PICTURES or _CAMERA_SUFFIXES.fullmatch(suffix):
            found[reason] = left_out.pop(reason)
    return found


@dataclass
class Walk:
    """Counts and errors of one walk over folders.

    Attributes:
        left_out: files and folders left out, counted by reason, as in {"hidden files": 2, ".txt files": 1}.
        errors: errors of folders that cannot be read.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    errors: list[OSError] = field(default_factory=list)

    def leaves_out(self, name: str, kind: str) -> bool:
        """Whether a file or folder is hidden or a system's; if so, it is counted.

        Args:
            name: of the file or folder.
            kind: "files" or "folders".
        """
        if name.startswith(OURS):
            return True
        reason = "system" if name.lower() in _SYSTEM else "hidden" if name.startswith(".") else ""
        if reason:
            self.left_out[f"{reason} {kind}"] += 1
        return bool(reason)

    def log(self, where: str) -> None:
        """Log what was left out, if anything: a warning unless all of it is hidden or a system's."""
        if self.left_out:
            level = logging.INFO if set(self.left_out) <= set(_HARMLESS) else logging.WARNING
            log.log(level, "%s: left out: %s", where, in_words(self.left_out))


def files_below(walk: Walk, *tops: str, follow: bool = True) -> Iterator[str]:
    """All files below some folders, without hidden and system files, in no order; each real folder once.

    Args:
        walk: counts what is left out, and collects errors.
        tops: the folders. Files below them keep their own paths: links to folders are followed afterwards, in the
            order of their paths.
        follow: follow links to folders.
    """
    seen: set[str] = set()
    waiting = list(tops)
    while waiting:
        links: list[str] = []
        for place in sorted(waiting):
            for folder, below, names in os.walk(place, onerror=walk.errors.append):
                real = os.path.realpath(folder)
                if real in seen:
                    below.clear()
                    continue
                seen.add(real)
                below[:] = [name for name in below if not walk.leaves_out(name, "folders")]
                links += [str(path) for path in (Path(folder, name) for name in below) if path.is_symlink()]
                yield from (os.path.join(folder, name) for name in names if not walk.leaves_out(name, "files"))
        waiting = links if follow else []


def is_image(path: str, walk: Walk) -> bool:
    """Whether a file is an image of a supported format: by its suffix, or for other suffixes by its first bytes.

    A file with the suffix of an image is not opened. Other files are counted in `walk`, by their suffix.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return True
    reason = f"{suffix} files" if _SUFFIX.fullmatch(suffix) else "other files" if suffix else "files without suffix"
    if not _CAMERA_SUFFIXES.fullmatch(suffix):
        try:
            if looks_like_image(first_bytes(Path(path), BEGINNING)):
                return True
        except OSError:
            reason = "files that cannot be read"
    walk.left_out[reason] += 1
    return False
