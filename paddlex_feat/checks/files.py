"""Checks of paths and image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import MAX_PER_CODE, Finding, FindingSpec
from paddlex_feat.data.images.source import picture_of
from paddlex_feat.data.lists import outside
from paddlex_feat.data.lists.columns import Texts
from paddlex_feat.fileio import lookup

_REPLACE = "Replace the file or take its lines off the lists."
_TOO_LARGE = "more than 110,000,000 pixels or 350,000,000 bytes: refused by its header or size, not decoded"
_ERRORS = (
    FindingSpec("image-missing", "error", "the file does not exist; the message names a similar one", _REPLACE),
    FindingSpec("image-is-folder", "error", "the path is a folder", _REPLACE),
    FindingSpec("image-unreadable", "error", "the file cannot be opened, or is a pipe or a device", _REPLACE),
    FindingSpec("image-empty", "error", "the file has no bytes", _REPLACE),
    FindingSpec("image-truncated", "error", "the end of the image is missing", _REPLACE),
    FindingSpec("image-undecodable", "error", "OpenCV cannot decode the file", _REPLACE),
    FindingSpec("image-too-large", "error", _TOO_LARGE, _REPLACE),
)
_ERROR_BY_CODE = {spec.code: spec for spec in _ERRORS}
_EXPLAINED = ("image-missing", "image-unreadable")  # errors that the path may explain

DAMAGED = FindingSpec(
    "image-damaged", "warning", "the data are damaged: the image decodes, and parts of it are wrong", _REPLACE
)
_16_BIT = (
    "8 of 16 bits are used; where the values reach a quarter of the range at most, as 10 to 14 bits in 16 do, the "
    "message names the brightest pixel"
)
# By property of an image: the kind of finding, and its message.
_PROPERTIES = {
    "animated": (
        FindingSpec("image-animated", "warning", "only the first frame is used", "Save the frames as images."),
        "The image is animated; only its first frame is used.",
    ),
    "multi-page": (
        FindingSpec("image-multi-page", "warning", "only the first page is used", "Save the pages as images."),
        "The file has several pages; only the first is used.",
    ),
    "cmyk": (
        FindingSpec("image-cmyk", "warning", "colours are converted without a profile", "Save it as RGB."),
        "The image is CMYK; its colours are converted without a profile.",
    ),
    "16-bit": (
        FindingSpec("image-16-bit", "warning", _16_BIT, "Save it with 8 bits."),
        "The image has 16 bits a channel; 8 are used.",
    ),
    "alpha": (
        FindingSpec("image-alpha", "warning", "transparency is dropped", "Put it on a background."),
        "The image has transparency, which is dropped.",
    ),
    "rotated": (
        FindingSpec("image-rotated", "note", "the image is turned as its EXIF data say", "Nothing, if that is right."),
        "The image is turned as its EXIF data say.",
    ),
}
# By `ImageInfo.empty`: the kind of finding, and its message with the darkest and the brightest level.
_EMPTY = {
    "blank": (
        FindingSpec("image-blank", "warning", "all pixels have nearly the same colour", _REPLACE),
        "The image is of one colour (levels {} to {} of 255).",
    ),
    "dark": (
        FindingSpec("image-dark", "warning", "no pixel is brighter than 32 of 255", _REPLACE),
        "The image is nearly black: its brightest pixel is {1} of 255.",
    ),
    "bright": (
        FindingSpec("image-bright", "warning", "no pixel is darker than 223 of 255", _REPLACE),
        "The image is nearly white: its darkest pixel is {0} of 255.",
    ),
}
_DIM = 64  # of 255: the brightest level of 14 bits in 16
SMALL = FindingSpec(
    "image-small",
    "warning",
    "images are smaller than `Train.input_size`",
    "Use larger images, or a smaller Train.input_size: enlarging adds no detail and costs time.",
)


def check_paths(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find paths outside the data set's folder, which then cannot be moved or trusted; a reader may refuse them."""
    for records in data.lists.values():
        paths = records.paths
        if isinstance(paths, Texts) and not outside.may_leave(paths):
            continue
        for i, path in enumerate(paths):
            if problem := outside.by_text(path):
                spec, message = problem
                yield spec.at(
                    records.where(i), f"{path} {message}", fix=outside.FIX.format(records.source), severity="warning"
                )


