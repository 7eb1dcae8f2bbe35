"""Stanford Online Products: Ebay_train.txt and Ebay_test.txt, with the columns image_id class_id super_class_id path.

Each image of the test looks for the others of its class. Source: https://cvgl.stanford.edu/projects/lifted_struct/
(Song et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paddlex_feat.data.findings import Finding, cap_per_code
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.published import records
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

_HEADER = ["image_id", "class_id", "super_class_id", "path"]
_TRAIN, _TEST = "Ebay_train.txt", "Ebay_test.txt"
_FILES = {"train": _TRAIN, "gallery": _TEST, "query": _TEST}
_COUNTS = {"train": (59_551, 11_318), "gallery": (60_502, 11_316)}  # Song et al. 2016


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """Those whose file has the header."""
    known = {file for file in (_TRAIN, _TEST) if records.first_lines(folder / file)[:1] == [_HEADER]}
    return sum(_FILES.get(name) in known for name in names)


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    items, findings = Items(root), list[Finding]()
    train, test = Part(file=_TRAIN), Part(file=_TEST)
    items.parts["train"] = train
    items.evaluate(test)
    wanted = {_FILES[name] for name in names}
    for part in (train, test):  # both, so that labels do not depend on what is asked for
        if part.file in wanted or (root / part.file).exists():
            findings += cap_per_code(_fill(root, part))
    findings += records.check_counts(items, names, _COUNTS)
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    understood = f"{_TRAIN} is trained on; each image of {_TEST} looks for the others of its class"
    return Reading(items.lists(names), findings, understood)


def _fill(root: Path, part: Part) -> Iterator[Finding]:
    """Add the records of a part's file; what is wrong with the others are findings."""
    unreadable: list[Finding] = []
    for number, line in records.read_lines(root, part.file, unreadable):
        fields = line.split(None, 3)
        if fields == _HEADER:
            continue
        if len(fields) != len(_HEADER) or not records.is_path(fields[3]):
            message = f"{line[:80]!r} is not an image's number, two of classes, and a path."
            yield records.RECORD.at(f"{part.file}:{number}", message)
            continue
        part.add(fields[3], fields[1], number)
    yield from unreadable


ONLINE_PRODUCTS = ReaderSpec(
    name="StanfordOnlineProducts",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: tuple(dict.fromkeys(_FILES[name] for name in names if name in _FILES)) or (_TRAIN,),
    layout=f"Stanford Online Products has {_TRAIN} and {_TEST}, with the columns {' '.join(_HEADER)}.",
    findings=records.FINDINGS,
)
