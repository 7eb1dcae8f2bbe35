"""A folder for each class: `cat/1.jpg`; below folders of lists: `train/cat/1.jpg`; or above them: `cat/train/1.jpg`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.folders import Walk, in_words, is_image
from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.readers.items import UNDIVIDED, Items, Part
from paddlex_feat.data.readers.parts import assign, part_of, says_parts
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

WITHOUT_CLASS = FindingSpec(
    "image-without-class", "warning", "images lie in no folder of a class", "Move them into the folder of their class."
)
OTHER_FOLDER = FindingSpec(
    "folder-of-no-list",
    "warning",
    "beside folders such as train and test there is another folder of images; it is left out",
    "Nothing, if it does not belong to the data set; else move its folders of classes into train, test or the like.",
)
LEFT_OUT = FindingSpec("file-no-image", "note", "files are no images", "Nothing, if they are not meant to be.")
NO_CLASSES = FindingSpec(
    "folders-without-classes",
    "error",
    "folders of lists, such as train and test, hold images without folders of classes",
    "Put the images of each class into a folder of its name; if annotations name the classes, name their format with "
    "Global.dataset_format.",
)
UNREADABLE = FindingSpec(
    "folder-unreadable", "error", "a folder cannot be read", "Give this user the right to read it."
)
SEARCHED = 3  # levels below a folder of images where a claim looks for one
Names = tuple[str, ...]  # of the folders from the data set's folder down
Folders = dict[Names, list[str]]  # names of the images in each folder that holds some


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists where at least two folders hold images."""
    walk, found = Walk(), 0
    try:
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return 0
    for path in below:
        if not walk.leaves_out(os.path.basename(path), "folders"):
            found += _folders_of_images(path, SEARCHED, 2 - found)
            if found > 1:
                return len(names)
    return 0


def _folders_of_images(folder: str, depth: int, enough: int) -> int:
    """Number of folders with an image, by its suffix, among a folder and those below it; counted up to `enough`."""
    below, own = [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                own = own or int(os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.name[0] != ".")
                if depth and entry.name[0] != "." and entry.is_dir():
                    below.append(entry.path)
    except OSError:
        return 0
    for path in sorted(below):
        if own >= enough:
            break
        own += _folders_of_images(path, depth - 1, enough - own)
    return own


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    walk, items = Walk(), Items(root)
    folders = dict(_folders_with_images(root, walk))
    findings, understood = _divide(items, folders)
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    for error in walk.errors:
        findings.append(UNREADABLE.at(str(error.filename), f"The folder cannot be read ({error.strerror})."))
    if walk.left_out:
        findings.append(LEFT_OUT.at(str(root), f"Left out: {in_words(walk.left_out)}."))
    return Reading(items.lists(names), findings, understood)


def _folders_with_images(root: Path, walk: Walk) -> Iterator[tuple[Names, list[str]]]:
    """Each folder that holds images, with their names, both in order; links are followed, no real folder twice."""
    seen: set[str] = set()
    waiting: list[Names] = [()]
    while waiting:
        parts = waiting.pop()
        folder = os.path.join(root, *parts)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        images, below = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if not walk.leaves_out(entry.name, "folders"):
                            below.append(entry.name)
                    elif not walk.leaves_out(entry.name, "files") and is_image(entry.path, walk):
                        images.append(entry.name)
        except OSError as error:
            walk.errors.append(error)
            continue
        if images:
            yield parts, sorted(images)
        waiting += [(*parts, name) for name in sorted(below, reverse=True)]


def _divide(items: Items, folders: Folders) -> tuple[list[Finding], str]:
    """Give each image its part and its class; returns findings, and how the folders were understood."""
    top = _common(folders)
    findings = [_without_class(folder, len(images)) for folder, images in folders.items() if len(folder) <= len(top)]
    classes = {folder: folder[len(top) :] for folder in folders if len(folder) > len(top)}
    inner = {name: part_of(name) for name in {names[-1] for names in classes.values() if len(names) > 1}}
    outer = {name: part_of(name) for name in {names[0] for names in classes.values()}}
    found: dict[str, Part] = {}

    def add(part: str, name: Names, folder: Names) -> None:
        target = found.setdefault(part, Part())
        for image in folders[folder]:
            target.add("/".join((*folder, image)), "/".join(name))

    if says_parts(inner.values()) and all(len(n) > 1 and inner.get(n[-1]) for n in classes.values()):
        for folder, names in classes.items():
            add(inner[names[-1]] or "", names[:-1], folder)
        return findings, f"a folder is a class, and holds folders of lists; {assign(items, found)}"
    if says_parts(outer.values()) and any(outer[n[0]] and len(n) > 1 for n in classes.values()):
        for folder, names in classes.items():
            part = outer[names[0]]
            if part is None:
                message = f"{'/'.join(folder)}: {len(folders[folder])} images are not used."
                findings.append(OTHER_FOLDER.at("/".join(folder), message))
            elif len(names) == 1:
                findings.append(_without_class(folder, len(folders[folder])))
            else:
                add(part, names[1:], folder)
        return findings, f"a folder below that of a list is a class; {assign(items, found)}"
    if len(classes) > 1 and all(part_of(names[-1]) for names in classes.values()):
        folders_named = " and ".join("/".join(folder) for folder in classes)
        findings.append(NO_CLASSES.at(folders_named, f"{folders_named} hold images, and no folders of classes."))
        return findings, "folders of lists without classes"
    for folder, names in classes.items():
        add(UNDIVIDED, names, folder)
    items.parts |= found
    return findings, "a folder is a class"


def _common(folders: Folders) -> Names:
    """The folders that lead to those of all classes, such as ("images",) for images/cat and images/dog."""
    top: Names = ()
    while True:
        below = {folder[len(top)] for folder in folders if len(folder) > len(top)}
        deeper = any(len(folder) > len(top) + 1 for folder in folders)
        if len(below) != 1 or not deeper:
            return top
        top = (*top, below.pop())


def _without_class(folder: Names, images: int) -> Finding:
    where = "/".join(folder) or "the top folder"
    return WITHOUT_CLASS.at(where, f"{images} images lie in no folder of a class and are left out.")


CLASS_FOLDERS = ReaderSpec(
    name="ClassFolders",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("a folder for each class",),
    layout="Class folders: the images of a class lie in a folder of its name, also below train, gallery, query, test.",
    findings=(WITHOUT_CLASS, OTHER_FOLDER, LEFT_OUT, NO_CLASSES, UNREADABLE),
    generic=True,
)
