"""Divide images into train, gallery and query at random, by image or by class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.errors import DatasetError

log = logging.getLogger(__name__)
TRAIN, GALLERY, QUERY = range(3)
MIN_CLASSES = 4  # to give train classes of its own: two to tell apart, and two to search

MIXES_LABELS = FindingSpec(
    "split-mixes-labels",
    "warning",
    "a split mixed lists that shared no label before",
    "Make sure that a label means the same class in all three; the former lists are kept as .bak.",
)


@dataclass(frozen=True)
class Division:
    """How the images of a data set are divided.

    Attributes:
        percents: shares of train, gallery and query, which add up to 100.
        by: "image" divides every class; "class" gives train classes of its own; None: "class" where there are enough.
        seed: the same seed and labels give the same draw.
    """

    percents: tuple[int, int, int] = (50, 30, 20)
    by: str | None = None
    seed: int = 0

    @classmethod
    def of(cls, percents: tuple[int, int, int] | None, by: str | None, seed: int) -> Division:
        """A division by these settings; no percents: the usual ones."""
        return cls(percents or cls.percents, by, seed)


@dataclass(frozen=True)
class Split:
    """A new division of all images of a data set.

    Attributes:
        paths: of the images, each once.
        labels: class of each image.
        parts: indices of the images of each list, ascending.
        repeated: number of lines that were in the former lists more than once.
        findings: what the user should know of it.
    """

    paths: list[str]
    labels: list[int]
    parts: dict[str, list[int]]
    repeated: int
    findings: list[Finding]

    def texts(self) -> dict[str, str]:
        """The content of each list's file."""
        return list_texts(self.paths, self.labels, self.parts)


def split_lists(lists: Mapping[str, ImageList], percents: tuple[int, int, int], by: str, seed: int) -> Split:
    """Divide all images of the lists anew, each (path, label) once.

    Args:
        lists: train, gallery and query.
        percents: as for `random_split`.
        by: likewise.
        seed: likewise.

    Raises:
        DatasetError: a list would be empty, or train.txt would have fewer than two classes.
    """
    pairs = dict.fromkeys(
        pair for records in lists.values() for pair in zip(records.paths, records.labels, strict=True)
    )
    paths, labels = [path for path, _ in pairs], [label for _, label in pairs]
    parts = random_split(labels, percents, by, seed)
    validate_split(parts, labels)
    findings = []
    evaluated = set(lists["gallery"].labels) | set(lists["query"].labels)
    if by == "image" and not evaluated & set(lists["train"].labels):  # an open-set data set
        message = "The former train.txt shared no label with gallery.txt and query.txt, so theirs may be other classes."
        findings.append(MIXES_LABELS.at("train.txt", message))
    return Split(paths, labels, parts, sum(map(len, lists.values())) - len(paths), findings)


def draw_lists(whole: ImageList, division: Division) -> tuple[dict[str, ImageList], str]:
    """Divide a data set in memory; nothing is written.

    Returns:
        The lists by name, and a clause that says how they were drawn.

    Raises:
        DatasetError: a list would be empty, or train would have fewer than two classes.
    """
    by = division.by or ("class" if len(set(whole.labels)) >= MIN_CLASSES else "image")
    parts = random_split(whole.labels, division.percents, by, division.seed)
    validate_split(parts, whole.labels, suffix="")
    shares = ", ".join(f"{percent} % {name}" for percent, name in zip(division.percents, LISTS, strict=True))
    told = f"divided by {by} with seed {division.seed} into {shares}, because it has no gallery and no query"
    return {name: whole.part(chosen, name) for name, chosen in parts.items()}, told


