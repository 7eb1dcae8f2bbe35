"""DeepFashion In-shop Clothes Retrieval: Eval/list_eval_partition.txt names the images, below Img/, and their lists.

The first line is the number of images, the second `image_name item_id evaluation_status`; the status is train, query or
gallery. Source: http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html (Liu et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddlex_feat.data.findings import Finding, cap_per_code
from paddlex_feat.data.readers.items import Items
from paddlex_feat.data.readers.published import records
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_HEADER = ["image_name", "item_id", "evaluation_status"]
_PARTS = ("train", "query", "gallery")
# Images and classes in papers: Liu et al. 2016; Musgrave et al. 2020 (arXiv:2003.08505).
_COUNTS = {"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)}


def _list_of(folder: Path) -> str | None:
    """The list of the images, by its header."""
    return next((name for name in _LISTS if _HEADER in records.first_lines(folder / name)[:2]), None)


def _images_of(folder: Path) -> str | None:
    """What comes before the paths of the list, whose first folder is `img`; None where no such folder exists."""
    return next((top for top in ("Img/", "") if (folder / top / "img").is_dir()), None)


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists; one less without images, as in the folder Eval itself."""
    return len(names) - (_images_of(folder) is None) if _list_of(folder) else 0


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    file = _list_of(root) or _LISTS[0]
    items = Items(root, file)
    findings = cap_per_code(_fill(items))
    findings += records.check_counts(items, names, _COUNTS)
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    return Reading(items.lists(names), findings, f"{file} divides the images into train, query and gallery")


def _fill(items: Items) -> Iterator[Finding]:
    """Add the records to the parts; what is wrong with the others are findings."""
    top, unreadable = _images_of(items.root) or "", list[Finding]()
    counted = total = 0
    for number, line in records.read_lines(items.root, items.file, unreadable):
        fields = line.rsplit(None, 2)
        if fields == _HEADER:
            continue
        if not counted and line.isascii() and line.isdigit() and len(line) < 10 and not total:
            counted = int(line)
            continue
        total += 1
        if len(fields) != len(_HEADER) or fields[2] not in _PARTS or not records.is_path(fields[0]):
            message = f"{line[:80]!r} is not an image, an item and train, query or gallery."
            yield records.RECORD.at(f"{items.file}:{number}", message)
            continue
        items.part(fields[2]).add(f"{top}{fields[0]}", fields[1], number)
    yield from unreadable
    if counted != total and not unreadable:
        message = f"The first line counts {counted:,} images, and {total:,} lines follow."
        yield records.COUNTS.at(items.file, message, severity="warning")


IN_SHOP = ReaderSpec(
    name="InShop",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("list_eval_partition.txt of DeepFashion In-shop",),
    layout="In-shop has Eval/list_eval_partition.txt, and its images below Img/img.",
    findings=records.FINDINGS,
)
