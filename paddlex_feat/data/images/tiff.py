"""The pages of a TIFF file, one at a time.

OpenCV 4.8 reads the n-th page of a file by walking over all before it, and newer ones need the whole file in
memory. Here the file is mapped, and its header made to name the wanted page's directory as the first:
any page is then what cv2.imdecode finds, and costs what one page costs.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import IO

import numpy as np

from paddlex_feat.data.images.decode import MAX_FILE_BYTES, decode_with
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.errors import ImageError

SUFFIXES = frozenset((".tif", ".tiff"))
MAX_PAGES = 2**16  # of a file; a directory takes 6 bytes, so a small file can name millions
# By the first four bytes: byte order, where the header keeps the first directory's offset, then the formats of an
# offset and of a count of entries, and the bytes of an entry (TIFF 6.0, section 2; BigTIFF).
_FORMS = {
    b"II*\0": ("<", 4, "I", "H", 12),
    b"MM\0*": (">", 4, "I", "H", 12),
    b"II+\0": ("<", 8, "Q", "Q", 20),
    b"MM\0+": (">", 8, "Q", "Q", 20),
}


def page_offsets(path: str | Path) -> list[int]:
    """Where the directories of the pages stand in the file, in order; empty if the file is no TIFF that can be read.

    The last may lie beyond the end of a file that was cut off: reading that page is an error.
    """
    offsets: dict[int, None] = {}
    if not Path(path).is_file():  # opening a pipe would wait for its writer
        return []
    try:
        with Path(path).open("rb") as stream:
            order, at, offset, count, entry = _FORMS[stream.read(4)]
            following = _number(stream, at, order + offset)
            # A chain that comes back to itself ends there.
            while following and following not in offsets and len(offsets) < MAX_PAGES:
                offsets[following] = None
                entries = _number(stream, following, order + count)
                following = _number(
                    stream, following + struct.calcsize(order + count) + entries * entry, order + offset
                )
    except (OSError, ValueError, KeyError, OverflowError, struct.error):
        pass  # whoever reads the page says what is wrong
    return list(offsets)


def _number(stream: IO[bytes], at: int, form: str) -> int:
    stream.seek(at)
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])


def read_page(path: str | Path, offset: int, name: str) -> np.ndarray:
    """The page whose directory stands at `offset`: uint8 [H, W, 3], BGR. Raises ImageError, which says `name`."""
    try:
        with Path(path).open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # changed here, not in the file
        if len(content) > MAX_FILE_BYTES:
            raise OSError(None, f"more than {MAX_FILE_BYTES} bytes")
        order, at, form, _, _ = _FORMS[content[:4]]
        content[at : at + struct.calcsize(order + form)] = struct.pack(order + form, offset)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ImageError(
            f"The page cannot be read ({getattr(error, 'strerror', error)}).", where=name, fix="Check the file."
        ) from error
    return decode_with(content, name, cv2.IMREAD_COLOR)
