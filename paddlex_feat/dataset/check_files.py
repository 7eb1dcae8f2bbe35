"""Checks of paths and image files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PureWindowsPath

from paddlex_feat import lookup
from paddlex_feat.dataset.findings import KEPT, Finding
from paddlex_feat.dataset.subject import DataSet, Settings

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


def paths(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Paths stay in the data set's folder, so that the folder can be moved and trusted."""
    for name, records in data.lists.items():
        for i, path in enumerate(records.paths):
            if ".." not in path and path[0] not in "/\\" and path[1:2] != ":":
                continue
            if path[0] in "/\\" or PureWindowsPath(path).drive:
                kind, message = "path-absolute", "is absolute, so the data set cannot be moved."
            elif os.path.normpath(path.replace("\\", "/")).startswith(".."):
                kind, message = "path-leaves", "leaves the data set's folder."
            else:
                continue
            fix = f"Move the image below the folder of {name}.txt and write its path from there."
            yield Finding(kind, "warning", records.where(i), f"{path} {message}", fix)


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
    seen = set()
    for file, place in data.records() if special else ():
        if file in special and file not in seen:
            seen.add(file)
            for trait in special[file]:
                severity, message, fix = _TRAITS[trait]
                yield Finding(f"image-{trait}", severity, place.where, f"{place.path}: {message}", fix, (file,))


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
