"""CUB-200-2011: images.txt, image_class_labels.txt and classes.txt beside the folder images.

The classes 1 to 100 are trained on; each other image looks for those of its class (Song et al., CVPR 2016).
train_test_split.txt divides the images for classification and is not used. Source:
https://www.vision.caltech.edu/datasets/cub_200_2011/ (Wah et al., 2011).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddlex_feat.data.findings import Finding, cap_per_code
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.published import records
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

_IMAGES, _LABELS, _CLASSES = "images.txt", "image_class_labels.txt", "classes.txt"
_TRAINED, _LAST = 100, 200  # number of the last class that is trained on, and of the last class
_COUNTS = {"train": (5_864, 100), "gallery": (5_924, 100)}  # Song et al. 2016


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists, where the classes are those of CUB: NABirds, which has the same files, has more of them."""
    classes = records.first_lines(folder / _CLASSES)
    known = 0 < len(classes) <= _LAST and all(len(fields) > 1 and _is_class(*fields[:2]) for fields in classes)
    files = known and all((folder / file).is_file() for file in (_IMAGES, _LABELS))
    return len(names) if files and (folder / "images").is_dir() else 0


def _is_class(number: str, name: str) -> bool:
    """Whether a name begins with its number, as in `1 001.Black_footed_Albatross`."""
    return _number(number) > 0 and name.startswith(f"{_number(number):03d}.")


def _number(text: str) -> int:
    """The number of a class; 0 for any other text."""
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    return value if value <= _LAST else 0


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    items = Items(root, _IMAGES)
    items.evaluate(Part())
    findings = cap_per_code(_fill(items))
    findings += records.check_counts(items, names, _COUNTS)
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    understood = (
        f"classes 1 to {_TRAINED} are trained on; each image of classes {_TRAINED + 1} to {_LAST} looks for the others "
        "of its class; train_test_split.txt is not used"
    )
    return Reading(items.lists(names), findings, understood)


def _fill(items: Items) -> Iterator[Finding]:
    """Add the images to the parts; what is wrong with the records of the three files are findings."""
    names, numbers = dict[str, str](), dict[str, str]()
    yield from _pairs(items.root, _CLASSES, names)
    yield from _pairs(items.root, _LABELS, numbers)
    unreadable: list[Finding] = []
    for line_number, line in records.read_lines(items.root, _IMAGES, unreadable):
        image, path = (*line.split(None, 1), "")[:2]
        number = numbers.get(image, "")
        if not records.is_path(path):
            problem = f"{line[:80]!r} is not an image's number and its path."
        elif not number:
            problem = f"{_LABELS} has no class of image {image[:40]}."
        elif not _number(number):
            problem = f"{_LABELS}: {number[:40]!r} is not a class from 1 to {_LAST}."
        else:
            part = items.part("train" if _number(number) <= _TRAINED else "gallery")
            part.add(f"images/{path}", names.get(number, number), line_number)
            continue
        yield records.RECORD.at(f"{_IMAGES}:{line_number}", problem)
    yield from unreadable


def _pairs(root: Path, file: str, found: dict[str, str]) -> Iterator[Finding]:
    """Add what a file gives to each number."""
    unreadable: list[Finding] = []
    for line_number, line in records.read_lines(root, file, unreadable):
        fields = line.split(None, 1)
        if len(fields) < 2 or fields[0] in found:
            what = "has a number that is already there" if len(fields) == 2 else "is not a number and what it has"
            yield records.RECORD.at(f"{file}:{line_number}", f"{line[:80]!r} {what}.")
        else:
            found[fields[0]] = fields[1]
    yield from unreadable


CUB = ReaderSpec(
    name="CUB-200-2011",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: (f"{_IMAGES} of CUB-200-2011",),
    layout=f"CUB-200-2011 has {_IMAGES}, {_LABELS}, {_CLASSES} and the folder images.",
    findings=records.FINDINGS,
)
