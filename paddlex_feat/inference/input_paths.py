"""What a text given to predict means: a file, a folder, a pattern, a list of names, an address, or a mistake."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from paddlex_feat.data.images.decode import SUFFIXES
from paddlex_feat.data.images.folders import Walk, files_below, in_words, is_image
from paddlex_feat.data.images.formats import BEGINNING, looks_like_image
from paddlex_feat.data.lists.image_list import MOST_LIST, decode_list, mixture
from paddlex_feat.fileio.lookup import Lookup
from paddlex_feat.fileio.reading import first_bytes, read_small
from paddlex_feat.hub.urls import is_url
from paddlex_feat.inference.input_texts import Found, cut, exists, local, missing, not_a_path, several

_LIST_SUFFIXES = (".txt", ".lst", ".list", "")
_LINE = re.compile(r"([^\r\n]*)(?:\r\n|\r|\n|\Z)")
_LABELLED = re.compile(r"(.*\S)[ \t]+\d+")  # as our own lists are written
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1f]")


@dataclass
class Search:
    """What is shared while the inputs of one call are looked for.

    Attributes:
        left_out: files and folders that are not read, counted by reason.
        lookup: finds what was meant by paths that do not exist.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    lookup: Lookup = field(default_factory=Lookup)


def images_of(text: str, search: Search) -> Iterator[Found]:
    """The images that a text names, in order; in place of what cannot be used, what is wrong. Never raises."""
    path = local(text)
    if is_url(text):
        yield Found(text)
    elif exists(path):
        yield from (_of_list(path, search) if _is_list(path) else _of_existing(path, search))
    elif glob.has_magic(path) and not_a_path(text) is None:
        yield from _of_pattern(path, search)
    else:
        yield not_a_path(text) or several(text) or missing(text, path, search.lookup)


def _of_existing(path: str, search: Search) -> Iterator[Found]:
    """A file as it is; of a folder the images below, sorted by path."""
    if os.path.isdir(path):
        fix = f"Give a folder with images; they are known by their suffix ({', '.join(sorted(SUFFIXES))}) or content."
        yield from _images_among([path], Found(path, "The folder holds no images", fix), search, Walk())
    else:
        yield Found(path)


def _images_among(matches: list[str], none: Found, search: Search, walk: Walk) -> Iterator[Found]:
    """The images among files, and in folders and below, that were found for a folder or pattern.

    Args:
        none: the fault if there is none. walk: what finding the matches left out.
    """
    folders = [match for match in matches if os.path.isdir(match)]
    files = chain(files_below(walk, *folders), (match for match in matches if not os.path.isdir(match)))
    found = {file for file in files if is_image(file, walk)}
    walk.log(none.path)
    search.left_out.update(walk.left_out)
    for fault in walk.faults:
        yield Found(str(fault.filename), f"The folder cannot be read ({fault.strerror}).", "Fix its permissions.")
    if not found and not walk.faults:
        yield none._replace(
            what=f"{none.what}; left out: {in_words(walk.left_out)}." if walk.left_out else f"{none.what}."
        )
    yield from map(Found, sorted(found))


def _of_pattern(pattern: str, search: Search) -> Iterator[Found]:
    """The images that a pattern matches, and those in folders that it matches."""
    walk = Walk()
    matches = _matches(pattern, walk)
    fix = "Check the folder and the suffix; a folder as input gives all images in it and below."
    if matches or walk.faults:
        yield from _images_among(matches, Found(pattern, "The pattern matches no image", fix), search, walk)
    elif (fault := several(pattern)) is not None:
        yield fault
    else:
        what = f"No file has this name, and none matches it as a pattern.{_near_pattern(pattern, search.lookup)}"
        yield Found(cut(pattern), what, fix)


def _near_pattern(pattern: str, lookup: Lookup) -> str:
    """What may have been meant by a pattern without a match: a blank and a sentence, or ""."""
    folder, _, last = pattern.rpartition("/")
    if "{" in pattern:
        return " Braces are not expanded: give a list of patterns."
    if folder and not glob.has_magic(folder) and not os.path.isdir(folder):
        return f" {lookup.explain(folder, 'folder') or f'There is no folder {folder}.'}"
    if "[" in last:
        meant = lookup.explain(pattern, "any")
        return meant and f" {meant}"
    any_case = re.sub(r"[^\W\d_]", lambda found: f"[{found[0].lower()}{found[0].upper()}]", last)
    others = _matches(os.path.join(folder, any_case), Walk())
    return f" In upper or lower case {len(others)} would match, such as {others[0]}." if others else ""


