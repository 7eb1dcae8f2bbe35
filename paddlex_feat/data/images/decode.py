"""Encoded image bytes to pixels."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

import numpy as np

from paddlex_feat.data.images import decoder_warnings
from paddlex_feat.data.images.formats import ends_early, require_decodable
from paddlex_feat.data.images.jpeg import frame_size
from paddlex_feat.data.images.limits import MAX_PIXELS
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.errors import ImageError
from paddlex_feat.fileio.reading import open_flags

log = logging.getLogger(__name__)
MAX_NAMED = 20  # damaged images that a process names
_DAMAGE = re.compile(
    r"^(Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|libpng \w+: (.*image data|IDAT))", re.MULTILINE
)
_repaired: set[str] = set()
MAX_FILE_BYTES = 2**30  # of an image file; a larger one is not read
MAX_READ_BYTES = 350_000_000  # bytes of one that is read whole, so that it fits beside MAX_PIXELS in 1 GiB
REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
SizeTest = Callable[[int, int], bool]  # of (width, height): is an image of this size large enough?

SUFFIXES = frozenset(
    f".{s}"
    for s in ("bmp", "dib", "gif", "jfi", "jfif", "jif", "jpe", "jpeg", "jpg", "pjp", "pjpeg", "png", "webp",
              "pbm", "pgm", "ppm", "pnm", "sr", "ras", "tif", "tiff")
)  # fmt: skip


def decode_bgr(
    data: bytes, name: str, is_large_enough: SizeTest | None = None, warnings: list[str] | None = None
) -> np.ndarray:
    """Pixels of an encoded image: uint8 [H, W, 3], BGR, EXIF rotation applied, alpha dropped.

    With `is_large_enough`, a JPEG is decoded at 1/8, 1/4 or 1/2 of its size, sides rounded up: the
    smallest that is enough either way round, for the header does not know of the EXIF rotation.

    warnings: receives what the decoder repaired, a text for each image; without it that is logged, with `name`.

    Raises ImageError naming `name` if the bytes are not an image.
    """
    return decode_with(
        data, name, decode_flags(frame_size(data) if is_large_enough else None, is_large_enough), warnings
    )


def decode_with(data: bytes | mmap, name: str, flags: int, warnings: list[str] | None = None) -> np.ndarray:
    """As `decode_bgr`, with the flags of cv2.imdecode."""
    require_admissible(data, name)
    return decode_admitted(data, name, flags, warnings)


def require_admissible(data: bytes | mmap, name: str) -> None:
    """Raise ImageError for what `decode_admitted` must not be given."""
    if not data:
        raise ImageError("The image file is empty.", where=name, fix="Replace the file or take it off the list.")
    require_decodable(data, name)


def decode_admitted(data: bytes | mmap, name: str, flags: int, warnings: list[str] | None = None) -> np.ndarray:
    """As `decode_with`, of what `require_admissible` has admitted."""
    buffer = np.frombuffer(data, np.uint8)
    listened = data[:1] in (b"\xff", b"\x89")  # libjpeg and libpng print; the other decoders do not
    try:
        if listened:
            image, said = decoder_warnings.listen(lambda: cv2.imdecode(buffer, flags))
        else:
            image, said = cv2.imdecode(buffer, flags), ""
    except cv2.error as error:  # e.g. more pixels than MAX_PIXELS
        raise ImageError(
            f"The image cannot be decoded ({error.err or error}).", where=name, fix="Replace or remove it."
        ) from error
    if image is None:
        reason = " (the file ends early)" if ends_early(data) else f" ({said.splitlines()[-1]})" if said else ""
        raise ImageError(
            f"The image cannot be decoded{reason}.", where=name, fix="Replace the file or take it off the list."
        )
    if said and warnings is None:
        on_repair(name, said)
    elif said and warnings is not None:
        warnings.append(said)
    return image


def log_repair(name: str, said: str) -> None:
    """Warn of damaged data, once for each of the first MAX_NAMED files of this process."""
    if not is_damage(said):
        log.debug("%s: %s", name, said)
    elif name not in _repaired and len(_repaired) <= MAX_NAMED:
        _repaired.add(name)
        if len(_repaired) > MAX_NAMED:
            log.warning("More than %d images have damaged data; mode check_dataset lists all of them.", MAX_NAMED)
        else:
            log.warning("%s: its data are damaged, and parts of the picture are wrong (%s).", name, first_damage(said))


on_repair = log_repair  # a decoding process reports to the one that logs


def is_damage(said: str) -> bool:
    """Whether a decoder's warnings are about pixels, not about odd metadata."""
    return bool(_DAMAGE.search(said))


def first_damage(said: str) -> str:
    """The first of a decoder's warnings that is about pixels; "" if none is."""
    return next((line for line in said.splitlines() if is_damage(line)), "")


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """As `decode_bgr`, in RGB order."""
    return cv2.cvtColor(decode_bgr(data, name), cv2.COLOR_BGR2RGB)


def read_bgr(
    path: str | Path, is_large_enough: SizeTest | None = None, warnings: list[str] | None = None
) -> np.ndarray:
    """Pixels of an image file, as `decode_bgr`. Raises ImageError if it cannot be read."""
    return decode_bgr(read_content(path), str(path), is_large_enough, warnings)


def read_rgb(
    path: str | Path, is_large_enough: SizeTest | None = None, warnings: list[str] | None = None
) -> np.ndarray:
    """As `read_bgr`, in RGB order."""
    return cv2.cvtColor(read_bgr(path, is_large_enough, warnings), cv2.COLOR_BGR2RGB)


def decode_flags(size: tuple[int, int] | None, is_large_enough: SizeTest | None) -> int:
    """How cv2.imdecode should decode a JPEG of this (width, height), or another image (None)."""
    if is_large_enough is None or size is None or size[0] * size[1] > MAX_PIXELS:
        return cv2.IMREAD_COLOR
    for factor, flag in REDUCED:
        width, height = (-(-side // factor) for side in size)
        if is_large_enough(width, height) and is_large_enough(height, width):
            return flag
    return cv2.IMREAD_COLOR


def read_content(path: str | Path) -> bytes:
    """The bytes of an image file. Raises ImageError if they cannot be read."""
    return read_identified(path)[0]


def read_identified(path: str | Path) -> tuple[bytes, int]:
    """As `read_content`, with a number that differs once the file at this path is another, or has been written to."""
    try:
        descriptor = os.open(path, os.O_RDONLY | open_flags("O_NONBLOCK"))  # a pipe is refused, not waited for
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_READ_BYTES:
                raise OSError(None, f"no file of at most {MAX_READ_BYTES} bytes")
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
                data += more  # a network's file system may give less at once
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"The image cannot be read ({getattr(error, 'strerror', error)}).",
            where=str(path),
            fix="Check the path and its permissions.",
        ) from error
    changed = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return data, hash((str(path), changed))
