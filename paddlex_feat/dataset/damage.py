"""Damage to image data that no decoder warns of."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from paddlex_feat.pipeline.jpeg import Layout, read_layout

_HOLE = bytes(16)
_CLIP = 6  # grey levels; what an edge in the picture adds to a step between two blocks at most
_STEP = 3.0  # a step, in units of its spread along the row of blocks
_NOISE = 0.25  # grey levels squared, of a step between blocks of a smooth area
_FEWEST_COLUMNS, _FEWEST_ROWS = 8, 3  # of blocks, for a spread to mean anything
_WHOLE, _NONE = 0.6, 0.4  # of the step: at least, where it must be, and at most, where it must not be
# Columns: luminance, blue and red less luminance, of rows blue, green, red (ITU-R BT.601).
_COLOURS = np.array([[0.114, 0.886, -0.114], [0.587, -0.587, -0.587], [0.299, -0.299, 0.701]], np.float32)


def hole(data: bytes, layout: Layout) -> int:
    """Offset of a run of 16 zero bytes in the first scan of a JPEG that no encoder writes; 0 if there is none.

    Zero bits are a code for coefficients, as a rule of -1 each, and 128 of them in a row are not a picture. Where
    they are the code for the end of a block, they are a flat area, and progressive scans may hold long runs too:
    there nothing is looked for.

    layout: of the first scan.
    """
    if not layout.first_scan or layout.mcu == (0, 0) or layout.zeros_are_flat:
        return 0
    at = data.find(_HOLE, layout.first_scan)
    return at if 0 < at < read_layout(data).end else 0  # behind the end anything may stand


def has_step(image: np.ndarray, mcu: tuple[int, int]) -> bool:
    """Whether brightness or colour jumps within a row of blocks of a JPEG, and stays so.

    Each block's mean is coded as the difference to the block before it. Where bytes were lost or doubled and the
    decoder found back to the blocks, all that follows is too bright or too dark by a constant. So exactly one row's
    length of consecutive blocks, from the place of the damage on, differs from the blocks above by that constant.
    Edges of the picture that lie exactly between two rows of blocks begin with a row.

    Args:
        image: uint8 [H, W, 3], as stored in the file, not rotated.
        mcu: width and height of a block (minimum coded unit) in pixels.
    """
    steps = _steps(image, mcu)
    if steps is None:
        return False
    columns = steps.shape[1]
    flat = steps.reshape(-1, 3).T
    sums = np.zeros((2, 3, flat.shape[1] + 1))
    np.cumsum((flat, flat * flat), axis=2, out=sums[:, :, 1:])
    mean, square = (sums[:, :, columns:] - sums[:, :, :-columns]) / columns  # of a row's length from each block on
    size = mean * mean / (square - mean * mean + _NOISE)
    channel, start = divmod(int(size.argmax()), size.shape[1])
    column = start % columns
    if size[channel, start] < _STEP**2 or not 2 <= column <= columns - 2:
        return False
    relative = flat[channel] / mean[channel, start]
    turn, end = start + columns - column, start + columns  # in the next row of blocks
    within = (relative[start:turn], relative[turn:end])
    beside = (relative[start - column : start], relative[end : end + columns - column])
    return min(part.mean() for part in within) > _WHOLE and all(
        abs(part.mean()) < _NONE for part in beside if len(part)
    )


def _steps(image: np.ndarray, mcu: tuple[int, int]) -> np.ndarray | None:
    """float32 [rows - 1, columns, 3]: luminance, blue and red difference between each block and the one above.

    Of the two rows of pixels at their common edge, less half the change within each block, so that shading
    that goes on across the edge counts as nothing. None for fewer blocks than can be judged.
    """
    width, height = mcu
    columns, rows = (image.shape[1] // width, (image.shape[0] - 2) // height) if width and height else (0, 0)
    if columns < _FEWEST_COLUMNS or rows < _FEWEST_ROWS:
        return None
    picture = image[:, : columns * width]
    above_2, above, below, below_2 = (picture[height + i :: height][: rows - 1] for i in (-2, -1, 0, 1))
    jump = cv2.subtract(below, above, dtype=cv2.CV_16S)
    inner = cv2.subtract(below_2, above_2, dtype=cv2.CV_16S)  # the jump and the changes within both blocks
    twice = np.clip(3 * jump - inner, -2 * _CLIP, 2 * _CLIP).astype(np.float32)
    blocks = twice.reshape(-1, 3 * width) @ np.tile(_COLOURS / np.float32(2 * width), (width, 1))
    return blocks.reshape(rows - 1, columns, 3)


def tiff_error(data: bytes) -> str:
    """What Pillow says against a TIFF file that OpenCV fills where its data are damaged; "" for nothing.

    Of a kind of TIFF that Pillow does not read nothing is known.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - OpenCV has read it
        return ""
    try:
        image.load()
    except OSError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - a kind that Pillow does not know
        return ""
    return ""
