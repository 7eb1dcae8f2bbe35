"""Damage to image data that no decoder warns of."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from paddlex_feat.data.images.decoder_warnings import listen
from paddlex_feat.data.images.jpeg import Layout, end_of_image
from paddlex_feat.data.images.pillow import open_image

_HOLE = bytes(16)
_COMPRESSION, _DEFLATE = 259, (8, 32946)  # the TIFF tag, and its values
_TIFF_PARTS = ((273, 279), (324, 325))  # tags with offsets and sizes of strips, of tiles
_CLIP = 6  # grey levels; what an edge in the picture adds to a step between two blocks at most
_SAMPLES = 4  # pixels of a block's edge that are looked at, which is faster and finds nearly as much
_STEP = 3.0  # a step, in units of its spread along the row of blocks
_SUSPICIOUS = 1.8  # as _STEP, where shading counts too: below it nothing more is looked at
_NOISE = 0.25  # grey levels squared, of a step between blocks of a smooth area
_FEWEST_COLUMNS, _FEWEST_ROWS = 8, 3  # of blocks, for a spread to mean anything
_WHOLE, _NONE = 0.6, 0.4  # of the step: at least, where it must be, and at most, where it must not be


def hole(data: bytes, layout: Layout) -> int:
    """Offset of a run of 16 zero bytes in the first scan of a JPEG that no encoder writes; 0 if there is none.

    Zero bits are a code for coefficients, as a rule of -1 each, and 128 of them in a row are not a picture. Where
    they are the code for the end of a block, they are a flat area, and progressive scans may hold long runs too:
    there nothing is looked for.
    """
    if not layout.first_scan or layout.mcu == (0, 0) or layout.zeros_are_flat:
        return 0
    words = np.frombuffer(data, np.uint64, (len(data) - layout.first_scan) // 8, layout.first_scan)
    if words.all():  # each hole has a word of zeros; several times faster than to search for the hole
        return 0
    at = data.find(_HOLE, layout.first_scan)
    return at if 0 < at < end_of_image(data) else 0  # anything may follow the end


def has_step(grey: np.ndarray, mcu: tuple[int, int]) -> bool:
    """Whether brightness jumps within a row of blocks of a JPEG, and stays so.

    Each block's mean is coded as the difference to the block before it. Where bytes were lost or doubled and the
    decoder found back to the blocks, all that follows is too bright or too dark by a constant. So exactly one row's
    length of consecutive blocks, from the place of the damage on, differs from the blocks above by that constant.
    Edges of the picture that lie exactly between two rows of blocks begin with a row.

    Args:
        grey: brightness, uint8 [H, W], as stored in the file, not rotated.
        mcu: width and height of a block (minimum coded unit) in pixels.
    """
    width, height = mcu
    columns, rows = (grey.shape[1] // width, (grey.shape[0] - 2) // height) if width and height else (0, 0)
    if columns < _FEWEST_COLUMNS or rows < _FEWEST_ROWS:
        return False
    every = width // _SAMPLES
    some = grey[:, every // 2 : columns * width : every]
    above, below = (some[height + i :: height][: rows - 1].astype(np.int16) for i in (-1, 0))
    jump = below - above
    if _row_steps(_block_means(jump), columns)[1].max() < _SUSPICIOUS**2:
        return False  # nearly every image, at half the cost
    above_2, below_2 = (some[height + i :: height][: rows - 1].astype(np.int16) for i in (-2, 1))
    # Less half the change within each block: shading that goes on across the edge counts as nothing.
    return _is_step(_block_means(jump - (below_2 - above_2 - jump) / 2), columns)


def _block_means(jump: np.ndarray) -> np.ndarray:
    """float32 [blocks]: how much brighter each block begins than the one above ends, in levels, in reading order."""
    samples = np.clip(jump, -_CLIP, _CLIP).astype(np.float32).reshape(-1, _SAMPLES)
    means: np.ndarray = samples @ np.full(_SAMPLES, 1 / _SAMPLES, np.float32)  # faster than a mean of so few
    return means


def _row_steps(steps: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """For each block, of as many blocks from it on as a row has: their mean, and its square in units of the spread."""
    sums, squares = np.cumsum(steps, dtype=np.float64), np.cumsum(steps * steps, dtype=np.float64)
    mean = (sums[columns:] - sums[:-columns]) / columns
    size = mean * mean
    size /= (squares[columns:] - squares[:-columns]) / columns - size + _NOISE
    return mean, size


def _is_step(steps: np.ndarray, columns: int) -> bool:
    """Whether one row's length of blocks, which does not begin with a row, differs by a constant, and no more."""
    mean, size = _row_steps(np.concatenate(([0], steps)), columns)
    start = int(size.argmax())
    column = start % columns
    if size[start] < _STEP**2 or not 2 <= column <= columns - 2:
        return False
    relative = steps / mean[start]
    turn, end = start + columns - column, start + columns  # in the next row of blocks
    within = (relative[start:turn], relative[turn:end])
    beside = (relative[start - column : start], relative[end : end + columns - column])
    return min(part.mean() for part in within) > _WHOLE and all(
        abs(part.mean()) < _NONE for part in beside if len(part)
    )


def tiff_error(data: bytes) -> str:
    """What is wrong with the compressed data of a TIFF file, which OpenCV fills where they are damaged; "" for nothing.

    Nothing is known of uncompressed files, and of kinds of TIFF that Pillow does not read.
    """
    error, _ = listen(lambda: _tiff_failure(data), ("",))  # libtiff's lines name a file of Pillow's own
    return str(error) if isinstance(error, (OSError, zlib.error)) else ""


def _tiff_failure(data: bytes) -> Exception | None:
    opened = False
    try:
        with open_image(data) as image:
            opened = True
            tags: Any = getattr(image, "tag_v2", {})
            parts = [(tags[at], tags[size]) for at, size in _TIFF_PARTS if at in tags and size in tags]
            deflated = tags.get(_COMPRESSION) in _DEFLATE
            image.load()
            for offsets, sizes in parts if deflated else []:  # libtiff does not look at the checksums
                for offset, size in zip(offsets, sizes, strict=True):
                    _inflate(data[offset : offset + size])
    except Exception as error:  # noqa: BLE001 - for `tiff_error`
        return error if opened else None  # None: a kind that Pillow does not know, and OpenCV has read
    return None


def _inflate(data: bytes) -> None:
    """Raise zlib.error for data that were changed. What they hold is not kept."""
    inflater = zlib.decompressobj()
    while data and not inflater.eof:
        inflater.decompress(data, 2**20)
        data = inflater.unconsumed_tail


def has_converted_line_ends(data: bytes) -> bool:
    """Whether every byte 0A follows a 0D, as after a transfer as text. By chance that is so in 1 of 2^64 files.

    Not of PNM files, whose header is text with any line ends.
    """
    return data[:1] != b"P" and data.count(b"\n") == data.count(b"\r\n") >= 8
