"""Checks of a data set: files, images, labels, duplicates.

`CHECKS` holds every check; `runner.check` runs them all. An installed package adds a check by an entry point of the
group `paddlex_feat.checks`, which names a `CheckSpec` (docs/extending_data.md).
"""

from paddlex_feat.checks import boxes, class_structure, classes, duplicates, files, lookalikes, pixels, suspects
from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.config.registry import Registry
from paddlex_feat.data.findings import Finding, FindingSpec

__all__ = [
    "CHECKS",
    "CheckSettings",
    "CheckSpec",
    "DataSet",
    "Finding",
    "FindingSpec",
    "ImageInfo",
    "RecordLocation",
]

CHECKS: Registry[CheckSpec] = Registry("checks", CheckSpec, key="Global.mode=check_dataset")
for _room in (files, boxes, classes, duplicates, pixels, suspects, class_structure, lookalikes):
    for _spec in _room.CHECKS:
        CHECKS.add(_spec)
