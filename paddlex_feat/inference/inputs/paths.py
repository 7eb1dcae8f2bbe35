"""Resolve a text given to `predict`: a file, folder, pattern, list of names or address, or a mistake."""

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

from paddlex_feat.data.images.folders import Walk, files_below, in_words, is_image
from paddlex_feat.data.images.formats import BEGINNING, SUFFIXES, looks_like_image
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list, mixture
from paddlex_feat.fileio.lookup import Lookup
from paddlex_feat.fileio.reading import first_bytes, read_small
from paddlex_feat.hub.urls import is_url
from paddlex_feat.inference.inputs.texts import Found, cut, exists, local, missing, not_a_path, several

_LIST_SUFFIXES = (".txt", ".lst", ".list", "")
_SHARD = ".tar"
_LINE = re.compile(r"([^\r\n]*)(?:\r\n|\r|\n|\Z)")
_LABELLED = re.compile(r"(.*\S)[ \t]+\d+")  # as our own lists are written
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1f]")


@dataclass
class Search:
    """State of one call's search for images.

    Attributes:
        left_out: files and folders that are not read, counted by reason.
        lookup: suggests existing paths for those that do not exist.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    lookup: Lookup = field(default_factory=Lookup)


def images_of(text: str, search: Search) -> Iterator[Found]:
    """The images that a text names, in order, and the problems of names that cannot be used. Never raises."""
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
    """A file itself; the images below a folder, sorted by path."""
    if os.path.isdir(path):
        fix = f"Give a folder with images; they are known by their suffix ({', '.join(sorted(SUFFIXES))}) or content."
        yield from _images_among([path], Found(path, "The folder holds no images", fix), search, Walk())
    else:
        yield Found(path)


def _images_among(matches: list[str], none: Found, search: Search, walk: Walk) -> Iterator[Found]:
    """The images among the files and below the folders that a folder or pattern gave.

    Args:
        matches: files and folders.
        none: the problem if there is no image.
        search: counts what is left out.
        walk: what was left out while the matches were looked for.
    """
    folders = [match for match in matches if os.path.isdir(match)]
    files = chain(files_below(walk, *folders), (match for match in matches if not os.path.isdir(match)))
    listed = list(files)
    found = {file for file in listed if is_image(file, walk)}
    if not found:
        found = {file for file in listed if is_shard(file)}
        walk.left_out.pop(f"{_SHARD} files", None)
    walk.log(none.path)
    search.left_out.update(walk.left_out)
    for fault in walk.errors:
        yield Found(str(fault.filename), f"The folder cannot be read ({fault.strerror}).", "Fix its permissions.")
    if not found and not walk.errors:
        yield none._replace(
            what=f"{none.what}; left out: {in_words(walk.left_out)}." if walk.left_out else f"{none.what}."
        )
    yield from map(Found, sorted(found))


def is_shard(path: str) -> bool:
    """Whether a file is a tar shard, whose images are inputs, by its suffix."""
    return path.lower().endswith(_SHARD)


def _of_pattern(pattern: str, search: Search) -> Iterator[Found]:
    """The images that a pattern matches, and those in folders that it matches."""
    walk = Walk()
    matches = _matches(pattern, walk)
    fix = "Check the folder and the suffix; a folder as input gives all images in it and below."
    if matches or walk.errors:
        yield from _images_among(matches, Found(pattern, "The pattern matches no image", fix), search, walk)
    elif (problem := several(pattern)) is not None:
        yield problem
    else:
        what = f"No file has this name, and none matches it as a pattern.{_near_pattern(pattern, search.lookup)}"
        yield Found(cut(pattern), what, fix)


def _near_pattern(pattern: str, lookup: Lookup) -> str:
    """A suggestion for a pattern without a match: a blank and a sentence, or ""."""
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

    A wildcard does not match files that operating systems add to folders of photographs.
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
    """Whether a wildcard matched a file that operating systems add. Path and pattern are given by their parts."""
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
    except OSError:  # a folder, or unreadable, which reading it as an image reports
        return False
    if looks_like_image(beginning):
        return False
    return bool(suffix) or (bool(beginning) and not _NOT_TEXT.search(beginning))


def _of_list(path: str, search: Search) -> Iterator[Found]:
    """The images that a text file names, one a line, perhaps with an integer label."""
    try:
        data = read_small(Path(path), MAX_LIST_BYTES)
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
    problem = missing(line, os.path.join(base, line), lookup)
    if glob.has_magic(line) and not_a_path(line) is None:
        what = f"{problem.what} Patterns are expanded only where they are the input itself, not in a list file."
        return problem._replace(what=what, fix="Give the pattern as an input of its own, or write one path a line.")
    return problem


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
