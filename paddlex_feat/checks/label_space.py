"""The images whose labels mean the same classes, with their features: how well each fits its label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paddlex_feat.checks.context import DataSet, Features, RecordLocation
from paddlex_feat.checks.neighbours import Neighbours, find_neighbours
from paddlex_feat.data.lists.image_list import ImageList

SHRINKAGE = 0.9  # of the covariance within the classes: a label in twenty may be wrong
MAX_DIM = 256  # numbers of a feature that are compared where there are more than MANY images
MANY = 20_000
NEAREST = 10  # images of a class that are asked at most
_OTHERS = 3 * NEAREST  # images of other classes that are looked at
_ROWS = 4096  # images whose neighbours are counted at once


@dataclass(frozen=True)
class LabelSpace:
    """Images whose labels mean the same classes.

    Attributes:
        records: of each image; an image that is in gallery and query with one label is there once.
        features: unit rows, float32 [N, D].
        classes: labels, int64 [N].
    """

    records: list[RecordLocation]
    features: np.ndarray
    classes: np.ndarray

    @cached_property
    def evened(self) -> np.ndarray:
        """The features with their variation within the classes evened out, unit rows, float32 [N, d]."""
        return even_out(self.features, self.classes)

    @cached_property
    def neighbours(self) -> Neighbours:
        """The nearest images by `evened`."""
        return find_neighbours(self.evened, self.classes, NEAREST, _OTHERS)

    @cached_property
    def own(self) -> np.ndarray:
        """Mean similarity to the nearest images of the own class, float64 [N]; nan where there is none."""
        counts = self._asked()
        sums = np.cumsum(
            np.where(self.neighbours.own >= 0, self.neighbours.own_similarity, 0), axis=1, dtype=np.float64
        )
        asked = np.minimum(counts, (self.neighbours.own >= 0).sum(axis=1))
        found = np.take_along_axis(sums, np.maximum(asked - 1, 0)[:, None], axis=1)[:, 0]
        return np.where(asked > 0, found / np.maximum(asked, 1), np.nan)

    @cached_property
    def _nearest(self) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._nearest_class(slice(i, i + _ROWS)) for i in range(0, len(self.classes), _ROWS)]
        similarity, classes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return similarity, classes

    @property
    def other(self) -> np.ndarray:
        """Mean similarity to the nearest images of the nearest other class, float64 [N]; nan where there is none."""
        return self._nearest[0]

    @property
    def other_class(self) -> np.ndarray:
        """Label of that class, int64 [N]; without meaning where there is none."""
        return self._nearest[1]

    @property
    def margin(self) -> np.ndarray:
        """How much nearer another class is than the own one, float64 [N]: above 0 if it is nearer; nan if unknown."""
        margin: np.ndarray = self.other - self.own
        return margin

    def _asked(self) -> np.ndarray:
        """Number of images that are asked of each image's class, int64 [N]: half of it, for few of it are wrong."""
        _, inverse, sizes = np.unique(self.classes, return_inverse=True, return_counts=True)
        return np.clip((sizes[inverse] + 1) // 2, 1, NEAREST)

    def _nearest_class(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Mean similarity to the nearest images of the nearest other class, and its label.

        A class of which not enough images are among the neighbours that are known gets the last one's similarity for
        the others, which is more than they have.
        """
        indices, similarity = self.neighbours.other[rows], self.neighbours.other_similarity[rows].astype(np.float64)
        there = indices >= 0
        classes = np.where(there, self.classes[indices], -1 - np.arange(indices.shape[1]))
        same = classes[:, :, None] == classes[:, None, :]
        place = np.tril(same).sum(axis=2)  # of each neighbour among those of its class, from 1
        asked = self._asked()[rows, None]
        counted = there & (place <= asked)
        values = np.where(counted, similarity, 0.0)
        sums, counts = (np.einsum("nij,nj->ni", same, array) for array in (values, counted.astype(np.float64)))
        last = np.where(there, similarity, np.inf).min(axis=1, keepdims=True)
        means = np.where(there, (sums + (asked - counts) * last) / asked, -np.inf)
        best = means.argmax(axis=1)
        similarity, found = (array[np.arange(len(best)), best] for array in (means, classes))
        return np.where(there.any(axis=1), similarity, np.nan), found


def label_spaces(data: DataSet, features: Features) -> list[LabelSpace]:
    """The images that have features, in one space, or in one of training and one of evaluation (`groups_of_lists`)."""
    spaces = []
    for names in groups_of_lists(data.lists):
        records: dict[tuple[str, int], RecordLocation] = {}
        for file, record in data.records():
            if record.list in names and file in features.index:
                records.setdefault((file, record.label), record)
        labels = Counter(file for file, _ in records)  # of several, which is a finding, a file tells nothing of others
        records = {key: record for key, record in records.items() if labels[key[0]] == 1}
        if records:
            rows = features.rows[[features.index[file] for file, _ in records]]
            classes = np.array([label for _, label in records], np.int64)
            spaces.append(LabelSpace(list(records.values()), rows, classes))
    return spaces


def groups_of_lists(lists: Mapping[str, ImageList]) -> tuple[tuple[str, ...], ...]:
    """Names of the lists in whose labels a number means the same class: all, or training and evaluation for themselves.

    It does where classes have names, and where training and evaluation have no label in common. Lists of integers that
    both begin at 0 are often numbered each for itself.
    """
    trained = set(lists["train"].labels)
    same = any(records.names for records in lists.values()) or not trained.intersection(
        label for records in lists.values() if records.name != "train" for label in records.labels
    )
    return (("train", "gallery", "query"),) if same else (("train",), ("gallery", "query"))


def even_out(features: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whiten features by their covariance within the classes, shrunk by SHRINKAGE; unit rows, float32 [N, d].

    The directions in which images of one class differ most count least then (Hatch et al., Interspeech 2006).
    """
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, inverse, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), features.shape[1]))
    np.add.at(sums, inverse, centred)
    within = centred - (sums / sizes[:, None])[inverse].astype(np.float32)
    covariance = (within.T @ within).astype(np.float64) / len(features)
    mean = np.trace(covariance) / len(covariance)
    if mean > 0:
        variance, basis = np.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * mean * np.eye(len(covariance)))
        centred = centred @ (basis / np.sqrt(variance)).astype(np.float32)
    return comparable(centred)


def comparable(rows: np.ndarray) -> np.ndarray:
    """Rows at unit length, float32 [N, d]; of more than MANY, their MAX_DIM directions with the largest variance."""
    if len(rows) > MANY and rows.shape[1] > MAX_DIM:
        _, basis = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        rows = rows @ basis[:, -MAX_DIM:].astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = rows / np.where(lengths > 0, lengths, 1)
    return unit
