"""Checks of paths and image files."""

from __future__ import annotations

from collections.abc import Iterator

from paddlex_feat.checks.context import DataSet, Place, Settings
from paddlex_feat.data.findings import KEPT, Finding
from paddlex_feat.data.lists import outside
from paddlex_feat.fileio import lookup

REPLACE = "Replace the file or take its lines off the lists."
_EXPLAINED = ("image-missing", "image-unreadable")  # faults that the path may explain
_TRAITS = {
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


def paths(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Paths outside the data set's folder, which then cannot be moved or trusted; `read_list` may refuse them."""
    for name, records in data.lists.items():
        for i, path in enumerate(records.paths):
            if fault := outside.by_text(path):
                kind, message = fault
                yield Finding(kind, "warning", records.where(i), f"{path} {message}", outside.FIX.format(name))


def images(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Every image exists and decodes; a file on several lines is an error on each."""
    bad = {path: facts for path, facts in data.facts.items() if facts.fault}
    find, explained = lookup.Lookup(data.root), 0
    for file, place in data.records() if bad else ():
        if file in bad:
            facts = bad[file]
            message = f"{place.path}: {facts.message}"
            if facts.fault in _EXPLAINED and explained < KEPT:
                message, explained = f"{message} {find.explain(file, 'file')}".rstrip(), explained + 1
            yield Finding(facts.fault, "error", place.where, message, REPLACE)


def traits(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Images that are used otherwise than they look elsewhere."""
    special = {path: facts.traits for path, facts in data.facts.items() if facts.traits and not facts.fault}
    for file, place in _first_places(data, set(special)):
        for trait in special[file]:
            severity, message, fix = _TRAITS[trait]
            if trait == "16-bit" and max(data.facts[file].levels, default=255) <= _DIM:
                message += f" Its brightest pixel then is {data.facts[file].levels[1]} of 255: almost nothing is left."
                fix = "Scale its values to the whole range, then save it with 8 bits."
            yield Finding(f"image-{trait}", severity, place.where, f"{place.path}: {message}", fix, (file,))


def damage(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Images whose data the decoder repaired or filled."""
    for file, place in _first_places(data, {f for f, facts in data.facts.items() if facts.damage}):
        message = f"{place.path}: Its data are damaged, and parts of the picture are wrong ({data.facts[file].damage})."
        yield Finding("image-damaged", "warning", place.where, message, REPLACE, (file,))


def information(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Images that show next to nothing."""
    for file, place in _first_places(data, {f for f, facts in data.facts.items() if facts.empty}):
        facts = data.facts[file]
        if facts.empty != "dark" or "16-bit" not in facts.traits:  # the check of 16 bits tells of these
            message = f"{place.path}: {_EMPTY[facts.empty].format(*facts.levels)}"
            yield Finding(f"image-{facts.empty}", "warning", place.where, message, REPLACE, (file,))


def _first_places(data: DataSet, files: set[str]) -> Iterator[tuple[str, Place]]:
    """Each of the files with the first of its records."""
    left = set(files)
    for file, place in data.records() if left else ():
        if file in left:
            left.remove(file)
            yield file, place


def sizes(data: DataSet, settings: Settings) -> list[Finding]:
    """Images are at least as large as the network's input. One finding for all that are not."""
    side = settings.input_size
    small = {p: f for p, f in data.facts.items() if not f.fault and 0 < min(f.width, f.height) < side}
    if not small:
        return []
    smallest = min(small, key=lambda p: small[p].width * small[p].height)
    place = next(place for file, place in data.records() if file == smallest)
    message = (
        f"{len(small)} of {len(data.facts)} images are smaller than the {side} px of the network's input; "
        f"the smallest, {place.path}, has {small[smallest].width} x {small[smallest].height}."
    )
    fix = "Use larger images, or a smaller Train.input_size: enlarging adds no detail and costs time."
    return [Finding("image-small", "warning", place.where, message, fix, (smallest,))]
