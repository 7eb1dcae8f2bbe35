"""Training augmentation: image file to an 8-bit square, one random generator a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from paddlex_feat.data.augment import geometry, rand_augment
from paddlex_feat.data.augment.rand_augment import Chosen, RandAugment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.preprocess import Preprocess


@dataclass(frozen=True)
class AugmentParams:
    """The random parameters of one sample, for an image of any size.

    Attributes:
        flip: mirror left and right.
        degrees: angle of the rotation, anti-clockwise; None: no rotation.
        offset: of the crop (down, right), as a fraction of the largest offset, 0..1.
        zoom: fraction taken off the side of the padded crop.
        area_fraction: position in the range of areas of the area crop, 0..1.
        aspect: width / height of the area crop.
        ops: operations of RandAugment.
        brightness: factor.
        contrast: factor.
    """

    flip: bool
    degrees: float | None
    offset: tuple[float, float]
    zoom: float
    area_fraction: float
    aspect: float
    ops: tuple[Chosen, ...]
    brightness: float
    contrast: float


@dataclass(frozen=True)
class Augment:
    """The augmentation of both recipes of PaddleClas; fields as in the section Train.augment.

    crop "pad_crop" (PP-ShiTuV2_rec): resize to a square, flip, pad with black, crop back, rotate,
    resize; then RandAugment. crop "random_resized_crop" (CLIP): crop of random area and aspect, bilinear resize,
    flip, RandAugment, rotate. Brightness and contrast come last.

    Attributes:
        crop: which of the two; pad and zoom belong to "pad_crop", scale and ratio to "random_resized_crop".
        pad: black pixels on each side before the crop.
        zoom: the crop's side is uniform in 1 - zoom .. 1 of the size.
        scale: range of the crop's part of the image's area.
        ratio: range of the crop's width / height.
        flip_prob, rotation_prob: probabilities.
        rotation_degrees: the angle is uniform in plus or minus this; black fill.
        rotation_interpolation: "bilinear" or "bicubic".
        brightness, contrast: factors are uniform in 1 - x .. 1 + x.
        rand_augment: RandAugment's settings.
        fused: interpolate a rotated padded sample once, not step by step.
        reduced_decode: `read` decodes a JPEG at 1/2, 1/4 or 1/8 where no side falls below the result's.
    """

    crop: Literal["pad_crop", "random_resized_crop"] = "pad_crop"
    pad: int = 10
    zoom: float = 0.0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    rotation_prob: float = 0.5
    rotation_degrees: float = 90.0
    rotation_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    brightness: float = 0.0
    contrast: float = 0.0
    rand_augment: RandAugment = field(default_factory=RandAugment)
    fused: bool = True
    reduced_decode: bool = True

    def read(
        self, path: str | Path, preprocess: Preprocess, rng: np.random.Generator, cache: ImageCache | None = None
    ) -> np.ndarray:
        """Read and augment an image file.

        Args:
            path: of the file.
            preprocess: gives size and interpolation.
            rng: source of all randomness.
            cache: of decoded images.

        Returns:
            uint8 [size, size, 3], RGB.

        Raises:
            ImageError: the image cannot be read or decoded.
        """
        params = self.sample_params(rng)

        def is_large_enough(width: int, height: int) -> bool:
            return self._is_large_enough(params, preprocess.size, width, height)

        image = (cache.read_bgr if cache else read_bgr)(path, is_large_enough if self.reduced_decode else None)
        return self.apply(params, image, preprocess, bgr=True)

    def __call__(self, image: np.ndarray, preprocess: Preprocess, rng: np.random.Generator) -> np.ndarray:
        """Augment an image: uint8 [H, W, 3], RGB -> uint8 [size, size, 3], RGB, all randomness from `rng`."""
        return self.apply(self.sample_params(rng), image, preprocess)

    def sample_params(self, rng: np.random.Generator) -> AugmentParams:
        """Draw the parameters of one sample.

        The other numbers do not depend on which augmentations are on: RandAugment, which needs a varying number of
        draws, comes last.
        """
        flip, rotated, down, right, zoom, area_fraction = rng.random(6).tolist()
        degrees = rng.uniform(-self.rotation_degrees, self.rotation_degrees)
        aspect = rng.uniform(*self.ratio)
        brightness, contrast = (1 + rng.uniform(-most, most) for most in (self.brightness, self.contrast))
        return AugmentParams(
            flip=flip < self.flip_prob,
            degrees=degrees if rotated < self.rotation_prob else None,
            offset=(down, right),
            zoom=zoom * self.zoom,
            area_fraction=area_fraction,
            aspect=aspect,
            ops=self.rand_augment.sample_ops(rng),
            brightness=brightness,
            contrast=contrast,
        )

    def apply(self, params: AugmentParams, image: np.ndarray, preprocess: Preprocess, bgr: bool = False) -> np.ndarray:
        """Augment with given parameters: uint8 [H, W, 3], BGR if `bgr`, else RGB -> uint8 [size, size, 3], RGB."""
        area = self.crop == "random_resized_crop"
        image = self._area(params, image, preprocess) if area else self._padded(params, image, preprocess)
        if bgr:  # not before: the image is small now
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        image = rand_augment.apply(image, params.ops)
        if area and params.degrees is not None:
            image = geometry.rotate(image, params.degrees, self.rotation_interpolation)
        return self._color_jitter(params, image)

    def _padded(self, params: AugmentParams, image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
        window = geometry.padded_window(preprocess.size, self.pad, params.zoom, params.offset)
        transform = geometry.padded_crop_single_warp if self.fused else geometry.padded_crop_reference
        return transform(image, preprocess, window, params.flip, params.degrees, self.rotation_interpolation)

    def _area(self, params: AugmentParams, image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
        window = self._area_window(params, *image.shape[:2])
        return geometry.area_crop(image, window, preprocess.size, params.flip)

    def _area_window(self, params: AugmentParams, height: int, width: int) -> geometry.Window:
        return geometry.area_window(height, width, self.scale, params.area_fraction, params.aspect, params.offset)

    def _is_large_enough(self, params: AugmentParams, size: int, width: int, height: int) -> bool:
        """Whether the part that becomes size x size pixels has at least as many in an image of this size."""
        if self.crop == "random_resized_crop":
            window = self._area_window(params, height, width)
            return min(window.height, window.width) >= size
        side = size - int(params.zoom * size)
        return min(width, height) * side >= size * size

    def _color_jitter(self, params: AugmentParams, image: np.ndarray) -> np.ndarray:
        if not self.brightness and not self.contrast:
            return image
        # About mid-grey of the brightened image; one table serves all 8-bit values.
        table = (np.arange(256) * params.brightness - 128) * params.contrast + 128
        return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))
