"""Write the lists of a data set as one table, data.csv."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from paddlex_feat.data.images.source import ImageSource, box_of, file_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers.columns import CONVERTED_HEAD
from paddlex_feat.data.readers.tables import CONVERTED
from paddlex_feat.data.rewriting.crops import write_crops
from paddlex_feat.data.rewriting.lists import LABELS, plain_name, require_listable
from paddlex_feat.errors import DatasetError
from paddlex_feat.fileio.addresses import is_url
from paddlex_feat.fileio.backups import next_backup_path, write_with_backup

log = logging.getLogger(__name__)


def write_table(root: Path, lists: dict[str, ImageList], crops: bool, skip: bool) -> None:
    """Write all lists as data.csv; images in gallery and query are one line. Lists of integers become .bak."""
    require_listable(lists, True, "")
    files = write_crops(root, lists, skip) if crops else {}
    rows: dict[tuple[str, int], list[bool]] = {}
    for place, name in enumerate(LISTS):
        for path, label in zip(lists[name].paths, lists[name].labels, strict=True):
            rows.setdefault((path, label), [False] * len(LISTS))[place] = True
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CONVERTED_HEAD)
    names = _names_apart({label for _, label in rows}, lists["train"].names)
    for (path, label), (trained, searched, asked) in rows.items():
        box = box_of(path) if not crops else None
        if isinstance(path, ImageSource) and path.length is not None and not crops:
            raise DatasetError(
                f"{path} is a part of a file, which a table cannot name.",
                where=str(root),
                fix="-o CheckDataset.convert.crops=True writes an image file for each.",
                code="convert-needs-crops",
            )
        if not (file := files.get(path, path) if box is None else _picture_of(path, root)):
            continue
        for part in ["train"] * trained + ["validation"] * (searched or asked):
            flags = (asked, searched) if part == "validation" else ("", "")
            writer.writerow([file, names[label], part, *flags, *(box or ("",) * 4)])
    if lists["query"].cameras:
        log.warning("The table cannot name cameras: gallery images of a query's own camera count with it.")
    write_with_backup(root / CONVERTED, text.getvalue().encode(errors="surrogateescape"))
    for former in (root / f"{name}.txt" for name in LISTS):
        if former.is_file():
            kept = next_backup_path(former)
            former.replace(kept)
            log.info("The former %s is now %s", former.name, kept)


def _names_apart(labels: set[int], names: Mapping[int, str]) -> dict[int, str]:
    """A name for each class that no other has; the number of the class stands behind one that two have."""
    plain = {label: plain_name(names.get(label, "")) or str(label) for label in sorted(labels)}
    counts = Counter(plain.values())
    apart = {label: name if counts[name] == 1 else f"{name} ({label})" for label, name in plain.items()}
    if len(set(apart.values())) < len(apart):
        raise DatasetError(
            "Names of classes are equal, also with their numbers behind them.",
            where=LABELS,
            fix="Give each class another name.",
            code="names-equal",
        )
    return apart


def _picture_of(path: str, root: Path) -> str:
    """The picture that a box is of, as a table names it: its address, or its path below the root."""
    if is_url(path):
        return path.removesuffix(f"[{box_of(path)}]")
    return os.path.relpath(file_of(path), root)
