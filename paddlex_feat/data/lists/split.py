"""Drawing train, gallery and query anew."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.errors import DatasetError

log = logging.getLogger(__name__)
TRAIN, GALLERY, QUERY = range(3)


def random_split(labels: Sequence[int], percents: tuple[int, int, int], by: str, seed: int) -> dict[str, list[int]]:
    """Assign every image to train, gallery or query.

    Args:
        labels: class of each image.
        percents: shares of train, gallery and query, which add up to 100.
        by: "image" divides every class; "class" gives train classes of its own and divides the
            others between gallery and query (the open-set protocol).
        seed: the same seed and labels give the same draw.

    Returns indices by list, ascending. A class has no image in query without one in gallery.
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
) -> None:
    """Raise DatasetError if nothing could be trained or evaluated with a draw."""
    empty = [f"{name}.txt" for name, chosen in parts.items() if not chosen]
    if empty or len({labels[i] for i in parts["train"]}) < 2:
        what = f"{' and '.join(empty)} would be empty" if empty else "train.txt would have fewer than two classes"
        raise DatasetError(
            f"The {len(labels)} images of {len(set(labels))} classes cannot be divided so: {what}.",
            where=where,
            fix=f"{fix}; nothing has been changed.",
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

    By largest remainders; the mending takes from train first, then from query.
    """
    counts = np.maximum(np.floor(ideal), 0).astype(int)
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