def list_texts(paths: Sequence[str], labels: Sequence[int], parts: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The content of each list's file: a line per image with path and label.

    Args:
        paths: of all images.
        labels: class of each.
        parts: indices of the images of each list.
    """
    return {name: "".join(f"{paths[i]} {labels[i]}\n" for i in parts[name]) for name in LISTS}


def random_split(labels: Sequence[int], percents: tuple[int, int, int], by: str, seed: int) -> dict[str, list[int]]:
    """Assign every image to train, gallery or query.

    Args:
        labels: class of each image.
        percents: shares of train, gallery and query, which add up to 100.
        by: "image" divides every class; "class" gives train classes of its own and divides the
            others between gallery and query (the open-set protocol).
        seed: the same seed and labels give the same draw.

    Returns:
        Indices by list, ascending. A class has no image in query without one in gallery.
    """
    rng = np.random.default_rng(seed)
    shares = np.array(percents) / 100
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(np.asarray(labels)[order], return_index=True)
    groups = np.split(order, starts[1:])
    members = {int(classes[i]): rng.permutation(groups[i]) for i in rng.permutation(len(classes))}
    trained = _trained_classes(members, shares[TRAIN]) if by == "class" else set()
    parts: dict[str, list[int]] = {name: [] for name in LISTS}
    rounding_carry = np.zeros(3)  # images that rounding has kept from each list so far
    for c, images in members.items():
        if by == "class":
            wanted = np.array([1.0, 0, 0]) if c in trained else shares * [0, 1, 1] / shares[GALLERY:].sum()
        else:
            wanted = shares
        ideal = len(images) * wanted + rounding_carry * (wanted > 0)
        counts = _apportion(len(images), ideal)
        rounding_carry[wanted > 0] = (ideal - counts)[wanted > 0]
        for name, chosen in zip(LISTS, np.split(images, np.cumsum(counts)[:2]), strict=True):
            parts[name] += chosen.tolist()
    return {name: sorted(chosen) for name, chosen in parts.items()}


def validate_split(
    parts: dict[str, list[int]],
    labels: Sequence[int],
    where: str = "CheckDataset.split",
    fix: str = "Add images, or choose other percentages",
    suffix: str = ".txt",
) -> None:
    """Raise DatasetError if a split leaves nothing to train or to evaluate.

    Args:
        parts: indices of the images of each list.
        labels: class of each image.
        where: key that asked for the split, for the error.
        fix: what to do, for the error, without a full stop.
        suffix: what the names of the lists end with, for the error.
    """
    empty = [f"{name}{suffix}" for name, chosen in parts.items() if not chosen]
    if empty or len({labels[i] for i in parts["train"]}) < 2:
        what = f"{' and '.join(empty)} would be empty" if empty else f"train{suffix} would have fewer than two classes"
        raise DatasetError(
            f"The {len(labels)} images of {len(set(labels))} classes cannot be divided so: {what}.",
            where=where,
            fix=f"{fix}; nothing has been changed.",
            code="split-impossible",
        )


def _trained_classes(members: dict[int, np.ndarray], share: float) -> set[int]:
    """Classes, in the order drawn, until train has its share of the images; at least one is left over."""
    total, have = sum(map(len, members.values())), 0
    trained: set[int] = set()
    for c, images in list(members.items())[:-1]:
        if have + len(images) / 2 > share * total and trained:
            break
        trained.add(c)
        have += len(images)
    return trained


def _apportion(total: int, ideal: np.ndarray) -> np.ndarray:
    """Whole numbers near `ideal` that add up to `total`; no query without a gallery image.

    By largest remainders. A missing gallery image is taken from train first, then from query.
    """
    counts: np.ndarray = np.maximum(np.floor(ideal), 0).astype(int)
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 0, counts - ideal, -np.inf))] -= 1
    while counts.sum() < total:
        counts[np.argmax(ideal - counts)] += 1
    if counts[QUERY] and not counts[GALLERY]:
        donor = TRAIN if counts[TRAIN] > 1 else QUERY
        counts[donor] -= 1
        counts[GALLERY] += 1
        if donor == QUERY and ideal[TRAIN] > 0 and not counts[TRAIN]:  # too small to divide: all to train
            counts[:] = [total, 0, 0]
    return counts
