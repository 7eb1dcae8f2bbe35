"""Lists without the lines that are to be dropped, and with the labels that are to be corrected."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import replace

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError

log = logging.getLogger(__name__)


def fixed_lists(
    lists: Mapping[str, ImageList], dropped: Set[str], marks: Mapping[tuple[str, str, int], int | None], once: bool
) -> dict[str, ImageList]:
    """The lists with what was asked for.

    Args:
        lists: of the data set, by name.
        dropped: files whose lines are left out.
        marks: (list, file, label) -> another label, or None to leave the line out.
        once: leave out lines that repeat one of their list.

    Raises:
        DatasetError: nothing would be left of a list.
    """
    fixed, relabelled = {}, 0
    for name, records in lists.items():
        kept, labels, seen = [], [], set()
        for place, (file, label) in enumerate(zip(records.files(), records.labels, strict=True)):
            label_now = marks.get((name, file, label), label)
            if file in dropped or label_now is None or (once and (file, label_now) in seen):
                continue
            seen.add((file, label_now))
            relabelled += label_now != label
            kept.append(place)
            labels.append(label_now)
        fixed[name] = replace(records.part(kept), labels=labels, leave_one_out=records.leave_one_out)
    if empty := [name for name, records in fixed.items() if not records and lists[name]]:
        raise DatasetError(
            f"Nothing would be left of {' and '.join(empty)}.",
            where="CheckDataset.fix",
            fix="Name fewer kinds, or correct the paths of the lists; nothing has been changed.",
            code="fix-empties-list",
        )
    fewer = sum(map(len, lists.values())) - sum(map(len, fixed.values()))
    log.info("CheckDataset.fix: %d lines dropped, %d relabelled.", fewer, relabelled)
    return fixed
