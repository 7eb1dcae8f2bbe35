"""Market-1501: bounding_box_train, bounding_box_test and query; person and camera are in the names of the images.

`0002_c1s1_000451_03.jpg` shows person 2 from camera 1; DukeMTMC-reID writes `0001_c2_f0046182.jpg`. Images of person -1
are junk that is not ranked; those of 0000 in Market-1501 distract. A gallery image of a query's person and camera does
not count. Source: Zheng et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.folders import Walk, in_words, is_image
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.published import records
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

_FOLDERS = {"train": "bounding_box_train", "gallery": "bounding_box_test", "query": "query"}
_NAME = re.compile(r"(-1|[0-9]{1,9})_c([0-9]{1,6})(?:s[0-9]+)?[_.].*", re.DOTALL)  # person, camera
_LOOKED_AT = 50  # images of a folder whose names decide
OTHER_NAME = FindingSpec(
    "person-name",
    "warning",
    "names of images do not tell person and camera; they are left out",
    "Name them as in 0002_c1s1_000451_03.jpg.",
)
JUNK = FindingSpec("person-junk", "note", "images of person -1 are left out, as papers do", "Nothing.")
LEFT_OUT = FindingSpec("person-no-image", "note", "other files than images lie beside them", "Nothing.")


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """Those whose folder exists, if the names of most images in each folder tell person and camera."""
    here = [name for name in names if (folder / _FOLDERS.get(name, "\0")).is_dir()] if names else []
    return len(here) if here and all(_fits(folder / _FOLDERS[name]) for name in here) else 0


def _fits(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            names = list(islice((e.name for e in entries if e.name.lower().endswith((".jpg", ".png"))), _LOOKED_AT))
    except OSError:
        return False
    return 2 * sum(bool(_NAME.fullmatch(name)) for name in names) > len(names)


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    items, walk, findings = Items(root), Walk(), list[Finding]()
    for name, folder in _FOLDERS.items():  # all, so that labels do not depend on what is asked for
        if name in names or (root / folder).is_dir():
            findings += cap_per_code(_fill(root, folder, items.part(name), walk))
    findings += records.check_counts(items, names)
    if walk.left_out:
        findings.append(LEFT_OUT.at(str(root), f"Left out: {in_words(walk.left_out)}."))
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    understood = "the names of the images tell person and camera; gallery images of both do not count for a query"
    return Reading(items.lists(names), findings, understood)


def _fill(root: Path, folder: str, part: Part, walk: Walk) -> Iterator[Finding]:
    """Add the images of a folder, in the order of their names; those that are left out are findings."""
    try:
        with os.scandir(root / folder) as entries:
            files = sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError as error:
        yield records.UNREADABLE.at(folder, f"The folder cannot be read: {error.strerror}.")
        return
    junk = 0
    for name in files:
        if walk.leaves_out(name, "files") or not is_image(os.path.join(root, folder, name), walk):
            continue
        fields = _NAME.fullmatch(name)
        if fields is None:
            yield OTHER_NAME.at(f"{folder}/{name}", "The name does not tell person and camera.")
        elif fields[1] == "-1":
            junk += 1
        else:
            part.add(f"{folder}/{name}", fields[1], camera=int(fields[2]))
    if junk:
        yield JUNK.at(folder, f"{junk:,} images of person -1 are left out.")


MARKET = ReaderSpec(
    name="Market-1501",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: tuple(_FOLDERS[name] for name in names if name in _FOLDERS) or ("bounding_box_train",),
    layout="Market-1501 has the folders bounding_box_train, bounding_box_test and query, and names such as "
    "0002_c1s1_000451_03.jpg.",
    findings=(records.UNREADABLE, records.EMPTY, OTHER_NAME, JUNK, LEFT_OUT),
)
