"""Checks for images that show the same picture and have other bytes and other hashes: mirrored, cropped, darker."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.checks.duplicates import near_pairs
from paddlex_feat.checks.label_space import comparable
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.images.source import are_parts_of_one
from paddlex_feat.evaluation.ranking.neighbours import find_neighbours

# Two images are alike where each is the other's nearest, and the distance 1 - cosine to it is at most this share of
# that to the next one: the ratio test of Lowe, "Distinctive image features from scale-invariant keypoints", 2004. With
# the starter's features of faces, drawings and clothes one pair in a hundred has as small a ratio by chance, and most
# mirrored and darker copies have.
RATIO = 0.33

LEAK = FindingSpec(
    "leak-similar",
    "warning",
    "by its features an evaluation image is nearly one that is trained on",
    "Look at both; if they show the same picture, take it off one of the lists.",
)
COPY = FindingSpec(
    "copy-similar",
    "note",
    "by their features two images of a list are nearly the same",
    "Look at them; copies teach nothing, and a gallery does not need them.",
)


def check_lookalikes(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find pairs of images that features tell to be the same picture, and that no hash has found."""
    if data.features is None or len(data.features.rows) < 4:
        return
    files = list(data.features.index)
    pairs = _alike(data.features.rows, files)
    if not pairs:
        return
    known = set(near_pairs({file: info.phash for file in files if (info := data.image_info[file]).phash}))
    records: dict[str, RecordLocation] = {}
    for file, record in data.records():
        records.setdefault(file, record)
    for one, other, similarity in pairs:
        same = data.image_info[one].sha256 and data.image_info[one].sha256 == data.image_info[other].sha256
        if same or (one, other) in known or (other, one) in known or one not in records or other not in records:
            continue
        first, second = sorted((records[one], records[other]), key=lambda record: record.list != "train")
        crossing = (first.list == "train") != (second.list == "train")
        message = f"{second.path} is nearly {first.path} ({first.where}): cosine {similarity:.3f}."
        images, captions = (second.file, first.file), (second.where, first.where)
        yield (LEAK if crossing else COPY).at(second.where, message, images=images, captions=captions)


def _alike(rows: np.ndarray, files: list[str]) -> list[tuple[str, str, float]]:
    """Pairs of files that pass the ratio test both ways, and their similarity; each once."""
    near = find_neighbours(comparable(rows), np.arange(len(rows)), 1, 2)
    nearest, similarity = near.other[:, 0], near.other_similarity
    mutual = nearest[nearest] == np.arange(len(rows))
    distance = np.maximum(1 - similarity.astype(np.float64), 0)
    close = mutual & (distance[:, 0] <= RATIO * distance[:, 1])
    found = []
    for place in np.flatnonzero(close & close[nearest] & (nearest > np.arange(len(rows)))).tolist():
        one, other = files[place], files[int(nearest[place])]
        if not are_parts_of_one(one, other):
            found.append((one, other, float(similarity[place, 0])))
    return found


CHECKS = (CheckSpec("lookalikes", check_lookalikes, (LEAK, COPY)),)
