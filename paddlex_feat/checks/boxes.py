"""Checks of boxes: the parts of pictures that are images of their own."""

from __future__ import annotations

from collections.abc import Iterator

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.images.source import Box, box_of

MIN_SIDE = 8  # px; a smaller part shows no detail by which one thing differs from another
_TOLERANCE = 0.5  # px; annotation programs round, and a box is cut out at whole pixels

EMPTY = FindingSpec(
    "box-empty", "error", "no pixel of the picture is in a box", "Correct the box: x1, y1, x2, y2 in pixels."
)
OUTSIDE = FindingSpec(
    "box-outside",
    "warning",
    "a part of a box is outside its picture; the part within is used",
    "Correct the box; if many are so, the boxes belong to pictures of another size.",
)
TINY = FindingSpec(
    "box-tiny",
    "warning",
    f"a side of a box is shorter than {MIN_SIDE} px",
    "Leave such boxes out, or use pictures of more pixels.",
)


def check_boxes(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find boxes that are empty, tiny or partly outside of their picture; each once."""
    seen: set[str] = set()
    for file, record in data.records() if data.image_info else ():
        box, info = box_of(file), data.image_info.get(file)
        if box is None or info is None or info.picture == (0, 0) or file in seen:
            continue
        seen.add(file)
        width, height = info.picture
        if info.error:
            yield EMPTY.at(record.where, f"{record.path}: {info.message}")
            continue
        if _is_outside(box, width, height):
            message = f"{record.path}: The box {box} leaves the picture, which is {width} x {height}."
            yield OUTSIDE.at(record.where, message, images=(file,))
        if min(info.width, info.height) < MIN_SIDE:
            message = f"{record.path}: The box has {info.width} x {info.height} pixels."
            yield TINY.at(record.where, message, images=(file,))


def _is_outside(box: Box, width: int, height: int) -> bool:
    first = min(box.x1, box.y1) < -_TOLERANCE
    return first or box.x2 > width + _TOLERANCE or box.y2 > height + _TOLERANCE


CHECKS = (CheckSpec("boxes", check_boxes, (EMPTY, OUTSIDE, TINY)),)
