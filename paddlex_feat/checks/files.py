"""Checks of paths and image files."""

from __future__ import annotations

from collections.abc import Iterator

from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.data.findings import MAX_PER_CODE, Finding
from paddlex_feat.data.lists import outside
from paddlex_feat.fileio import lookup

REPLACE = "Replace the file or take its lines off the lists."
_EXPLAINED = ("image-missing", "image-unreadable")  # errors that the path may explain
_PROPERTIES = {
    "animated": ("warning", "The image is animated; only its first frame is used.", "Save the frames as images."),
    "multi-page": ("warning", "The file has several pages; only the first is used.", "Save the pages as images."),
    "cmyk": ("warning", "The image is CMYK; its colours are converted without a profile.", "Save it as RGB."),
    "16-bit": ("warning", "The image has 16 bits a channel; 8 are used.", "Save it with 8 bits."),
    "alpha": ("warning", "The image has transparency, which is dropped.", "Put it on a background."),
    "rotated": ("note", "The image is turned as its EXIF data say.", "Nothing, where that is right."),
}
_EMPTY = {
    "blank": "The image is of one colour (levels {} to {} of 255).",
    "dark": "The image is nearly black: its brightest pixel is {1} of 255.",
    "bright": "The image is nearly white: its darkest pixel is {0} of 255.",
}
_DIM = 64  # of 255: the brightest level of 14 bits in 16


def paths(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Paths outside the data set's folder, which then cannot be moved or trusted; `read_list` may refuse them."""
    for name, records in data.lists.items():
        for i, path in enumerate(records.paths):
            if problem := outside.by_text(path):
                code, message = problem
                yield Finding(code, "warning", records.where(i), f"{path} {message}", outside.FIX.format(name))


def images(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Every image exists and decodes; a file on several lines is an error on each."""
    bad = {path: info for path, info in data.image_info.items() if info.error}
    find, explained = lookup.Lookup(data.root), 0
    for file, record in data.records() if bad else ():
        if file in bad:
            info = bad[file]
            message = f"{record.path}: {info.message}"
            if info.error in _EXPLAINED and explained < MAX_PER_CODE:
                message, explained = f"{message} {find.explain(file, 'file')}".rstrip(), explained + 1
            yield Finding(info.error, "error", record.where, message, REPLACE)


def properties(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Images that are used otherwise than they look elsewhere."""
    special = {path: info.properties for path, info in data.image_info.items() if info.properties and not info.error}
    for file, record in _first_records(data, set(special)):
        for name in special[file]:
            severity, message, fix = _PROPERTIES[name]
            if name == "16-bit" and max(data.image_info[file].levels, default=255) <= _DIM:
                message += (
                    f" Its brightest pixel then is {data.image_info[file].levels[1]} of 255: almost nothing is left."
                )
                fix = "Scale its values to the whole range, then save it with 8 bits."
            yield Finding(f"image-{name}", severity, record.where, f"{record.path}: {message}", fix, (file,))


def damage(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Images whose data the decoder repaired or filled."""
    for file, record in _first_records(data, {f for f, info in data.image_info.items() if info.damage}):
        message = (
            f"{record.path}: Its data are damaged, and parts of the picture are wrong ({data.image_info[file].damage})."
        )
        yield Finding("image-damaged", "warning", record.where, message, REPLACE, (file,))


def information(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Images that show next to nothing."""
    for file, record in _first_records(data, {f for f, info in data.image_info.items() if info.empty}):
        info = data.image_info[file]
        if info.empty != "dark" or "16-bit" not in info.properties:  # the check of 16 bits tells of these
            message = f"{record.path}: {_EMPTY[info.empty].format(*info.levels)}"
            yield Finding(f"image-{info.empty}", "warning", record.where, message, REPLACE, (file,))


def _first_records(data: DataSet, files: set[str]) -> Iterator[tuple[str, RecordLocation]]:
    """Each of the files with the first of its records."""
    left = set(files)
    for file, record in data.records() if left else ():
        if file in left:
            left.remove(file)
            yield file, record


def sizes(data: DataSet, settings: CheckSettings) -> list[Finding]:
    """Images are at least as large as the network's input. One finding for all that are not."""
    side = settings.input_size
    small = {p: f for p, f in data.image_info.items() if not f.error and 0 < min(f.width, f.height) < side}
    if not small:
        return []
    smallest = min(small, key=lambda p: small[p].width * small[p].height)
    record = next(record for file, record in data.records() if file == smallest)
    message = (
        f"{len(small)} of {len(data.image_info)} images are smaller than the {side} px of the network's input; "
        f"the smallest, {record.path}, has {small[smallest].width} x {small[smallest].height}."
    )
    fix = "Use larger images, or a smaller Train.input_size: enlarging adds no detail and costs time."
    return [Finding("image-small", "warning", record.where, message, fix, (smallest,))]
