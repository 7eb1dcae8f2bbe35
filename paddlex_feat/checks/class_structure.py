"""Checks of classes by features: two that are one, one that is two, gallery images that add nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.checks.label_space import LabelSpace
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.checks.suspects import named, spaces_of
from paddlex_feat.data.findings import Finding, FindingSpec

MIXED = 0.3  # share of the images of two classes whose nearest image is of the other: of one class it would be 0.5
MIN_MIXED = 4  # images of both classes together, at least
# Kaufman and Rousseeuw, "Finding Groups in Data", 1990: from 0.5 on a silhouette tells of a reasonable structure.
SILHOUETTE = 0.5
MIN_DIVIDED, MIN_PART = 8, 0.2  # images of a class that may be two, and share of the smaller part, at least
_ROUNDS = 10  # of 2-means
# Distance to the nearest kept image of the own class, as a share of the distance to the nearest of another, from which
# on a gallery image answers no query that the other does not: found on ORL and emoji, no outside source.
REDUNDANT = 0.25

ALIKE = FindingSpec(
    "classes-alike",
    "warning",
    "the images of two classes lie among each other",
    "If both are one class, give them one label.",
)
TWO = FindingSpec(
    "class-of-two",
    "note",
    "the images of a class fall into two groups",
    "Look at one of each; if they are two things, give them two labels.",
)
ADDS_NOTHING = FindingSpec(
    "gallery-redundant",
    "note",
    "gallery images lie so close to others of their class that they hardly add anything",
    "Nothing, unless the gallery has to be smaller.",
)


def check_classes_alike(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find pairs of classes whose images have each other as nearest images."""
    for space in spaces_of(data):
        for first, second, share in _mixed(space):
            one, other = (next(r for r in space.records if r.label == label) for label in (first, second))
            message = (
                f"{share:.0%} of the images of {named(one)} and {named(other)} have their nearest image in the other "
                f"of the two, as {one.path} and {other.path}."
            )
            yield ALIKE.at(one.where, message, images=data.readable(one.file, other.file))


def _mixed(space: LabelSpace) -> Iterator[tuple[int, int, float]]:
    """(class, class, share of their images whose nearest image is of the other class), largest share first."""
    near = space.neighbours
    labels, classes, sizes = np.unique(space.classes, return_inverse=True, return_counts=True)
    crossing = (near.other_similarity[:, 0] > near.own_similarity[:, 0]) & (near.other[:, 0] >= 0)
    source, target = classes[crossing], classes[near.other[crossing, 0]]
    pairs, counts = np.unique(np.sort(np.stack([source, target], axis=1), axis=1), axis=0, return_counts=True)
    both = np.zeros((len(pairs), 2), bool)  # each of the two must cross, else one is spread out and the other is not
    place = {(int(a), int(b)): i for i, (a, b) in enumerate(pairs)}
    for a, b in set(zip(source.tolist(), target.tolist(), strict=True)):
        both[place[min(a, b), max(a, b)], int(a > b)] = True
    total = sizes[pairs].sum(axis=1) if len(pairs) else np.zeros(0, int)
    shares = counts / np.maximum(total, 1)
    for i in np.argsort(-shares, kind="stable"):
        if shares[i] >= MIXED and total[i] >= MIN_MIXED and both[i].all():
            yield int(labels[pairs[i, 0]]), int(labels[pairs[i, 1]]), float(shares[i])


def check_class_of_two(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find classes whose images fall into two groups, by 2-means and its silhouette."""
    for space in spaces_of(data):
        order = np.argsort(space.classes, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(space.classes[order])) + 1):
            if len(members) < MIN_DIVIDED:
                continue
            second, silhouette = _divide(space.evened[members])
            if silhouette >= SILHOUETTE and MIN_PART <= second.mean() <= 1 - MIN_PART:
                one, other = (space.records[int(members[mask][0])] for mask in (~second, second))
                message = (
                    f"{np.count_nonzero(second)} of the {len(members)} images of {named(one)} are apart from the "
                    f"others, as {other.path} from {one.path}: silhouette {silhouette:.2f}."
                )
                yield TWO.at(one.where, message, images=data.readable(one.file, other.file))


def _divide(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Two groups of unit rows by spherical 2-means: a mask of the second, bool [N], and the mean silhouette."""
    first = int((rows @ rows.mean(axis=0)).argmin())  # far from the middle, and what is farthest from it
    similar = rows @ rows[first]
    second = int(similar.argmin())
    mask = rows @ rows[second] > similar
    for _ in range(_ROUNDS):
        if not mask.any() or mask.all():
            return mask, 0.0
        centres = np.stack([rows[~mask].mean(axis=0), rows[mask].mean(axis=0)])
        lengths = np.linalg.norm(centres, axis=1, keepdims=True)
        nearer = np.subtract(*(rows @ (centres / np.where(lengths > 0, lengths, 1)).T).T) < 0
        if (nearer == mask).all():
            break
        mask = nearer
    sizes = np.array([np.count_nonzero(~mask), np.count_nonzero(mask)])
    if not sizes.all():
        return mask, 0.0
    # Sums of cosine distances to the rows of a group: its size less the product with the sum of its rows.
    wide = rows.astype(np.float64)
    sums = np.stack([size - wide @ wide[group].sum(axis=0) for size, group in zip(sizes, (~mask, mask), strict=True)])
    index, group = np.arange(len(rows)), mask.astype(int)
    inside = sums[group, index] / np.maximum(sizes[group] - 1, 1)
    outside = sums[1 - group, index] / sizes[1 - group]
    scores = (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-12)
    return mask, float(np.where(sizes[group] > 1, scores, 0).mean())


def check_redundant_gallery(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find gallery images with a kept image of their class far nearer than any image of another class: one finding."""
    for space in spaces_of(data):
        near = space.neighbours
        limit = REDUNDANT * (1 - near.other_similarity[:, 0].astype(np.float64))
        gallery = [place for place, record in enumerate(space.records) if record.list == "gallery"]
        kept, dropped = set(gallery), []
        for place in gallery:
            for other, similarity in zip(near.own[place].tolist(), near.own_similarity[place].tolist(), strict=True):
                if other in kept and other != place and 1 - similarity <= limit[place]:
                    kept.discard(place)
                    dropped.append((place, other))
                    break
        if dropped:
            one, other = (space.records[place] for place in dropped[0])
            message = (
                f"{len(dropped)} of {len(gallery)} gallery images lie so close to others of their class that the "
                f"gallery would do without them, as {one.path} beside {other.path}."
            )
            yield ADDS_NOTHING.at(one.where, message, images=data.readable(one.file, other.file))


CHECKS = (
    CheckSpec("classes-alike", check_classes_alike, (ALIKE,)),
    CheckSpec("class-of-two", check_class_of_two, (TWO,)),
    CheckSpec("redundant-gallery", check_redundant_gallery, (ADDS_NOTHING,)),
)
