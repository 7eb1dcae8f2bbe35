"""The geometric steps of training augmentation, one by one and as a single warp.

Coordinates are pixel indices, so pixel i covers i - 0.5 .. i + 0.5, and a grid of n pixels over
the same extent as one of m relates to it by (x + 0.5) * m / n - 0.5, as in cv2.resize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.preprocess import INTERPOLATION, Preprocess

MAX_SIDE = 2**15 - 2  # cv2.warpAffine holds coordinates of its source in 16 bits


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels; `top` and `left` are negative where it begins in the padding."""

    top: int
    left: int
    height: int
    width: int


def padded_window(size: int, pad: int, zoom: float, offset: tuple[float, float]) -> Window:
    """The crop of an image of size x size with `pad` pixels around it, in the image's coordinates.

    `zoom` is the part taken off the side, `offset` the offsets (down, right), all in 0..1. Offsets
    go one pixel further than there is room (PaddleClas's RandCropImageV2), which cuts that axis short.
    """
    side = max(2, size - int(zoom * size))  # of which an axis that is cut short keeps one pixel
    if not pad and side == size:
        return Window(0, 0, size, size)
    top, left = (int(p * (size + 2 * pad - side + 2)) for p in offset)
    height, width = (min(side, size + 2 * pad - offset) for offset in (top, left))
    return Window(top - pad, left - pad, height, width)


def area_window(
    height: int,
    width: int,
    area: tuple[float, float],
    area_fraction: float,
    aspect: float,
    offset: tuple[float, float],
) -> Window:
    """A crop by its part of the image's area, as PaddleClas's RandCropImage chooses it.

    `area` is the range of that part and `area_fraction`, 0..1, the position in it, after both ends were
    bounded by what fits; `aspect` is width / height, `offset` the offsets (down, right) in 0..1.
    """
    largest = min(width / height / aspect, height / width * aspect)
    low, high = (min(end, largest) for end in area)
    pixels = height * width * (low + area_fraction * (high - low))
    # At least one pixel, and rounding may not lead out of the image.
    crop_width = min(max(int(math.sqrt(pixels) * math.sqrt(aspect)), 1), width)
    crop_height = min(max(int(math.sqrt(pixels) / math.sqrt(aspect)), 1), height)
    top, left = int(offset[0] * (height - crop_height + 1)), int(offset[1] * (width - crop_width + 1))
    return Window(top, left, crop_height, crop_width)


def rotate(image: np.ndarray, degrees: float, interpolation: str) -> np.ndarray:
    """Anti-clockwise about the centre, uint8 [H, W, 3] -> the same shape, black where nothing comes to lie."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=INTERPOLATION[interpolation])


def area_crop(image: np.ndarray, window: Window, size: int, flip: bool) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3]: crop, bilinear resize, flip."""
    crop = image[window.top : window.top + window.height, window.left : window.left + window.width]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(crop, 1) if flip else crop


def padded_crop_reference(
    image: np.ndarray, preprocess: Preprocess, window: Window, flip: bool, degrees: float | None, interpolation: str
) -> np.ndarray:
    """Resize, flip, pad and crop to the window, rotate, resize: uint8 [H, W, 3] -> uint8 [size, size, 3]."""
    image = preprocess.resize(image)
    if flip:
        image = cv2.flip(image, 1)
    image = _crop(image, window)
    if degrees is not None:
        image = rotate(image, degrees, interpolation)
    return preprocess.resize(image)


def padded_crop_single_warp(
    image: np.ndarray, preprocess: Preprocess, window: Window, flip: bool, degrees: float | None, interpolation: str
) -> np.ndarray:
    """As `padded_crop_reference`, but a rotated sample is interpolated once, by one warp from the source.

    Without a rotation the steps interpolate once anyway, and copying costs less than a warp. A
    source smaller than the result is enlarged first: its pixels are too coarse for the edge between
    image and black, and cv2.resize continues the outermost ones where a warp would fade to black.
    """
    if degrees is None:
        return padded_crop_reference(image, preprocess, window, flip, degrees, interpolation)
    size = preprocess.size
    if min(image.shape[:2]) < size or max(image.shape[:2]) > MAX_SIDE:
        image = preprocess.resize(image)
    rows = _visible(window.top, window.height, size, image.shape[0], False)
    columns = _visible(window.left, window.width, size, image.shape[1], flip)
    # Black beyond the window, though the source goes on there: the warp is given the window's part alone.
    view = image[rows, columns]
    if not view.size:
        return np.zeros((size, size, 3), np.uint8)
    centre = ((window.width - 1) / 2, (window.height - 1) / 2)
    turn = np.vstack([cv2.getRotationMatrix2D(centre, -degrees, 1.0), (0, 0, 1)])
    # From the result's pixels to the source's: the steps backwards, the rightmost first.
    matrix = (
        _shift(-columns.start, -rows.start)
        @ _grids((size, size), image.shape[1::-1])
        @ (_mirror(size) if flip else np.eye(3))
        @ _shift(window.left, window.top)
        @ turn
        @ _grids((size, size), (window.width, window.height))
    )
    flags = INTERPOLATION[interpolation] | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(view, matrix[:2], (size, size), flags=flags)


def _crop(image: np.ndarray, window: Window) -> np.ndarray:
    """The window of an image, black where it reaches beyond."""
    height, width = image.shape[:2]
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.height, height), min(window.left + window.width, width)
    if (bottom - top, right - left) == (window.height, window.width):
        return np.ascontiguousarray(image[top:bottom, left:right])
    out = np.zeros((window.height, window.width, 3), np.uint8)
    if bottom > top and right > left:
        down, along = top - window.top, left - window.left
        out[down : down + bottom - top, along : along + right - left] = image[top:bottom, left:right]
    return out


def _visible(start: int, length: int, size: int, source: int, mirrored: bool) -> slice:
    """The source's pixels of an axis that the window covers, to the nearest whole one."""
    low, high = min(max(start, 0), size), min(max(start + length, 0), size)
    if mirrored:
        low, high = size - high, size - low
    return slice(math.floor(low * source / size + 0.5), math.floor(high * source / size + 0.5))


def _grids(of: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """From pixels of a grid of (width, height) `of` to those of the grid `to` over the same extent."""
    x, y = to[0] / of[0], to[1] / of[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _shift(x: int, y: int) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _mirror(width: int) -> np.ndarray:
    return np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]], np.float64)
