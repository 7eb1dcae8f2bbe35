"""Cars-196, in both layouts of its authors; the classes 1 to 98 are trained on (Song et al., CVPR 2016).

- cars_annos.mat beside car_ims/: the later one, with all images in one folder.
- cars_train/ and cars_test/ with cars_train_annos.mat and cars_test_annos_withlabels.mat, in devkit/ or beside them.
  Their division is for classification and is not used.

Each image of the other classes looks for those of its class. Source:
https://ai.stanford.edu/~jkrause/cars/car_dataset.html (Krause et al., 3dRR 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paddlex_feat.data.findings import Finding, cap_per_code
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.published import matlab, records
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

_TRAINED, _LAST = 98, 196  # number of the last class that is trained on, and of the last class
_COUNTS = {"train": (8_054, 98), "gallery": (8_131, 98)}  # Song et al. 2016
_ONE, _TRAIN, _TEST = "cars_annos.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat"


class _Source(NamedTuple):
    """A file of annotations, its field of paths, and the folder that these start from."""

    file: str
    field: str
    folder: str


def _sources(folder: Path) -> list[_Source]:
    """The files of annotations that a folder should have; none where it is not Cars-196."""
    if (folder / _ONE).is_file() and (folder / "car_ims").is_dir():
        return [_Source(_ONE, "relative_im_path", "")]
    if not ((folder / "cars_train").is_dir() and (folder / "cars_test").is_dir()):
        return []
    places = [next((p for p in ("devkit/", "") if (folder / f"{p}{file}").is_file()), None) for file in (_TRAIN, _TEST)]
    if places == [None, None]:
        return []
    return [
        _Source(f"{'devkit/' if place is None else place}{file}", "fname", top)
        for place, file, top in zip(places, (_TRAIN, _TEST), ("cars_train/", "cars_test/"), strict=True)
    ]


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    return len(names) if _sources(folder) else 0


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    sources = _sources(root) or [_Source(_ONE, "relative_im_path", "")]
    items = Items(root)
    items.part("train")
    items.evaluate(Part())
    findings: list[Finding] = []
    variables = {source.file: _load(root, source.file, findings) for source in sources}
    class_names = _class_names(root, sources[0].file, variables[sources[0].file], findings)
    for source in sources:
        if variables[source.file]:
            findings += cap_per_code(_fill(items, source, variables[source.file], class_names))
    findings += records.check_counts(items, names, _COUNTS)
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    understood = (
        f"{' and '.join(source.file for source in sources)}; classes 1 to {_TRAINED} are trained on; each image of "
        f"classes {_TRAINED + 1} to {_LAST} looks for the others of its class"
    )
    return Reading(items.lists(names), findings, understood)


def _load(root: Path, file: str, findings: list[Finding]) -> dict[str, Any]:
    """The variables of a file; a file that cannot be read is a finding."""
    try:
        return matlab.load(root / file)
    except (OSError, matlab.MatError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        findings.append(records.UNREADABLE.at(file, f"The file cannot be read: {reason}."))
        return {}


def _class_names(root: Path, file: str, variables: dict[str, Any], findings: list[Finding]) -> list[str]:
    """The names of the classes in their order: of cars_annos.mat, else of cars_meta.mat; empty if unknown."""
    if file != _ONE:
        meta = f"{file.removesuffix(_TRAIN)}cars_meta.mat"
        variables = _load(root, meta, findings) if (root / meta).is_file() else {}
    found = variables.get("class_names", ())
    names = [str(name).strip() for name in found] if getattr(found, "ndim", 0) == 1 else []
    usable = len(set(names)) == len(names) == _LAST and all(map(records.is_path, names))
    return names if usable else []


def _fill(items: Items, source: _Source, variables: dict[str, Any], class_names: list[str]) -> Iterator[Finding]:
    """Add the images of a file of annotations; what is wrong with the others are findings."""
    rows = variables.get("annotations")
    fields = getattr(getattr(rows, "dtype", None), "names", None) or ()
    if rows is None or not {source.field, "class"} <= set(fields):
        message = f"The file has no annotations with the fields {source.field} and class."
        yield records.UNREADABLE.at(source.file, message)
        return
    for number, (path, label) in enumerate(zip(rows[source.field].ravel(), rows["class"].ravel(), strict=True), 1):
        where = f"{source.file}, annotation {number}"
        if not isinstance(path, str) or not records.is_path(path):
            yield records.RECORD.at(where, f"The path {str(path)[:80]!r} is not the name of a file.")
        elif not (number_of := _number(label)):
            yield records.RECORD.at(where, f"{path[:80]}: {str(label)[:40]!r} is not a class from 1 to {_LAST}.")
        else:
            name = class_names[number_of - 1] if class_names else f"{number_of:03d}"
            items.part("train" if number_of <= _TRAINED else "gallery").add(f"{source.folder}{path}", name)


def _number(value: object) -> int:
    """The number of a class; 0 for any other value."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if 1 <= number <= _LAST and number == value else 0


CARS = ReaderSpec(
    name="Cars-196",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: (f"{_ONE} of Cars-196",),
    layout=f"Cars-196 has {_ONE} and car_ims, or cars_train, cars_test and the annotations in devkit.",
    findings=records.FINDINGS,
)
