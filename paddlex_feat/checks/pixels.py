"""Checks of what pixels say: images unlike the rest of the data set, which one look tells from mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import Finding, FindingSpec

# A value is odd where its modified z-score exceeds 3.5: 0.6745 times its distance from the median, divided by the
# median of all such distances, or 0.7979 times it, divided by their mean, where the median is 0 (Iglewicz and Hoaglin,
# "How to detect and handle outliers", 1993). What no eye would notice is not odd, however equal the others are.
MAX_SCORE, _MEDIAN, _MEAN = 3.5, 0.6745, 0.7979
MIN_IMAGES = 50  # fewer do not tell what is usual
_LOOK = "Look at it; nothing, if it is meant to be so. CheckDataset.pixels=False switches this off."

BLURRED = FindingSpec("image-blurred", "note", "an image is far less sharp than the others", _LOOK)
DARKER = FindingSpec("image-darker", "note", "an image is far darker than the others", _LOOK)
BRIGHTER = FindingSpec("image-brighter", "note", "an image is far brighter than the others", _LOOK)
PLAIN = FindingSpec("image-plain", "note", "an image shows far less than the others", _LOOK)
ASPECT = FindingSpec("image-aspect", "note", "an image is far longer or wider than the others", _LOOK)
SIZE = FindingSpec("image-odd-size", "note", "an image has far more or fewer pixels than the others", _LOOK)

Value = Callable[[ImageInfo], float]


def _logarithm(value: float) -> float:
    return float(np.log2(value + 1))


# The kind of finding, the value that is compared, the side on which it is odd (-1, 1, or 0 for both), the distance from
# the median that it has at least, and the message with the value of the image and the median.
_RULES: tuple[tuple[FindingSpec, Value, int, float, str], ...] = (
    (BLURRED, lambda i: _logarithm(i.measures[0]), -1, 2, "its sharpness is {}, that of most images about {}"),
    (DARKER, lambda i: i.measures[1], -1, 32, "its mean brightness is {} of 255, that of most images about {}"),
    (BRIGHTER, lambda i: i.measures[1], 1, 32, "its mean brightness is {} of 255, that of most images about {}"),
    (PLAIN, lambda i: i.measures[2], -1, 1, "its grey levels carry {} bits, those of most images about {}"),
    (ASPECT, lambda i: float(np.log2(i.width / i.height)), 0, 1, "its width is {} times its height, usually it is {}"),
    (SIZE, lambda i: float(np.log2(i.width * i.height)), 0, 4, "it has {} pixels, most images have about {}"),
)
_EXPONENTIAL = {BLURRED.code: -1.0, ASPECT.code: 0.0, SIZE.code: 0.0}  # what is added after 2 ** value


def check_pixels(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find images whose sharpness, brightness, information, aspect or size is unlike that of the others."""
    if not settings.pixels:
        return
    found = {f: i for f, i in data.image_info.items() if not i.error and not i.empty and i.measures and i.height}
    if len(found) < MIN_IMAGES:
        return
    odd: dict[str, list[tuple[FindingSpec, str]]] = {}
    files = list(found)
    for spec, value_of, side, least, message in _RULES:
        values = np.array([value_of(info) for info in found.values()])
        median = float(np.median(values))
        scores = _scores(values)
        for place in np.flatnonzero((np.abs(scores) > MAX_SCORE) & (np.abs(values - median) >= least)):
            if not side or np.sign(scores[place]) == side:
                shown = (_readable(spec, float(v)) for v in (values[place], median))
                odd.setdefault(files[place], []).append((spec, message.format(*shown)))
    yield from _findings(data, odd)


def _findings(data: DataSet, odd: dict[str, list[tuple[FindingSpec, str]]]) -> Iterator[Finding]:
    first: dict[str, RecordLocation] = {}
    for file, record in data.records() if odd else ():
        if file in odd:
            first.setdefault(file, record)
    for file, record in first.items():
        for spec, message in odd[file]:
            yield spec.at(record.where, f"{record.path}: {message}.", images=(file,))


def _scores(values: np.ndarray) -> np.ndarray:
    """Modified z-scores, float64 [N]."""
    distances = values - np.median(values)
    median, mean = (float(of(np.abs(distances))) for of in (np.median, np.mean))
    scores: np.ndarray = distances * (_MEDIAN / median if median > 0 else _MEAN / mean if mean > 0 else 0.0)
    return scores


def _readable(spec: FindingSpec, value: float) -> str:
    if spec.code in _EXPONENTIAL:
        value = 2**value + _EXPONENTIAL[spec.code]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


CHECKS = (CheckSpec("pixels", check_pixels, (BLURRED, DARKER, BRIGHTER, PLAIN, ASPECT, SIZE)),)
