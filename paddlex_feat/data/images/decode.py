"""Decode image files to pixels."""

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
from paddlex_feat.data.images.source import ImageSource, box_of, crop
from paddlex_feat.errors import ImageError

log = logging.getLogger(__name__)
MAX_NAMED = 20  # damaged images that a process names
_DAMAGE = re.compile(
    r"^(Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|libpng \w+: (.*image data|IDAT))", re.MULTILINE
)
_repaired: set[str] = set()
_REPLACE = "Replace the file or take it off the list."
# A pipe is refused and not waited for. Windows has O_BINARY alone of these.
OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
MAX_FILE_BYTES = 2**30  # of an image file; a larger one is not read
MAX_READ_BYTES = 350_000_000  # bytes of one that is read whole, so that it fits beside MAX_PIXELS in 1 GiB
REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
IsLargeEnough = Callable[[int, int], bool]  # (width, height) -> whether an image of this size suffices


def decode_bgr(
    data: bytes, name: str, is_large_enough: IsLargeEnough | None = None, warnings: list[str] | None = None
) -> np.ndarray:
    """Decode an image.

    Args:
        data: content of an image file.
        name: of the image, for errors and log lines.
        is_large_enough: (width, height) -> whether an image of this size suffices. A JPEG is then decoded at 1/8, 1/4
            or 1/2 of its size, sides rounded up: the smallest size that suffices, also with its sides exchanged,
            because the header does not know of the EXIF rotation. None: at its full size.
        warnings: receives the decoder's warnings, a text for each image; None: they are logged.

    Returns:
        uint8 [H, W, 3], BGR, EXIF rotation applied, alpha dropped.

    Raises:
        ImageError: the bytes are not an image, or one that is refused (`require_admissible`).
    """
    return decode_with(
        data, name, decode_flags(frame_size(data) if is_large_enough else None, is_large_enough), warnings
    )


def decode_with(data: bytes | mmap, name: str, flags: int, warnings: list[str] | None = None) -> np.ndarray:
    """Decode an image as `decode_bgr` does, with these flags of cv2.imdecode."""
    require_admissible(data, name)
    return decode_admitted(data, name, flags, warnings)


def require_admissible(data: bytes | mmap, name: str) -> None:
    """Raise ImageError for content that `decode_admitted` must not be given."""
    if not data:
        raise ImageError("The image file is empty.", where=name, fix=_REPLACE, code="image-empty")
    require_decodable(data, name)


def decode_admitted(data: bytes | mmap, name: str, flags: int, warnings: list[str] | None = None) -> np.ndarray:
    """Decode an image as `decode_with` does, after `require_admissible`."""
    buffer = np.frombuffer(data, np.uint8)
    listened = data[:1] in (b"\xff", b"\x89")  # libjpeg and libpng print; the other decoders do not
    try:
        if listened:
            image, said = decoder_warnings.listen(lambda: cv2.imdecode(buffer, flags))
        else:
            image, said = cv2.imdecode(buffer, flags), ""
    except cv2.error as error:  # e.g. more pixels than MAX_PIXELS
        raise ImageError(
            f"The image cannot be decoded ({error.err or error}).", where=name, fix=_REPLACE, code="image-undecodable"
        ) from error
    if image is None:
        reason = " (the file ends early)" if ends_early(data) else f" ({said.splitlines()[-1]})" if said else ""
        raise ImageError(f"The image cannot be decoded{reason}.", where=name, fix=_REPLACE, code="image-undecodable")
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
    """Decode an image as `decode_bgr` does, to RGB."""
    return cv2.cvtColor(decode_bgr(data, name), cv2.COLOR_BGR2RGB)


def read_bgr(
    path: str | Path, is_large_enough: IsLargeEnough | None = None, warnings: list[str] | None = None
) -> np.ndarray:
    """Read and decode an image file, as `decode_bgr` does; a box is cut out of the picture at its full size.

    Raises ImageError if it cannot be read.
    """
    box = box_of(path)
    image = decode_bgr(read_content(path), str(path), None if box else is_large_enough, warnings)
    return crop(image, box, str(path)) if box else image


def read_rgb(
    path: str | Path, is_large_enough: IsLargeEnough | None = None, warnings: list[str] | None = None
) -> np.ndarray:
    """Read and decode an image file as `read_bgr` does, to RGB."""
    return cv2.cvtColor(read_bgr(path, is_large_enough, warnings), cv2.COLOR_BGR2RGB)


def decode_flags(size: tuple[int, int] | None, is_large_enough: IsLargeEnough | None) -> int:
    """Flags of cv2.imdecode for a JPEG of this (width, height); None: for other images."""
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
    """The bytes of an image file, and a number that changes when the file is replaced or written to."""
    source = path if isinstance(path, ImageSource) else ImageSource("", str(path))
    try:
        descriptor = os.open(source.file, OPEN_FLAGS)
        try:
            status = os.fstat(descriptor)
            size = status.st_size - source.start if source.length is None else source.length
            if not stat.S_ISREG(status.st_mode) or size > MAX_READ_BYTES:
                raise OSError(None, f"not a file of at most {MAX_READ_BYTES} bytes")
            if source.start:
                os.lseek(descriptor, source.start, os.SEEK_SET)
            data = os.read(descriptor, size)
            while len(data) < size and (more := os.read(descriptor, size - len(data))):
                data += more  # a network's file system may give less at once
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"The image cannot be read ({getattr(error, 'strerror', error)}).",
            where=str(path),
            fix="Check the path and its permissions.",
            code="image-unreadable",
        ) from error
    changed = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return data, hash((str(path), changed))
