"""The one exception family: what is wrong, where, what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_MESSAGE = 30_000  # characters of a message: what a file holds is quoted, and may be of any length
_MAX_PART = 9_900  # of three, with some words between them
# What a terminal obeys, what ends a line, what turns the direction of writing, and what is no text.
_UNPRINTABLE = r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
# Not the line ends of our own lists, which indent each name.
_UNPRINTABLE_IN_LIST = rf"(?!\n    (?!\s|::|##)){_UNPRINTABLE}"
_COMMAND = re.compile(r"\s*(::|##)")  # begins a line that GitHub or Azure would obey


class FeatError(Exception):
    """An error the user can act on. `str()` gives it in three lines at most, and in at most MAX_MESSAGE characters.

    Args:
        what: one sentence, what is wrong; a list may follow, a line each, which begins with four spaces.
        where: file:line, key or path it is about.
        fix: what to do.
        code: kebab-case name of the cause, stable between versions; None: that of the class.
    """

    code = "error"

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, code: str | None = None):
        self.what = sanitize(what, _MAX_PART, _UNPRINTABLE_IN_LIST)
        super().__init__(self.what)
        self.where = where and sanitize(where, _MAX_PART)
        self.fix = fix and sanitize(fix, _MAX_PART)
        self.code = code or type(self).code
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


def sanitize(text: str, max_characters: int = MAX_MESSAGE, unprintable: str = _UNPRINTABLE) -> str:
    """One line of at most `max_characters` characters, that neither a terminal nor CI would obey."""
    shown = re.sub(unprintable, lambda found: _escaped(ord(found[0])), text[:max_characters])
    if _COMMAND.match(shown):
        shown = "\\" + shown
    if max(len(text), len(shown)) <= max_characters:
        return shown
    note = f"… ({len(text)} characters)"
    return shown[: max_characters - len(note)] + note


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class ConfigError(FeatError):
    """A configuration file, key or value."""

    code = "config"


class DatasetError(FeatError):
    """A list file, a label or the layout of a data set."""

    code = "dataset"


class ImageError(FeatError):
    """An image that cannot be read or decoded."""

    code = "image"


class WeightsError(FeatError):
    """A weight file or inference directory."""

    code = "weights"


class DeviceError(FeatError):
    """A device that is not there."""

    code = "device"


class OutOfMemoryError(FeatError):
    """Not enough memory, on the machine or on a GPU."""

    code = "out-of-memory"


class OutputError(FeatError):
    """A file or folder that cannot be written."""

    code = "output"


class DependencyError(FeatError):
    """A package that is not installed."""

    code = "dependency"


class DownloadError(FeatError):
    """A file that could not be fetched."""

    code = "download"


class TrainingError(FeatError):
    """A training run that cannot go on."""

    code = "training"


class EvaluationError(FeatError):
    """Features or labels from which no metric can be computed."""

    code = "evaluation"


class ShardError(FeatError):
    """A part of a job is missing, damaged or of another job."""

    code = "shard"


class GalleryError(FeatError):
    """A gallery for search, an item of it, or a query that it cannot answer."""

    code = "gallery"


class ConnectionLostError(FeatError):
    """Another process of the job is gone; its own error says why."""

    code = "connection-lost"


class PeerLostError(FeatError):
    """Another machine of the job has stopped answering."""

    code = "peer-lost"


class Interrupted(FeatError):
    """Ctrl-C, SIGTERM, or another signal that ends a run."""

    code = "interrupted"


# As Paddle, CUDA's libraries, ONNX Runtime, OpenVINO, OpenCV and C++ report it, where it is not a MemoryError.
_OUT_OF_MEMORY = re.compile(
    r"ResourceExhausted|out ?of ?memory|bad_alloc|_ALLOC_FAILED|cudaErrorMemoryAllocation|insufficient memory"
    r"|(cannot|can't|unable to|could not|fail(ed)? to) alloc",
    re.IGNORECASE,
)
_GPU_NUMBER = re.compile(r"\bGPU \d+")
_OF_CUDA = re.compile(r"\b(cuda|cublas|cudnn|nccl)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, Paddle or another library reports a lack of memory; False for errors of this package."""
    if isinstance(error, FeatError):
        return False
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def out_of_memory(error: BaseException, where: str, fix: str) -> OutOfMemoryError | None:
    """What to raise in place of an error by which Python, Paddle or another library reports a lack of memory.

    Args:
        error: as it was caught.
        where: key or path it is about.
        fix: what to lower, as a sentence.

    Returns None for every other error, and for those of this package.
    """
    if not is_out_of_memory(error):
        return None
    text = str(error)
    number = _GPU_NUMBER.search(text)
    place = number[0] if number else "the GPU" if _OF_CUDA.search(text) else "this machine"
    lines = [line.strip() for line in text.splitlines() if _OUT_OF_MEMORY.search(line)]
    # Paddle's message begins with a line that only names the type.
    reason = next((line for line in lines if " " in line), lines[0] if lines else type(error).__name__)
    others = "other programs" if place == "this machine" else "what else uses the GPU (nvidia-smi)"
    return OutOfMemoryError(f"Not enough memory on {place}: {reason[:300]}", where=where, fix=f"{fix} Or end {others}.")


TEMPORARY = ".paddlex_feat.tmp-"  # how the names begin that fileio/temporary.py makes
OTHER_OUTPUT = "choose another folder with -o Global.output=DIR"
OTHER_TEMPORARY = "name another folder for temporary files with the environment variable TMPDIR"
_run_outputs: list[Path] = []  # Global.output of the run at work in this process, the last one counts
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENXIO, errno.ELOOP)


def _final_name(file: Any, path: Path) -> str:
    """What an error names: the file at fault, or `path` if that has a temporary name, which is gone by then."""
    for name in map(str, (file or path, path)):
        if TEMPORARY not in name:
            return name
    return str(path).partition(TEMPORARY)[0]


@contextmanager
def run_output(folder: Path) -> Iterator[None]:
    """Within the block an error about a path in `folder`, the output of a run, names the key that moves it."""
    _run_outputs.append(folder)
    try:
        yield
    finally:
        _run_outputs.remove(folder)


def _another_place(where: str, path: Path) -> str:
    """How the user chooses another place for `where`, the part of `path` that lasts."""
    with suppress(OSError, IndexError):  # a relative path in a working directory that has been removed; no run
        own, output = (Path(os.path.realpath(place)) for place in (where, _run_outputs[-1]))
        if own.is_relative_to(output) or output.is_relative_to(own):  # the latter where the folder cannot be made
            return OTHER_OUTPUT
    return OTHER_TEMPORARY if TEMPORARY in str(path) else "choose another path"


@contextmanager
def as_output_error(path: Path, instead: str | None = None) -> Iterator[None]:
    """Turn an OSError while writing `path` into an OutputError that names it, or the other file at fault.

    instead: how the user chooses another place, where that is not the key Global.output or the caller's argument.
    """
    try:
        yield
    except OSError as error:
        first = "Move away what is there" if error.errno in _IN_THE_WAY else "Free space, fix the permissions"
        where = _final_name(error.filename, path)
        raise OutputError(
            f"Cannot write: {error.strerror or error}.",
            where=where,
            fix=f"{first}, or {instead or _another_place(where, path)}.",
            code="write-failed",
        ) from error