def _matches(pattern: str, walk: Walk) -> list[str]:
    """Files and folders that match, sorted; only files if the pattern has `**`, which matches any number of folders.

    A wildcard does not match what systems leave beside photographs.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(path for path in glob.glob(pattern) if not _by_system(path.split("/"), parts, walk))
    at = parts.index("**")
    found = []
    for top in glob.glob("/".join([*parts[:at], ""])) if at else [""]:
        for file in files_below(walk, top or "."):
            within = file[len(top or "./") :]
            if _fits(within.split("/"), parts[at:]):
                found.append(top + within)
    return sorted(found)


def _by_system(parts: list[str], pattern: list[str], walk: Walk) -> bool:
    """Whether a wildcard of a pattern has matched something that systems leave; both are given by their parts."""
    wild = (part for part, given in zip(parts, pattern, strict=False) if glob.has_magic(given) and given[0] != ".")
    return any(walk.leaves_out(part, "files") for part in wild)


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path, or a folder above it, matches a pattern; both by their parts."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _is_list(path: str) -> bool:
    """Whether a file is a text with names: by its suffix, unless it is an image; without suffix by its content."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _LIST_SUFFIXES:
        return False
    try:
        beginning = first_bytes(Path(path), BEGINNING)
    except OSError:  # a folder, or what reading it as an image will report
        return False
    if looks_like_image(beginning):
        return False
    return bool(suffix) or (bool(beginning) and not _NOT_TEXT.search(beginning))


def _of_list(path: str, search: Search) -> Iterator[Found]:
    """The images that a text file names, one a line, perhaps with an integer label."""
    try:
        data = read_small(Path(path), MOST_LIST)
        text = decode_list(data)[0]
    except OSError as error:
        yield Found(path, f"The list cannot be read ({error.strerror}).", "Check the file.")
        return
    except UnicodeDecodeError:
        if mixed := mixture(data):
            yield Found(path, mixed[1], mixed[2])
            return
        yield Found(path, "The list of names is not text in UTF-8 or GBK.", "Save it as UTF-8, with one path a line.")
        return
    base = os.path.dirname(path)
    first = next((line for _, line in _lines(text)), None)
    if first is None:
        yield Found(path, "The list names no image.", "Write one path a line.")
        return
    lookup = Lookup(base) if base else search.lookup
    if not any(_resolved(line, base) for _, line in _lines(text)):
        what = f"No line of the list is the path of an existing file. The first is {cut(first)!r}: "
        fix = "Write one path a line, from the folder of the list or from the working directory."
        yield Found(path, what + _missing_line(first, base, lookup).what, fix)
        return
    for number, line in _lines(text):
        where, meant = f"{path}:{number}", _resolved(line, base)
        if meant is None:
            yield _missing_line(line, base, lookup)._replace(line=where)
        elif is_url(meant):
            yield Found(meant, line=where)
        else:
            yield from (found._replace(line=where) for found in _of_existing(meant, search))


def _missing_line(line: str, base: str, lookup: Lookup) -> Found:
    for separator in ",;|":
        if separator in line and _resolved(line.partition(separator)[0].strip(" \t\"'"), base):
            what = f"The line has more than a path: there is {separator!r} after it."
            return Found(cut(line), what, "Write one path a line, or a path, a blank and an integer label.")
    fault = missing(line, os.path.join(base, line), lookup)
    if glob.has_magic(line) and not_a_path(line) is None:
        what = f"{fault.what} Patterns are expanded only where they are the input itself, not in a list file."
        return fault._replace(what=what, fix="Give the pattern as an input of its own, or write one path a line.")
    return fault


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, content) of the lines that are not blank, one at a time."""
    for number, found in enumerate(_LINE.finditer(text), 1):
        if line := found[1].strip():
            yield number, line


def _resolved(line: str, base: str) -> str | None:
    """The file, folder or address that a line of a list in the folder `base` names; None if it does not exist."""
    labelled = _LABELLED.fullmatch(line)
    for name in [line, labelled[1]] if labelled else [line]:
        if is_url(name) and (name is not line or not labelled):
            return name
        path = local(name)
        for candidate in (os.path.join(base, path), path):
            if exists(candidate):
                return candidate
    return None
