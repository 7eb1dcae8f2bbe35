"""The look of an image: a perceptual hash, and whether it shows anything.

The hash is a difference hash (is a cell brighter than its neighbour?) of two grids, along rows and along columns. The
grey levels below have no outside source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paddlex_feat.data.images.opencv import cv2

_FLAT = 8  # grey levels; an image of less contrast looks like any other
_STEP = 2  # grey levels; a smaller difference between cells may be noise
_DARK, _BRIGHT = 32, 223  # grey levels; a picture wholly below or above shows next to nothing
_COUNTED = 2**20  # pixels that are counted at once
_TAIL = 0.001  # share of the pixels at either end that do not count: dead pixels, a date stamp's dot


@dataclass(frozen=True, slots=True)
class Appearance:
    """The look of an image.

    Attributes:
        phash: 640-bit perceptual hash as hex, "" for an image without contrast.
        empty: "blank", "dark" or "bright" for an image that shows next to nothing, else "".
    """

    phash: str
    empty: str


def grey_of(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W], the brightness of an image: uint8 [H, W, 3], BGR, or [H, W] already."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def appearance_of(grey: np.ndarray, colours: Callable[[], np.ndarray]) -> Appearance:
    """Hash an image, and find out whether it shows anything.

    Args:
        grey: its brightness, uint8 [H, W].
        colours: gives its pixels, uint8 [H, W, 3]; called where its brightness alone does not tell.
    """
    step_y, step_x = max(1, grey.shape[0] // 64), max(1, grey.shape[1] // 64)
    some = np.ascontiguousarray(grey[::step_y, ::step_x])
    low, high = int(some.min()), int(some.max())
    plain = high - low < _FLAT or high <= _DARK or low >= _BRIGHT  # by some thousand of its pixels
    return Appearance(_difference_hash(some), _emptiness(colours()) if plain else "")


def _difference_hash(grey: np.ndarray) -> str:
    """Bits that small changes of size, light and compression leave alone.

    Where do neighbouring cells of a grid of mean brightness grow brighter, along rows and along columns (a
    difference hash both ways)? 128 bits of a 9 x 9 grid, then 512 bits of a 17 x 17 grid.
    """
    bits = []
    for side in (8, 16):
        grid = cv2.resize(grey, (side + 1, side + 1), interpolation=cv2.INTER_AREA)
        if side == 8 and int(grid.max()) - int(grid.min()) < _FLAT:
            return ""
        for brighter in (
            cv2.subtract(grid[:side, 1:], grid[:side, :-1]),
            cv2.subtract(grid[1:, :side], grid[:-1, :side]),
        ):
            bits.append((brighter > _STEP).tobytes())  # differences below 0 become 0
    return np.packbits(np.frombuffer(b"".join(bits), np.uint8)).tobytes().hex()


def _emptiness(image: np.ndarray) -> str:
    """blank: all pixels within 8 levels in every channel; dark: none brighter than 32; bright: none darker than 223.

    One pixel in a thousand may be otherwise, as noise and dead pixels are.
    """
    ranges = [levels(image[..., c]) for c in range(3)]
    if max(high - low for low, high in ranges) < _FLAT:
        return "blank"
    low, high = levels(image)
    return "dark" if high <= _DARK else "bright" if low >= _BRIGHT else ""


def levels(pixels: np.ndarray) -> tuple[int, int]:
    """Darkest and brightest level of uint8 values, without one in a thousand at either end."""
    rows = max(1, _COUNTED * len(pixels) // max(1, pixels.size))  # NumPy counts in 8 bytes a pixel
    parts = (pixels[i : i + rows] for i in range(0, len(pixels), rows))
    counts = np.sum([np.bincount(part.ravel(), minlength=256) for part in parts], axis=0).cumsum()
    spare = _TAIL * counts[-1]
    return int(np.searchsorted(counts, spare, "right")), int(np.searchsorted(counts, counts[-1] - spare, "left"))


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an image, [H, W, C] or [H, W], as stored, turned as the EXIF tag Orientation (1 to 8) asks."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return image[rows, columns]
