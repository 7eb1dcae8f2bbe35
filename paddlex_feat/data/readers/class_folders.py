"""A folder for each class: `cat/1.jpg`; below folders of lists: `train/cat/1.jpg`; or above them: `cat/train/1.jpg`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.folders import Walk, in_words, is_image, unread_pictures
from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.readers.items import UNDIVIDED, Items, Part
from paddlex_feat.data.readers.parts import assign, part_in, part_of, says_parts
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.data.readers.tables import unusable_table

WITHOUT_CLASS = FindingSpec(
    "image-without-class", "warning", "images lie in no folder of a class", "Move them into the folder of their class."
)
OTHER_FOLDER = FindingSpec(
    "folder-of-no-list",
    "warning",
    "beside folders such as train and test there is another folder of images; it is left out",
    "Nothing, if it does not belong to the data set; else move its folders of classes into train, test or the like.",
)
UNREAD = FindingSpec(
    "annotations-unread",
    "warning",
    "beside the images lie files that may name their classes; they are not read, and each folder is taken for a class",
    "Nothing, if the folders are the classes; else bring the files into a form that is read: docs/datasets.md.",
)
ALIKE = FindingSpec(
    "folders-alike",
    "warning",
    "several folders hold folders of the same names, each of which is taken for a class of its own",
    "If they are parts of the data set, name them train and test, or train, gallery and query.",
)
UNREAD_PICTURES = FindingSpec(
    "picture-unread",
    "warning",
    "pictures of a format that is not read are left out",
    "Convert them to JPEG or PNG, or remove them.",
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
_OF_RESULTS = {"check_dataset", "evaluate", "predict", "best_model", "latest"}  # folders in Global.output
_RESULT = re.compile(r"(check_dataset|train|evaluate|export|predict|index|search)_result\.json")
_FILLING = {"images", "image", "imgs", "img", "pictures", "photos"}  # folders that stand for no class
_ANNOTATIONS = (".xml", ".json", ".txt")  # of a picture, with its name
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
                if _RESULT.fullmatch(entry.name):
                    return 0
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
    walk, items, beside = Walk(), Items(root), Counter[str]()
    folders = dict(_folders_with_images(root, walk, beside))
    findings, understood = _divide(items, folders)
    if told := unusable_table(root):
        findings.append(UNREAD.at(str(root), f"{told} Each folder is taken for a class."))
    if beside:
        findings.append(UNREAD.at(str(root), f"Beside the images lie files of their names: {in_words(beside)}."))
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    for error in walk.errors:
        findings.append(UNREADABLE.at(str(error.filename), f"The folder cannot be read ({error.strerror})."))
    if pictures := unread_pictures(walk.left_out):
        findings.append(UNREAD_PICTURES.at(str(root), f"Not read: {in_words(pictures)}."))
    if walk.left_out:
        findings.append(LEFT_OUT.at(str(root), f"Left out: {in_words(walk.left_out)}."))
    return Reading(items.lists(names), findings, understood)


def _folders_with_images(root: Path, walk: Walk, beside: Counter[str]) -> Iterator[tuple[Names, list[str]]]:
    """Each folder that holds images, with their names, both in order; links are followed, no real folder twice.

    Files beside an image that have its name are counted in `beside`, by their suffix.
    """
    seen: set[str] = set()
    waiting: list[Names] = [()]
    while waiting:
        parts = waiting.pop()
        folder = os.path.join(root, *parts)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        images, below, others = list[str](), list[str](), list[str]()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if not walk.leaves_out(entry.name, "folders"):
                            below.append(entry.name)
                    elif not walk.leaves_out(entry.name, "files") and is_image(entry.path, walk):
                        images.append(entry.name)
                    elif entry.name.lower().endswith(_ANNOTATIONS):
                        others.append(entry.name)
        except OSError as error:
            walk.errors.append(error)
            continue
        if any(_RESULT.fullmatch(name) for name in others):  # of this program, as check_dataset's demo_img
            walk.left_out["folders of results"] += 1
            images, below = [], [] if parts else [name for name in below if name not in _OF_RESULTS]
        if images and others:
            stems = {os.path.splitext(name)[0] for name in images}
            named = (os.path.splitext(name) for name in others)
            beside.update(f"{suffix.lower()} files" for stem, suffix in named if stem in stems)
        if images:
            yield parts, sorted(images)
        waiting += [(*parts, name) for name in sorted(below, reverse=True)]


def _divide(items: Items, folders: Folders) -> tuple[list[Finding], str]:
    """Give each image its part and its class; returns findings, and how the folders were understood."""
    top = _common(folders)
    findings = [_without_class(folder, len(images)) for folder, images in folders.items() if len(folder) <= len(top)]
    classes = {folder: _without_filling(folder[len(top) :]) for folder in folders if len(folder) > len(top)}
    inner = {name: part_of(name) for name in {names[-1] for names in classes.values() if len(names) > 1}}
    outer = _outer_parts(classes)
    classes = _unpacked(classes, outer)
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
    below = _below({name: name for name in outer}, classes)
    if len(below) < len(classes) and len(_common_to(below)) > 1:
        shown = " and ".join(sorted(below)[:4])
        findings.append(ALIKE.at(shown, f"{shown} hold folders of the same names."))
    return findings, "a folder is a class"


def _without_filling(names: Names) -> Names:
    """The folders of a class without those that stand for none, as cat/images, unless no other is left."""
    kept = tuple(name for name in names if name.lower() not in _FILLING)
    return kept or names


def _outer_parts(classes: dict[Names, Names]) -> dict[str, str | None]:
    """The part of each of the outer folders: its name says it, or a word of its name.

    A word counts only where these folders hold folders of the same names, as those of a divided data set do, or each
    holds one folder of its own name, as in archives that were unpacked into a folder: seg_train/seg_train/sea.
    """
    strict = {name: part_of(name) for name in {names[0] for names in classes.values()}}
    loose = {name: part_in(name) for name in strict}
    if says_parts(strict.values()) or not says_parts(loose.values()):
        return strict
    nested = all(names[1:2] == names[:1] for names in classes.values() if loose[names[0]])
    return loose if nested or len(_common_to(_below(loose, classes))) > 1 else strict


def _below(parts: Mapping[str, str | None], classes: dict[Names, Names]) -> dict[str, set[Names]]:
    """The folders in those of each part."""
    below: dict[str, set[Names]] = {}
    for names in classes.values():
        part = parts[names[0]]
        inside = names[2:] if names[1:2] == names[:1] else names[1:]
        if part and inside:
            below.setdefault(part, set()).add(inside)
    return below


def _common_to(below: dict[str, set[Names]]) -> set[Names]:
    """The folders that all parts have, if there are several parts, and these are half of what the smallest one has."""
    if len(below) < 2:
        return set()
    common = set.intersection(*below.values())
    return common if 2 * len(common) >= min(map(len, below.values())) else set()


def _unpacked(classes: dict[Names, Names], outer: dict[str, str | None]) -> dict[Names, Names]:
    """The classes, where the folder of a part holds nothing but a folder of its own name, without the second one."""
    once = {names[0] for names in classes.values() if outer[names[0]] and names[1:2] != names[:1]}
    twice = {name for name, part in outer.items() if part} - once
    return {folder: names[:1] + names[2:] if names[0] in twice else names for folder, names in classes.items()}


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
    findings=(WITHOUT_CLASS, OTHER_FOLDER, UNREAD, ALIKE, UNREAD_PICTURES, LEFT_OUT, NO_CLASSES, UNREADABLE),
    generic=True,
)
