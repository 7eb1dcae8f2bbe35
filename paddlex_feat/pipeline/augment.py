"""Training augmentation: decoded image to an 8-bit square, one random generator a sample."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from paddlex_feat.pipeline.preprocess import INTERPOLATION, Preprocess


@dataclass(frozen=True)
class Augment:
    """Resize, flip, padded random crop, rotation, resize; then brightness and contrast.

    The geometric steps are those of the PP-ShiTuV2_rec recipe, its crop included: offsets run
    one pixel further than the padding allows, which cuts that axis short, and the last
    resize brings it back. Fields as in the section Train.augment of the configuration.
    """

    flip_prob: float = 0.5
    pad: int = 10
    rotation_prob: float = 0.5
    rotation_degrees: float = 90.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def __call__(self, image: np.ndarray, preprocess: Preprocess, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [size, size, 3], all randomness from `rng`."""
        flags = INTERPOLATION[preprocess.interpolation]
        size = preprocess.size
        image = preprocess.resize(image)
        if rng.random() < self.flip_prob:
            image = image[:, ::-1]
        image = self._crop(image, size, rng)
        if rng.random() < self.rotation_prob:
            angle = rng.uniform(-self.rotation_degrees, self.rotation_degrees)
            height, width = image.shape[:2]
            matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
            image = cv2.warpAffine(image, matrix, (width, height), flags=flags)
        image = preprocess.resize(image)
        return self._light(image, rng)

    def _crop(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        side = size - int(rng.random() * self.zoom * size)
        if not self.pad and side == size:
            return np.ascontiguousarray(image)
        padded = cv2.copyMakeBorder(image, self.pad, self.pad, self.pad, self.pad, cv2.BORDER_CONSTANT)
        top, left = rng.integers(0, size + 2 * self.pad - side + 2, size=2)
        return np.ascontiguousarray(padded[top : top + side, left : left + side])

    def _light(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.brightness and not self.contrast:
            return image
        brightness = 1 + rng.uniform(-self.brightness, self.brightness)
        contrast = 1 + rng.uniform(-self.contrast, self.contrast)
        # About mid-grey of the brightened image; one table serves all 8-bit values.
        table = (np.arange(256) * brightness - 128) * contrast + 128
        return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))
