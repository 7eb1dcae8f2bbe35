"""The images whose labels mean the same classes, with their features: how well each fits its label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paddlex_feat.checks.context import DataSet, Features, RecordLocation
from paddlex_feat.checks.nearest_class import NEAREST, ClassSimilarity, NearestClass, asked_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.ranking.neighbours import Neighbours, find_neighbours

SHRINKAGE = 0.9  # of the covariance within the classes: a label in twenty may be wrong
MAX_DIM = 256  # numbers of a feature that are compared
MANY = 20_000  # images; copies among fewer are looked for by all numbers of their features
_OTHERS = 3 * NEAREST  # images of other classes that are looked at


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
        _, inverse, sizes = np.unique(self.classes, return_inverse=True, return_counts=True)
        counts = asked_of(sizes)[inverse]
        sums = np.cumsum(
            np.where(self.neighbours.own >= 0, self.neighbours.own_similarity, 0), axis=1, dtype=np.float64
        )
        asked = np.minimum(counts, (self.neighbours.own >= 0).sum(axis=1))
        found = np.take_along_axis(sums, np.maximum(asked - 1, 0)[:, None], axis=1)[:, 0]
        return np.where(asked > 0, found / np.maximum(asked, 1), np.nan)

    @cached_property
    def nearest(self) -> NearestClass:
        """The nearest other class of each image."""
        return ClassSimilarity(self.evened, self.classes).nearest(self.neighbours, self.own)

    @property
    def margin(self) -> np.ndarray:
        """How much nearer another class is than the own one, float64 [N]: above 0 if it is nearer; nan if unknown."""
        margin: np.ndarray = self.nearest.similarity - self.own
        return margin


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

    It does in all formats but lists, where classes have names, and where training and evaluation have no label in
    common. Lists of integers that both begin at 0 are often numbered each for itself.
    """
    trained = lists["train"].class_sizes().keys()
    others = [records.class_sizes().keys() for records in lists.values() if records.name != "train"]
    named = any(records.names or records.file != "" for records in lists.values())
    same = named or all(trained.isdisjoint(classes) for classes in others)
    return (("train", "gallery", "query"),) if same else (("train",), ("gallery", "query"))


def even_out(features: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whiten features by their covariance within the classes, shrunk by SHRINKAGE; unit rows, float32 [N, d].

    The directions in which images of one class differ most count least then (Hatch et al., Interspeech 2006). Only the
    d = MAX_DIM directions with the largest variance are looked at: more find fewer wrong labels.
    """
    centred = principal(features - features.mean(axis=0, dtype=np.float64).astype(np.float32))
    _, inverse, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), centred.shape[1]))
    np.add.at(sums, inverse, centred)
    within = centred - (sums / sizes[:, None])[inverse].astype(np.float32)
    covariance = (within.T @ within).astype(np.float64) / len(features)
    mean = np.trace(covariance) / len(covariance)
    if mean > 0:
        variance, basis = np.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * mean * np.eye(len(covariance)))
        centred = centred @ (basis / np.sqrt(variance)).astype(np.float32)
    return unit_rows(centred)


def comparable(rows: np.ndarray) -> np.ndarray:
    """Rows at unit length, float32 [N, d]; of more than MANY, their MAX_DIM directions with the largest variance."""
    return principal(rows) if len(rows) > MANY else unit_rows(rows)


def principal(rows: np.ndarray) -> np.ndarray:
    """The MAX_DIM directions of rows in which they are largest, at unit length, float32 [N, d]."""
    if rows.shape[1] > MAX_DIM:
        _, basis = np.linalg.eigh((rows.T @ rows).astype(np.float64))
        rows = rows @ basis[:, -MAX_DIM:].astype(np.float32)
    return unit_rows(rows)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows at unit length, float32 [N, D]; zeros as they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = rows / np.where(lengths > 0, lengths, 1)
    return unit
