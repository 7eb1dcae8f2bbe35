"""What a reader of a data set's format is, for the registry of readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.lists.image_list import ImageList


class Reading(NamedTuple):
    """What a reader has read.

    Attributes:
        lists: by name; of a data set without gallery and query the list `items.UNDIVIDED` alone.
        findings: what could not be read, and what the user should know.
        understood: how the folder was understood, a clause for the log; "" for lists that say it themselves.
    """

    lists: dict[str, ImageList]
    findings: list[Finding]
    understood: str = ""


@dataclass(frozen=True)
class ReaderSpec:
    """A format of data sets that is read as it is.

    A data set has up to three lists, by name: train, gallery, query. Modes ask for those that they need.

    Attributes:
        name: of the format, as `dataset_type` in check_dataset_result.json.
        count_lists: (folder, names) -> how many of these lists a folder holds in this format. It is asked for
            many folders, so it opens few files. A folder that holds all of them is a data set of this format.
        read: (folder, names, refuse_outside) -> a `Reading`, or (lists, findings): each of `names` even if it is empty.
            A record that cannot be read becomes a finding. With refuse_outside, a path that leads out of the folder is
            an error and not a record (`data.lists.outside.Bounds`). Images are not opened.
        files: names -> the files or folders that hold these lists, for error messages.
        layout: one sentence that explains the format, for error messages.
        findings: the kinds of findings that `read` gives.
        generic: whether it recognizes so much that it is asked last, when no other reader claims a folder.
    """

    name: str
    count_lists: Callable[[Path, tuple[str, ...]], int]
    read: Callable[[Path, tuple[str, ...], bool], Reading | tuple[dict[str, ImageList], list[Finding]]]
    files: Callable[[tuple[str, ...]], tuple[str, ...]]
    layout: str
    findings: tuple[FindingSpec, ...]
    generic: bool = False
