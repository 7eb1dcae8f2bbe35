"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719), with the 15 operations of timm's policy rand-m7-mstd0.5-inc1.

Results are bit for bit those of Pillow. Where a table of 256 values gives the same bits, the table is used, because
it saves the conversion to Pillow's image and back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from paddlex_feat.data.images.opencv import cv2

FILL = (124, 116, 104)  # ImageNet's mean colour, for what a geometric operation leaves uncovered
MAX_MAGNITUDE = 10.0  # the largest magnitude
VALUES = np.arange(256)

Chosen = tuple[str, float]  # an operation's name and its argument, sign included


@dataclass(frozen=True)
class RandAugment:
    """A random sequence of colour and geometric operations, all of about one magnitude.

    Attributes:
        num_ops: number of operations drawn, with replacement; 0 turns RandAugment off.
        prob: probability that a drawn operation is applied.
        magnitude: mean of the normal distribution of the magnitude, which is clipped to 0..10.
        magnitude_std: its standard deviation.
    """

    num_ops: int = 0
    prob: float = 0.5
    magnitude: float = 7.0
    magnitude_std: float = 0.5

    def sample_ops(self, rng: np.random.Generator) -> tuple[Chosen, ...]:
        """The operations to apply, in order."""
        chosen: list[Chosen] = []
        for number in rng.integers(len(NAMES), size=self.num_ops):
            applied, sign = rng.random() < self.prob, 1 if rng.random() < 0.5 else -1
            magnitude = min(max(rng.normal(self.magnitude, self.magnitude_std), 0.0), MAX_MAGNITUDE)
            if applied:
                name = NAMES[number]
                chosen.append((name, argument(name, magnitude, sign)))
        return tuple(chosen)


def argument(name: str, magnitude: float, sign: int) -> float:
    """The argument of an operation at a magnitude of 0..10; `sign` (1 or -1) matters for those with two directions."""
    return OPERATIONS[name][0](magnitude / MAX_MAGNITUDE, sign)


def apply(image: np.ndarray, chosen: tuple[Chosen, ...]) -> np.ndarray:
    """uint8 [H, W, 3], RGB -> the same shape, the operations applied in order."""
    for name, value in chosen:
        image = OPERATIONS[name][1](image, value)
    return image


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace values by a table, [256] or [256, 3]; the table is clipped to 8 bits."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table if table.ndim == 1 else table[None])


def _histograms(image: np.ndarray) -> np.ndarray:
    """int64 [3, 256]."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts).astype(np.int64)


def _auto_contrast(image: np.ndarray, _: float) -> np.ndarray:
    table = np.stack([VALUES] * 3, axis=1).astype(np.float64)
    for channel, counts in enumerate(_histograms(image)):
        low, high = np.flatnonzero(counts)[[0, -1]]
        if high > low:
            scale = 255.0 / (high - low)
            table[:, channel] = VALUES * scale + -low * scale
    return _look_up(image, table)


def _equalize(image: np.ndarray, _: float) -> np.ndarray:
    table = np.stack([VALUES] * 3, axis=1)
    for channel, counts in enumerate(_histograms(image)):
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step:
            before = np.cumsum(counts) - counts
            table[:, channel] = (step // 2 + before) // step
    return _look_up(image, table)


def _invert(image: np.ndarray, _: float) -> np.ndarray:
    return cv2.bitwise_not(image)


def _posterize(image: np.ndarray, bits: float) -> np.ndarray:
    return _look_up(image, VALUES & ~(2 ** (8 - int(bits)) - 1))


def _solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    return _look_up(image, np.where(threshold > VALUES, VALUES, 255 - VALUES))


def _solarize_add(image: np.ndarray, amount: float) -> np.ndarray:
    return _look_up(image, np.where(VALUES < 128, VALUES + int(amount), VALUES))


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(image, VALUES.astype(np.float32) * np.float32(factor))  # Pillow blends in float32, truncating


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    turned = Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)
    return np.asarray(turned)


def _affine(image: np.ndarray, *matrix: float) -> np.ndarray:
    source = Image.fromarray(image)
    bicubic = Image.Resampling.BICUBIC
    moved = source.transform(source.size, Image.Transform.AFFINE, matrix, resample=bicubic, fillcolor=FILL)
    return np.asarray(moved)


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[np.ndarray, float], np.ndarray]:
    return lambda image, factor: np.asarray(enhancer(Image.fromarray(image)).enhance(factor))


def _nothing(part: float, sign: int) -> float:
    return 0.0


def _factor(part: float, sign: int) -> float:
    return 1 + sign * 0.9 * part


def _shear(part: float, sign: int) -> float:
    return sign * 0.3 * part


def _shift(part: float, sign: int) -> float:
    return sign * 0.45 * part


# Name: (argument from (magnitude / 10, sign), the operation).
OPERATIONS: dict[str, tuple[Callable[[float, int], float], Callable[[np.ndarray, float], np.ndarray]]] = {
    "AutoContrast": (_nothing, _auto_contrast),
    "Equalize": (_nothing, _equalize),
    "Invert": (_nothing, _invert),
    "Rotate": (lambda part, sign: sign * 30 * part, _rotate),
    "Posterize": (lambda part, sign: 4 - int(4 * part), _posterize),
    "Solarize": (lambda part, sign: 256 - int(256 * part), _solarize),
    "SolarizeAdd": (lambda part, sign: int(110 * part), _solarize_add),
    "Color": (_factor, _enhanced(ImageEnhance.Color)),
    "Contrast": (_factor, _enhanced(ImageEnhance.Contrast)),
    "Brightness": (_factor, _brightness),
    "Sharpness": (_factor, _enhanced(ImageEnhance.Sharpness)),
    "ShearX": (_shear, lambda image, shear: _affine(image, 1, shear, 0, 0, 1, 0)),
    "ShearY": (_shear, lambda image, shear: _affine(image, 1, 0, 0, shear, 1, 0)),
    "TranslateX": (_shift, lambda image, part: _affine(image, 1, 0, part * image.shape[1], 0, 1, 0)),
    "TranslateY": (_shift, lambda image, part: _affine(image, 1, 0, 0, 0, 1, part * image.shape[0])),
}
NAMES = tuple(OPERATIONS)
