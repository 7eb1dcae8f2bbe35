"""Checks of what features see: labels that are likely wrong, and images unlike all others of their class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.checks.label_space import LabelSpace, label_spaces
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import Finding, FindingSpec

FENCE = 1.5  # interquartile ranges beyond the quartiles: Tukey, "Exploratory Data Analysis", 1977
SHOWN = 2  # images of the own and of the other class beside a suspect
_LOOK = "Look at it beside its neighbours in the report; if the label is wrong, correct it or drop the line."
WRONG = FindingSpec("label-suspect", "warning", "an image is nearer to another class than to its own", _LOOK)
UNLIKE = FindingSpec("image-unlike-class", "warning", "an image is unlike all others of its class", _LOOK)


@dataclass(frozen=True)
class Suspect:
    """An image and how well it fits its label.

    Attributes:
        record: the image.
        score: as `margin`, less a part of what is usual for its class: what suspects are ranked by.
        margin: how much nearer the nearest other class is than the own one, of cosine similarity; above 0 if it is
            nearer.
        own: similarity to the own class.
        elsewhere: similarity to the nearest other class.
        other: the nearest images of the other class, nearest first.
        like: the nearest images of the own class, nearest first.
    """

    record: RecordLocation
    score: float
    margin: float
    own: float
    elsewhere: float
    other: list[RecordLocation]
    like: list[RecordLocation]


def rank_suspects(data: DataSet) -> list[Suspect]:
    """All images by how likely their label is wrong, the likeliest first; none for images alone in their class."""
    found = [suspect for space in spaces_of(data) for suspect in _of_space(space)]
    return sorted(found, key=lambda suspect: -suspect.score)


def spaces_of(data: DataSet) -> list[LabelSpace]:
    """The label spaces of a data set, made once; none without features."""
    if data.features is None:
        return []
    if not data.label_spaces:
        data.label_spaces.extend(label_spaces(data, data.features))
    return data.label_spaces


def _of_space(space: LabelSpace) -> Iterator[Suspect]:
    margin, own, near, nearest = space.margin, space.own, space.neighbours, space.nearest
    for place in np.flatnonzero(np.isfinite(nearest.score)).tolist():
        others = near.other[place][near.other[place] >= 0]
        others = others[space.classes[others] == nearest.label[place]]
        yield Suspect(
            space.records[place],
            float(nearest.score[place]),
            float(margin[place]),
            float(own[place]),
            float(nearest.similarity[place]),
            [space.records[i] for i in others[:SHOWN].tolist()],
            [space.records[i] for i in near.own[place][:SHOWN].tolist() if i >= 0],
        )


def check_suspects(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find labels that are likely wrong: the margin is above 0 and the score beyond Tukey's fence of all scores.

    An image that is close to no class is unlike its own, whichever comes nearest.
    """
    ranked = rank_suspects(data)
    if not ranked:
        return
    scores, own, elsewhere = (np.array([getattr(s, name) for s in ranked]) for name in ("score", "own", "elsewhere"))
    highest, lowest = _fence(scores, 1), _fence(own, -1)
    close = float(np.median(own) + np.median(elsewhere)) / 2  # halfway from another class to the own one, as usual
    for place, suspect in enumerate(ranked, 1):
        if suspect.score > highest and suspect.margin > 0 and suspect.elsewhere >= close:
            other = suspect.other[0]
            message = (
                f"{_path(suspect.record)}Labelled {named(suspect.record)}, nearer to {named(other)}, as {other.path}; "
                f"place {place} of {len(ranked)}, score {suspect.score:.2f}, margin {suspect.margin:.2f}."
            )
            yield WRONG.at(suspect.record.where, message, images=_images(suspect), captions=_captions(suspect))
        elif suspect.own < min(lowest, close):
            message = (
                f"{_path(suspect.record)}Unlike the others of {named(suspect.record)}: similarity {suspect.own:.2f}; "
                f"of other classes {named(suspect.other[0])} is nearest, {suspect.elsewhere:.2f}."
            )
            yield UNLIKE.at(suspect.record.where, message, images=_images(suspect), captions=_captions(suspect))


def _fence(values: np.ndarray, side: int) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high + FENCE * (high - low) if side > 0 else low - FENCE * (high - low))


def _path(record: RecordLocation) -> str:
    """The path before a message, unless the place of the finding says it."""
    return "" if record.where == record.path else f"{record.path}: "


def named(record: RecordLocation) -> str:
    """The label of an image, with the name of the class."""
    name = record.records.names.get(record.label)
    return f"{record.label} ({name})" if name else str(record.label)


def _images(suspect: Suspect) -> tuple[str, ...]:
    """Files of the suspect, of its nearest images of its own class, and of those of the other."""
    return tuple(record.file for record in (suspect.record, *suspect.like, *suspect.other))


def _captions(suspect: Suspect) -> tuple[str, ...]:
    return (
        suspect.record.where,
        *(f"of {named(record)}" for record in suspect.like),
        *(f"of {named(record)}" for record in suspect.other),
    )


CHECKS = (CheckSpec("suspects", check_suspects, (WRONG, UNLIKE)),)