def check_images(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find images that do not exist or do not decode; a file on several lines is an error on each."""
    bad = {path: info for path, info in data.image_info.items() if info.error in _ERROR_BY_CODE}
    find, explained = lookup.Lookup(data.root), 0
    for file, record in data.records() if bad else ():
        if file in bad:
            info = bad[file]
            message = f"{record.path}: {info.message}"
            if info.error in _EXPLAINED and explained < MAX_PER_CODE:
                message, explained = f"{message} {find.explain(file, 'file')}".rstrip(), explained + 1
            yield _ERROR_BY_CODE[info.error].at(record.where, message)


def check_damage(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find images whose data the decoder repaired or filled."""
    damage = {file: info.damage for file, info in data.image_info.items() if info.damage}
    for file, record in _first_records(data, _pictures(damage)):
        message = f"{record.path}: Its data are damaged, and parts of the picture are wrong ({damage[file]})."
        yield DAMAGED.at(record.where, message, images=(file,))


def check_properties(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find images that are used otherwise than other programs show them."""
    special = {path: info for path, info in data.image_info.items() if info.properties and not info.error}
    for file, record in _first_records(data, _pictures(special)):
        for name in special[file].properties:
            (spec, message), fix = _PROPERTIES[name], None
            levels = special[file].levels
            if name == "16-bit" and max(levels, default=255) <= _DIM:
                message += f" Its brightest pixel then is {levels[1]} of 255: almost nothing is left."
                fix = "Scale its values to the whole range, then save it with 8 bits."
            yield spec.at(record.where, f"{record.path}: {message}", fix=fix, images=(file,))


def check_contrast(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find images that show next to nothing."""
    for file, record in _first_records(data, {f for f, info in data.image_info.items() if info.empty}):
        info = data.image_info[file]
        if info.empty != "dark" or "16-bit" not in info.properties:  # `check_properties` reports these
            spec, message = _EMPTY[info.empty]
            yield spec.at(record.where, f"{record.path}: {message.format(*info.levels)}", images=(file,))


def check_sizes(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Find images that are smaller than the network's input: one finding for all of them."""
    side = settings.input_size
    small = {p: f for p, f in data.image_info.items() if not f.error and 0 < min(f.width, f.height) < side}
    if small:
        smallest = min(small, key=lambda p: small[p].width * small[p].height)
        record = next(record for file, record in data.records() if file == smallest)
        message = (
            f"{len(small)} of {len(data.image_info)} images are smaller than the {side} px of the network's input; "
            f"the smallest, {record.path}, has {small[smallest].width} x {small[smallest].height}."
        )
        yield SMALL.at(record.where, message, images=(smallest,))


def _pictures(images: Iterable[str]) -> set[str]:
    """One image of each picture, of which the others are boxes too."""
    return set({picture_of(image): image for image in images}.values())


def _first_records(data: DataSet, files: set[str]) -> Iterator[tuple[str, RecordLocation]]:
    """Each of the files with the first of its records."""
    left = set(files)
    for file, record in data.records() if left else ():
        if file in left:
            left.remove(file)
            yield file, record


CHECKS = (
    CheckSpec("paths", check_paths, (outside.LEAVES, outside.ABSOLUTE)),
    CheckSpec("images", check_images, _ERRORS),
    CheckSpec("damage", check_damage, (DAMAGED,)),
    CheckSpec("properties", check_properties, tuple(spec for spec, _ in _PROPERTIES.values())),
    CheckSpec("contrast", check_contrast, tuple(spec for spec, _ in _EMPTY.values())),
    CheckSpec("sizes", check_sizes, (SMALL,)),
)
