"""Hold out a part of the training images, to choose weights on images that gallery and query have no part in."""

from __future__ import annotations

import numpy as np

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError

LEAST = 2  # classes that training and validation need; held-out images that a class needs, one to find another


def hold_out(train: ImageList, percent: int, by: str, seed: int) -> tuple[ImageList, ImageList]:
    """Divide the training images into those that are trained on and those that are held out.

    Args:
        train: the training images.
        percent: share that is held out: of the classes with at least two images, or of the images of each class.
        by: "classes" holds out whole classes; "images" a part of each class with at least four images, two or more.
        seed: the same seed and labels give the same draw.

    Returns:
        The lists of the trained and of the held-out images, in their former order and with their lines.

    Raises:
        DatasetError: fewer than two classes would be left to train on or to measure.
    """
    labels = np.asarray(train.labels, np.int64)
    held = _held_classes(labels, percent, seed) if by == "classes" else _held_images(labels, percent, seed)
    trained = len(np.unique(labels[~held]))
    if min(trained, len(np.unique(labels[held]))) < LEAST:
        raise _impossible(labels, by, train.title)
    return train.part(np.flatnonzero(~held).tolist()), train.part(np.flatnonzero(held).tolist())


def _held_classes(labels: np.ndarray, percent: int, seed: int) -> np.ndarray:
    """Mask of the images of the held-out classes, bool [images]."""
    classes, counts = np.unique(labels, return_counts=True)
    candidates = _rng(seed).permutation(classes[counts >= LEAST])
    count = max(LEAST, round(len(candidates) * percent / 100))
    return np.isin(labels, candidates[:count])


def _held_images(labels: np.ndarray, percent: int, seed: int) -> np.ndarray:
    """Mask of the held-out images of each class, bool [images]."""
    rng, held = _rng(seed), np.zeros(len(labels), bool)
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    for members in np.split(order, starts[1:]):
        if len(members) >= 2 * LEAST:
            count = min(max(LEAST, round(len(members) * percent / 100)), len(members) - LEAST)
            held[rng.permutation(members)[:count]] = True
    return held


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, 4))  # 1 and 3 are the keys of the sampler and of dropout


def _impossible(labels: np.ndarray, by: str, title: str) -> DatasetError:
    _, counts = np.unique(labels, return_counts=True)
    if by == "classes":
        needed = (
            f"classes are held out, and {LEAST} must be left to train on and {LEAST} with {LEAST} images to measure"
        )
        other = "-o Train.validation_by=images holds out images of each class; "
    else:
        needed = f"images are held out, and {LEAST} classes need at least {2 * LEAST} images"
        other = ""
    return DatasetError(
        f"{title} has {len(counts)} classes of {counts.min()} to {counts.max()} images, too few for "
        f"Train.validation=split: {needed}.",
        where="Train.validation",
        fix=f"{other}-o Train.validation=queries chooses the weights on gallery and query; or add images, or change "
        "Train.validation_percent.",
        code="validation-impossible",
    )
