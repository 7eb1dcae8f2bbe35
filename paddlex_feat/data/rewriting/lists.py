"""Write the lists of a data set as train.txt, gallery.txt and query.txt, and the names of its classes as label.txt."""

from __future__ import annotations

import logging
from pathlib import Path

from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.lists import transaction
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers.shitu_rec import is_listable_path
from paddlex_feat.data.rewriting.crops import write_crops
from paddlex_feat.errors import DatasetError

log = logging.getLogger(__name__)
LABELS = "label.txt"


def write_lists(root: Path, lists: dict[str, ImageList], crops: bool = False, skip: bool = False) -> None:
    """Write the three lists together; the former ones become .bak.

    Args:
        root: folder of the data set.
        lists: what they hold.
        crops: images that are no files of their own become files (`write_crops`); else they are errors.
        skip: leave out those that cannot be decoded.

    Raises:
        DatasetError: an image cannot be named in a list, or not decoded; nothing has changed then.
    """
    require_listable(lists, crops, "-o CheckDataset.convert.crops=True writes an image file for each.")
    files = write_crops(root, lists, skip) if crops else {}
    texts = names_text(lists["train"])
    for name, records in lists.items():
        paths = [files.get(path, path) for path in records.paths]
        texts[name] = "".join(f"{path} {label}\n" for path, label in zip(paths, records.labels, strict=True) if path)
    transaction.replace_lists(root, texts)
    if lists["query"].leave_one_out:
        log.warning("Gallery and query are the same images: give -o Evaluate.exclude_self=True with these lists.")
    if lists["query"].cameras:
        log.warning("Lists cannot name cameras: gallery images of a query's own camera count with these lists.")


def require_listable(lists: dict[str, ImageList], crops: bool, fix: str) -> None:
    """Raise DatasetError for images that a list cannot name."""
    for records in lists.values():
        for index, path in enumerate(records.paths):
            within = isinstance(path, ImageSource)
            if within and not crops:
                raise DatasetError(
                    f"{path} is a part of a file, which lists cannot name.",
                    where=records.where(index),
                    fix=fix,
                    code="convert-needs-crops",
                )
            from_list = records.file == ""  # what a list has named, a list can name
            if not within and not from_list and not is_listable_path(path):
                raise DatasetError(
                    f"{path!r} cannot be written in a list.",
                    where=records.where(index),
                    fix="Rename the file: no spaces at the ends, no line breaks or control characters.",
                    code="path-unlistable",
                )


def names_text(records: ImageList) -> dict[str, str]:
    """The class names as `transaction.replace_lists` takes them, a line each in the order of the labels."""
    names = [plain_name(records.names.get(label, "")) for label in range(max(records.names, default=-1) + 1)]
    return {transaction.NAMES: "".join(f"{name}\n" for name in names)} if names else {}


def plain_name(name: str) -> str:
    """The name of a class on one line."""
    return " ".join(name.split())
