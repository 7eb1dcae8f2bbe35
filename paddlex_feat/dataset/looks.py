"""What an image looks like: a perceptual hash, and whether it shows anything."""

from __future__ import annotations

import cv2
import numpy as np

_FLAT = 8  # grey levels; an image of less contrast looks like any other
_STEP = 2  # grey levels; a smaller difference between cells may be noise
_DARK, _BRIGHT = 32, 223  # grey levels; a picture wholly below or above shows next to nothing
_TAIL = 0.001  # share of the pixels at either end that do not count: dead pixels, a date stamp's dot


def perceptual_hash(image: np.ndarray) -> str:
    """640 bits, as hex, that small changes of size, light and compression leave alone; "" for flat images.

    Where do neighbouring cells of a grid of mean green grow brighter, along rows and along columns (a
    difference hash both ways)? 128 bits of a 9 x 9 grid, then 512 bits of a 17 x 17 grid.

    image: uint8 [H, W, 3].
    """
    step_y, step_x = max(1, image.shape[0] // 64), max(1, image.shape[1] // 64)
    grey = np.ascontiguousarray(image[::step_y, ::step_x, 1])  # green is most of what the eye sees as brightness
    bits = []
    for side in (8, 16):
        grid = cv2.resize(grey, (side + 1, side + 1), interpolation=cv2.INTER_AREA).astype(np.int16)
        if side == 8 and grid.max() - grid.min() < _FLAT:
            return ""
        bits.append((grid[:side, 1:] - grid[:side, :-1] > _STEP).ravel())
        bits.append((grid[1:, :side] - grid[:-1, :side] > _STEP).ravel())
    return np.packbits(np.concatenate(bits)).tobytes().hex()


def emptiness(image: np.ndarray) -> tuple[str, int, int]:
    """("blank", "dark", "bright" or "", darkest, brightest level) of an image that shows next to nothing.

    blank: all pixels within 8 levels in every channel. dark: none is brighter than 32 of 255; bright: none is darker
    than 223. One pixel in a thousand may be otherwise, which noise and dead pixels are.

    image: uint8 [H, W, 3].
    """
    step_y, step_x = max(1, image.shape[0] // 32), max(1, image.shape[1] // 32)
    sample = np.ascontiguousarray(image[::step_y, ::step_x]).reshape(-1, 3)
    lows, highs = sample.min(axis=0).tolist(), sample.max(axis=0).tolist()
    low, high = min(lows), max(highs)
    if low < _BRIGHT and high > _DARK and any(h - w >= _FLAT for w, h in zip(lows, highs, strict=True)):
        return "", low, high  # nearly every image, by a thousand of its pixels
    low, high = levels(image)
    if max(np.subtract(*levels(image[..., c])[::-1]) for c in range(3)) < _FLAT:
        return "blank", low, high
    return "dark" if high <= _DARK else "bright" if low >= _BRIGHT else "", low, high


def levels(pixels: np.ndarray) -> tuple[int, int]:
    """The levels between which all but _TAIL of the values lie at either end."""
    counts = np.bincount(pixels.ravel(), minlength=256).cumsum()
    spare = _TAIL * counts[-1]
    return int(np.searchsorted(counts, spare, "right")), int(np.searchsorted(counts, counts[-1] - spare, "left"))


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an image [H, W, C], as stored, turned as the EXIF tag Orientation (1 to 8) asks."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return image[rows, columns]
