"""Explain a path that cannot be used as wanted: what exists instead, or what was probably meant.

An explanation is one sentence for an error message. It is a guess, so nothing is opened or replaced because of it.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PureWindowsPath
from typing import Literal
from urllib.parse import unquote_to_bytes

from paddlex_feat.fileio.names import difference, fold, keys

Wanted = Literal["file", "folder", "any"]
MAX_ENTRIES = 100_000  # names that one Lookup reads of all folders together
MAX_SECONDS = 3.0  # for listing one folder, which may be on a slow network
MAX_PATH = 4096  # characters
MAX_NEAR = 20  # searches for a similar name in one Lookup; each compares the name with all of a folder
MAX_COMPARED = 5_000  # names of a folder that such a search compares
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".tbz2", ".txz")
_QUOTES = " \t\r\n\"'`“”‘’«»\ufeff\u200b\u00a0"
_PREFERRED = (".pdparams", ".safetensors", ".yaml", ".yml", ".txt", ".jpg", ".jpeg", ".png")
_UNREADABLE = "cannot be looked into: permission denied"


def explain(path: str | os.PathLike[str], wanted: Wanted = "any") -> str:
    """What is wrong with `path`, or what was probably meant: one sentence, or "" where nothing is known.

    Never raises. Use one `Lookup` for many paths.
    """
    return Lookup().explain(path, wanted)


def problem(subject: str, path: str | os.PathLike[str], wanted: Wanted = "any") -> str:
    """The first line of an error: "<subject> does not exist." or "… cannot be used.", with the explanation."""
    return Lookup().problem(subject, path, wanted)


@dataclass
class _Folder:
    """The names in one folder, by what they are compared by.

    Attributes:
        folded: key -> (name, encoding by which the key was made, "" for the name as it is).
        stems: key of a name without suffix -> names.
        complete: all names are here.
    """

    names: set[str] = field(default_factory=set)
    folded: dict[str, tuple[str, str]] = field(default_factory=dict)
    stems: dict[str, list[str]] = field(default_factory=dict)
    complete: bool = False


class Lookup:
    """Explains paths; each folder is listed once at most, so 100,000 paths cost little more than one.

    Args:
        base: folder that relative paths of a list file belong to; suggestions are shown relative to it.
    """

    def __init__(self, base: str | os.PathLike[str] | None = None):
        self._base = None if base is None else os.fspath(base)
        self._folders: dict[str, _Folder] = {}
        self._is_folder: dict[str, bool] = {}
        self._room, self._near = MAX_ENTRIES, MAX_NEAR

    def explain(self, path: str | os.PathLike[str], wanted: Wanted = "any") -> str:
        """As the function `explain`."""
        try:
            text = os.fsdecode(path)
            if not text or "\0" in text or len(text) > MAX_PATH:
                return ""
            if os.path.lexists(text):
                return self._explain_existing(text, wanted)
            return self._explain_missing(text, wanted)
        except Exception:  # noqa: BLE001 - a hint must never replace the error that it explains
            return ""

    def problem(self, subject: str, path: str | os.PathLike[str], wanted: Wanted = "any") -> str:
        """As the function `problem`."""
        hint = self.explain(path, wanted)
        try:
            there = os.path.lexists(path)
        except (OSError, ValueError):
            there = False
        state = "cannot be used" if there else "does not exist"
        return f"{subject} {state}." + (f" {hint}" if hint else "")

    def _shown(self, path: str) -> str:
        if self._base is not None and path.startswith(os.path.join(self._base, "")):
            return path[len(os.path.join(self._base, "")) :]
        return path

    def _explain_existing(self, path: str, wanted: Wanted) -> str:
        name = self._shown(path)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            if os.path.islink(path):
                return f"{name} is a link to {os.readlink(path)}, which does not exist."
            return f"{name} {_UNREADABLE}."
        if stat.S_ISDIR(mode):
            return f"{name} is a folder; give a file in it." if wanted == "file" else ""
        if not stat.S_ISREG(mode):
            return f"{name} is a device, a pipe or a socket."
        if wanted != "folder":
            return ""
        if name.lower().endswith(ARCHIVES):
            return f"{name} is an archive; unpack it first and give the folder."
        return f"{name} is a file; give the folder that holds it, {os.path.dirname(path) or '.'}."

    def _explain_missing(self, path: str, wanted: Wanted) -> str:
        for meant, reason in self._readings(path):
            found = self._find(meant)
            if found is not None and self._suits(found[0], wanted):
                where, reasons = found
                why = "; ".join(filter(None, [reason, *reasons]))
                return f"Did you mean {self._shown(where)}" + (f" ({why})?" if why else "?")
        here, rest, _ = self._walk(path)
        return self._first_missing(here, rest, wanted)

    def _readings(self, path: str) -> Iterator[tuple[str, str]]:
        """The path, then other texts that may have been meant, each with the reason."""
        yield path, ""
        texts = [(path, "")]
        bare = path.strip(_QUOTES)
        bare = bare.rstrip(",;").strip(_QUOTES) or bare
        if bare != path:
            texts.append((bare, "without what surrounds the path"))
        if bare.lower().startswith("file:"):
            texts.append(("/" + bare[5:].lstrip("/"), "a path, not a file: address"))
        if re.match(r"\$\w|\$\{|%\w+%", bare):
            texts.append((_expanded(bare), "variables are not expanded here"))
        if re.search("%[0-9A-Fa-f]{2}", bare):
            decoded = os.fsdecode(unquote_to_bytes(os.fsencode(texts[-1][0])))
            texts.append((decoded, "percent escapes are not decoded here"))
        if "\\" in bare:
            texts += [(text, "folders are separated by /") for text in _of_windows(bare)]
        for text, reason in texts[1:]:
            yield text, reason
        for text, reason in texts:
            yield from ((moved, f"{reason}; {why}" if reason else why) for moved, why in self._moved(text))

    def _moved(self, path: str) -> Iterator[tuple[str, str]]:
        """The path with a leading part, or a slash, more or less."""
        base = self._base
        if base is not None:
            inner = path.removeprefix(os.path.join(base, ""))
            parts = _parts(inner)
            for first in range(1, min(len(parts), 20)):
                yield os.path.join(base, *parts[first:]), "paths begin at the folder of the list"
            if parts:
                yield os.path.join(base, "images", *parts), "paths begin at the folder of the list"
            return
        parts, root = _parts(path), "/" if path.startswith("/") else ""
        for size in range(1, min(len(parts) // 2, 10) + 1):
            for first in range(min(len(parts) - 2 * size, 20) + 1):
                if parts[first : first + size] == parts[first + size : first + 2 * size]:
                    once = parts[:first] + parts[first + size :]
                    yield root + "/".join(once), f"{'/'.join(parts[first : first + size])} is there once"
        if root:
            yield "/".join(parts), "relative, without the first slash"
            return
        yield "/" + "/".join(parts), "the first slash is missing"
        above = _parts(os.getcwd())
        for size in range(1, min(len(parts), len(above) + 1)):
            if above[-size:] == parts[:size]:
                yield "/".join(parts[size:]), "paths begin at the working directory"

    def _find(self, path: str) -> tuple[str, list[str]] | None:
        """What exists under nearly this path, and how the names differ."""
        here, rest, reasons = self._walk(path)
        return (here, reasons) if not rest and here not in ("", "/") else None

    def _walk(self, path: str) -> tuple[str, list[str], list[str]]:
        """Follow a path as far as names agree, but for case, Unicode form and encoding: reached, rest, differences."""
        here, parts = "/" if path.startswith("/") else "", _parts(path)
        reasons: list[str] = []
        for index, part in enumerate(parts):
            exact = os.path.join(here, part)
            if self._exists(here, part):
                here = exact
                continue
            match = self._match(here, part)
            if match is None:
                return here, parts[index:], reasons
            name, reason = match
            here = os.path.join(here, name)
            if reason not in reasons:
                reasons.append(reason)
        return here, [], reasons

    def _exists(self, folder: str, name: str) -> bool:
        listing = self._folders.get(folder)
        if listing is not None and listing.complete:
            return name in listing.names
        path = os.path.join(folder, name)
        if path not in self._is_folder:
            try:
                os.lstat(path)
            except (OSError, ValueError):
                return False
            self._is_folder[path] = os.path.isdir(path)
        return True

    def _match(self, folder: str, name: str) -> tuple[str, str] | None:
        """The name in the folder that differs least: (name, how it differs)."""
        listing = self._list(folder)
        for key, given in keys(name):
            found = listing.folded.get(key)
            if found is not None and found[0] != name:
                return found[0], difference(name, found[0], given, found[1])
        return None

    def _list(self, folder: str) -> _Folder:
        if folder in self._folders:
            return self._folders[folder]
        listing, end = _Folder(), time.monotonic() + MAX_SECONDS
        try:
            with os.scandir(folder or ".") as entries:
                for entry in islice(entries, self._room):
                    listing.names.add(entry.name)
                    if time.monotonic() > end:
                        break
                else:
                    listing.complete = next(entries, None) is None
        except OSError:
            pass
        self._room -= len(listing.names)
        for name in sorted(listing.names):
            for key, encoding in keys(name):
                listing.folded.setdefault(key, (name, encoding))
            listing.stems.setdefault(fold(_stem(name)), []).append(name)
        self._folders[folder] = listing
        return listing

    def _suits(self, path: str, wanted: Wanted) -> bool:
        return wanted == "any" or os.path.isdir(path) == (wanted == "folder")

    def _first_missing(self, here: str, rest: list[str], wanted: Wanted) -> str:
        """About a path of which nothing equal exists: the first part that is missing, and a similar name."""
        if not rest:  # it exists as another kind of thing, such as a folder of this name in other case
            return self._explain_existing(here, wanted)
        folder, missing, last = self._shown(here), os.path.join(here, rest[0]), len(rest) == 1
        if here and not os.path.isdir(here):
            return self._explain_existing(here, "folder")
        if here and not os.access(here, os.X_OK | os.R_OK):
            return f"{folder} {_UNREADABLE}."
        near = self._similar(here, rest[0], wanted if last else "folder")
        if near:
            meant = self._shown(os.path.join(here, near, *rest[1:]))
            if near.lower().endswith(ARCHIVES) and (wanted == "folder" or not last):
                return f"There is {self._shown(os.path.join(here, near))}; unpack it first."
            if last or os.path.lexists(os.path.join(here, near, *rest[1:])):
                return f"Did you mean {meant}?"
            return f"There is no folder {self._shown(missing)}; did you mean {self._shown(os.path.join(here, near))}?"
        if here and self._list(here).complete and not self._list(here).names:
            return f"The folder {folder or here} is empty."
        if last:
            return ""
        return f"There is no folder {self._shown(missing)}" + ("." if here else f" in {os.getcwd()}.")

    def _similar(self, folder: str, name: str, wanted: Wanted) -> str:
        """A name in the folder with another suffix, or one that is spelt nearly the same; "" if there is none."""
        listing = self._list(folder)
        stems = {fold(name), fold(_stem(name))}
        same = sorted({n for stem in stems for n in listing.stems.get(stem, ())}, key=_preference)
        for other in same:
            archive = wanted == "folder" and other.lower().endswith(ARCHIVES)
            if archive or self._suits(os.path.join(folder, other), wanted):
                return other
        if self._near <= 0 or len(listing.names) > MAX_COMPARED:
            return ""
        self._near -= 1
        # By stems, as most of a name may be its suffix; never one number of a series for another.
        stem, digits = fold(_stem(name)), re.sub(r"\d", "", fold(_stem(name)))
        others = [s for s in listing.stems if re.sub(r"\d", "", s) != digits]
        suffix = os.path.splitext(name)[1].lower()
        for near in difflib.get_close_matches(stem, others, 3, cutoff=0.75):
            for other in sorted(listing.stems[near], key=lambda n: (not n.lower().endswith(suffix), _preference(n))):
                if self._suits(os.path.join(folder, other), wanted):
                    return other
        return ""


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _stem(name: str) -> str:
    stem = os.path.splitext(name)[0]
    return os.path.splitext(stem)[0] if stem.lower().endswith(".tar") else stem


def _preference(name: str) -> tuple[int, str]:
    suffix = os.path.splitext(name)[1].lower()
    return _PREFERRED.index(suffix) if suffix in _PREFERRED else len(_PREFERRED), name


def _expanded(text: str) -> str:
    return os.path.expandvars(re.sub(r"%(\w+)%", r"${\1}", text))


def _of_windows(text: str) -> list[str]:
    path = PureWindowsPath(text)
    drive, rest = path.drive, "/".join(part for part in path.parts if part != path.anchor)
    if len(drive) == 2:  # where WSL, and Git's shell, have the drives of Windows
        return [f"/mnt/{drive[0].lower()}/{rest}", f"/{drive[0].lower()}/{rest}", rest]
    return [text.replace("\\", "/")]
