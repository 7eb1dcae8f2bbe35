"""Checks of paths and image files."""

from __future__ import annotations

from collections.abc import Iterator

from paddlex_feat.dataset import outside
from paddlex_feat.dataset.findings import Finding
from paddlex_feat.dataset.subject import DataSet, Settings

REPLACE = "Replace the file or take its lines off the lists."
_TRAITS = {
    "animated": ("warning", "The image is animated; only its first frame is used.", "Save the frames as images."),
    "multi-page": ("warning", "The file has several pages; only the first is used.", "Save the pages as images."),
    "cmyk": ("warning", "The image is CMYK; its colours are converted without a profile.", "Save it as RGB."),
    "16-bit": ("warning", "The image has 16 bits a channel; 8 are used.", "Save it with 8 bits."),
    "alpha": ("warning", "The image has transparency, which is dropped.", "Put it on a background."),
    "rotated": ("note", "The image is turned as its EXIF data say.", "Nothing, where that is right."),
}


def paths(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Paths stay in the data set's folder, so that the folder can be moved and trusted; `read_list` may refuse others."""
    for name, records in data.lists.items():
        for i, path in enumerate(records.paths):
            if fault := outside.by_text(path):
                kind, message = fault
                yield Finding(kind, "warning", records.where(i), f"{path} {message}", outside.FIX.format(name))


def images(data: DataSet, settings: Settings) -> Iterator[Finding]:
    """Every image exists and decodes; a file on several lines is an error on each."""
    bad = {path: facts for path, facts in data.facts.items() if facts.fault}
    for file, place in data.records() if bad else ():
        if file in bad:
            yield Finding(bad[file].fault, "error", place.where, f"{place.path}: {bad[file].message}", REPLACE)


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
