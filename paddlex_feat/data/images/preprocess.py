"""The one pre-processing that training, evaluation, export and prediction share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.transform_ops import MEAN, STD, Misformed, NotFollowed, options_of
from paddlex_feat.errors import WeightsError

_MAX_SIDE = 4096  # side of the network's input, in pixels
INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize to a square without keeping the aspect, then (x * scale - mean) / std per channel.

    Attributes:
        size: side in pixels.
        interpolation: "bilinear" or "bicubic", OpenCV's, without antialiasing.
        mean, std: per RGB channel, in units of 1 / scale.
        scale: factor on 8-bit values.
    """

    size: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    scale: float = 1 / 255

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [size, size, 3]."""
        if image.shape[:2] == (self.size, self.size):
            return image
        return cv2.resize(image, (self.size, self.size), interpolation=INTERPOLATION[self.interpolation])

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Factor and offset per channel, float32 [3] each: normalised = pixel * factor + offset."""
        std = np.asarray(self.std, np.float64)
        factor = self.scale / std
        offset = -np.asarray(self.mean, np.float64) / std
        return factor.astype(np.float32), offset.astype(np.float32)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], contiguous."""
        factor, offset = self.affine()
        # The 256 values that a pixel can have, by the same float32 arithmetic: one pass, where that takes three.
        tables = (np.arange(256, dtype=np.float32)[:, None] * factor + offset).T
        out = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
        for image, planes in zip(images, out, strict=True):
            for plane, table, target in zip(cv2.split(image), tables, planes, strict=True):
                cv2.LUT(plane, np.ascontiguousarray(table), dst=target)
        return out

    def to_ops(self) -> list[dict[str, Any]]:
        """The `PreProcess.transform_ops` of inference.yml."""
        resize = {
            "backend": "cv2",
            "interpolation": self.interpolation,
            "return_numpy": False,
            "size": [self.size, self.size],
        }
        normalise = {
            "channel_num": 3,
            "mean": list(self.mean),
            "order": "hwc",
            "scale": self.scale,
            "std": list(self.std),
        }
        return [{"ResizeImage": resize}, {"NormalizeImage": normalise}, {"ToCHWImage": None}]

    @classmethod
    def from_ops(cls, ops: list[dict[str, Any]], name: str) -> Preprocess:
        """Read `PreProcess.transform_ops`. Raises WeightsError, naming `name`, on what is not implemented."""
        try:
            result = cls(**options_of(ops))
        except NotFollowed as error:
            raise WeightsError(
                f"The model wants its images prepared otherwise: {error}.",
                where=f"{name}: PreProcess.transform_ops",
                fix=f"Use a model that resizes to a square, by {' or '.join(INTERPOLATION)} interpolation, and "
                "normalises RGB, as those of mode export do.",
            ) from error
        except Misformed as error:
            raise WeightsError(
                f"PreProcess.transform_ops {error}.", where=name, fix="Correct the file, or export the model again."
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            raise WeightsError(
                f"PreProcess.transform_ops is not understood ({type(error).__name__}: {error}).",
                where=name,
                fix="Export the model again.",
            ) from error
        with np.errstate(all="ignore"):  # float32 may not hold what float64 does
            factor, offset = result.affine()
            whitest = 255 * factor + offset
        if not (np.isfinite(whitest).all() and factor.all()):
            raise WeightsError(
                "mean, std or scale of NormalizeImage holds no usable number.", where=name, fix="Export again."
            )
        if result.interpolation not in INTERPOLATION or not 1 <= result.size <= _MAX_SIDE:
            raise WeightsError(
                f"Unsupported resize: size {result.size}, interpolation {result.interpolation}.",
                where=name,
                fix=f"Possible are squares of at most {_MAX_SIDE} px, by {' or '.join(INTERPOLATION)} interpolation.",
            )
        return result
