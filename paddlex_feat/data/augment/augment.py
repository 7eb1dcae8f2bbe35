"""Training augmentation: image file to an 8-bit square, one random generator a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from paddlex_feat.data.augment import geometry, rand_augment
from paddlex_feat.data.augment.rand_augment import Chosen, RandAugment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.images.preprocess import Preprocess


@dataclass(frozen=True)
class Plan:
    """All that chance decides about one sample; it holds for an image of any size.

    Attributes:
        flip: mirror left and right.
        degrees: of the rotation, anti-clockwise; None for no rotation.
        place: offsets of the crop (down, right), as parts of the room there is, 0..1.
        zoom: part taken off the side of the padded crop.
        share: position in the range of areas of the area crop, 0..1.
        aspect: width / height of the area crop.
        ops: operations of RandAugment.
        brightness, contrast: factors.
    """

    flip: bool
    degrees: float | None
    place: tuple[float, float]
    zoom: float
    share: float
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
        """Image file -> uint8 [size, size, 3], RGB, all randomness from `rng`. Raises ImageError."""
        plan = self.draw(rng)

        def is_large_enough(width: int, height: int) -> bool:
            return self._suffices(plan, preprocess.size, width, height)

        image = (cache.read_bgr if cache else read_bgr)(path, is_large_enough if self.reduced_decode else None)
        return self.apply(plan, image, preprocess, bgr=True)

    def __call__(self, image: np.ndarray, preprocess: Preprocess, rng: np.random.Generator) -> np.ndarray:
        """uint8 [H, W, 3], RGB -> uint8 [size, size, 3], RGB, all randomness from `rng`."""
        return self.apply(self.draw(rng), image, preprocess)

    def draw(self, rng: np.random.Generator) -> Plan:
        """A plan. The numbers drawn are the same whatever is switched on, but for RandAugment, drawn last."""
        flip, rotated, down, right, zoom, share = rng.random(6).tolist()
        degrees = rng.uniform(-self.rotation_degrees, self.rotation_degrees)
        aspect = rng.uniform(*self.ratio)
        brightness, contrast = (1 + rng.uniform(-most, most) for most in (self.brightness, self.contrast))
        return Plan(
            flip=flip < self.flip_prob,
            degrees=degrees if rotated < self.rotation_prob else None,
            place=(down, right),
            zoom=zoom * self.zoom,
            share=share,
            aspect=aspect,
            ops=self.rand_augment.draw(rng),
            brightness=brightness,
            contrast=contrast,
        )

    def apply(self, plan: Plan, image: np.ndarray, preprocess: Preprocess, bgr: bool = False) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [size, size, 3], RGB; `bgr` says that the image is BGR."""
        area = self.crop == "random_resized_crop"
        image = self._area(plan, image, preprocess) if area else self._padded(plan, image, preprocess)
        if bgr:  # not before: the image is small now
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        image = rand_augment.apply(image, plan.ops)
        if area and plan.degrees is not None:
            image = geometry.rotate(image, plan.degrees, self.rotation_interpolation)
        return self._light(plan, image)

    def _padded(self, plan: Plan, image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
        window = geometry.padded_window(preprocess.size, self.pad, plan.zoom, plan.place)
        transform = geometry.fused if self.fused else geometry.stepwise
        return transform(image, preprocess, window, plan.flip, plan.degrees, self.rotation_interpolation)

    def _area(self, plan: Plan, image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
        window = self._area_window(plan, *image.shape[:2])
        return geometry.area_crop(image, window, preprocess.size, plan.flip)

    def _area_window(self, plan: Plan, height: int, width: int) -> geometry.Window:
        return geometry.area_window(height, width, self.scale, plan.share, plan.aspect, plan.place)

    def _suffices(self, plan: Plan, size: int, width: int, height: int) -> bool:
        """Whether what becomes size x size pixels has as many in an image of this size."""
        if self.crop == "random_resized_crop":
            window = self._area_window(plan, height, width)
            return min(window.height, window.width) >= size
        side = size - int(plan.zoom * size)
        return min(width, height) * side >= size * size

    def _light(self, plan: Plan, image: np.ndarray) -> np.ndarray:
        if not self.brightness and not self.contrast:
            return image
        # About mid-grey of the brightened image; one table serves all 8-bit values.
        table = (np.arange(256) * plan.brightness - 128) * plan.contrast + 128
        return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))
