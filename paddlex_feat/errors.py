"""The one exception family: what is wrong, where, what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST = 30_000  # characters of a message: what a file holds is quoted, and may be of any length
_LONGEST_PART = 9_900  # of three, with some words between them
# What a terminal obeys, what ends a line, what turns the direction of writing, and what is no text.
_UNPRINTABLE = r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
# Not the line ends of our own lists, which indent each name.
_UNPRINTABLE_IN_LIST = rf"(?!\n    [^\s:#]){_UNPRINTABLE}"
_COMMAND = re.compile(r"\s*(::|##)")  # begins a line that GitHub or Azure would obey


class FeatError(Exception):
    """An error the user can act on. `str()` gives it in three lines at most, and in at most LONGEST characters.

    Args:
        what: one sentence, what is wrong; a list may follow, a line each, which begins with four spaces.
        where: file:line, key or path it is about.
        fix: what to do.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        self.what = printable(what, _LONGEST_PART, _UNPRINTABLE_IN_LIST)
        super().__init__(self.what)
        self.where = where and printable(where, _LONGEST_PART)
        self.fix = fix and printable(fix, _LONGEST_PART)
        self.result: dict[str, Any] = {}

    def with_result(self, result: dict[str, Any]) -> FeatError:
        """Attach what the mode did find out; it goes into `<mode>_result.json`."""
        self.result = result
        return self

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  to do: {self.fix}")
        return "\n".join(lines)


def printable(text: str, longest: int = LONGEST, unprintable: str = _UNPRINTABLE) -> str:
    """One line of at most `longest` characters, that neither a terminal nor CI would obey."""
    shown = re.sub(unprintable, lambda found: _escaped(ord(found[0])), text[:longest])
    if _COMMAND.match(shown):
        shown = "\\" + shown
    if max(len(text), len(shown)) <= longest:
        return shown
    note = f"… ({len(text)} characters)"
    return shown[: longest - len(note)] + note


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class ConfigError(FeatError):
    """A configuration file, key or value."""


class DatasetError(FeatError):
    """A list file, a label or the layout of a data set."""


class ImageError(FeatError):
    """An image that cannot be read or decoded."""


class WeightsError(FeatError):
    """A weight file or inference directory."""


class DeviceError(FeatError):
    """A device that is not there."""


class OutputError(FeatError):
    """A file or folder that cannot be written."""


class DependencyError(FeatError):
    """A package that is not installed."""


class DownloadError(FeatError):
    """A file that could not be fetched."""


class TrainingError(FeatError):
    """A training run that cannot go on."""


class EvaluationError(FeatError):
    """Features or labels from which no metric can be computed."""


class ConnectionLostError(FeatError):
    """Another process of the job is gone; its own error says why."""


class Interrupted(FeatError):
    """Ctrl-C or SIGTERM."""


TEMPORARY = ".paddlex_feat.tmp-"  # how the names begin that scratch.py makes
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENXIO, errno.ELOOP)


def _lasting(file: Any, path: Path) -> str:
    """What an error names: the file at fault, or `path` if that has a temporary name, which is gone by then."""
    for name in map(str, (file or path, path)):
        if TEMPORARY not in name:
            return name
    return str(path).partition(TEMPORARY)[0]


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into an OutputError that names it, or the other file at fault."""
    try:
        yield
    except OSError as error:
        first = "Move away what is there" if error.errno in _IN_THE_WAY else "Free space, fix the permissions"
        raise OutputError(
            f"Cannot write: {error.strerror or error}.",
            where=_lasting(error.filename, path),
            fix=f"{first}, or choose another folder with -o Global.output=DIR.",
        ) from error
