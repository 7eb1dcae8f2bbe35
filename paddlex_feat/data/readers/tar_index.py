"""The index of a tar shard: where the image of each sample is, and its class.

A sample are the members of one key: the path up to the first dot of the file's name. What follows is the suffix, as in
webdataset's shards (github.com/webdataset/webdataset).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.readers.columns import Columns
from paddlex_feat.data.readers.derived import Columns as Index
from paddlex_feat.data.readers.tables import text_of
from paddlex_feat.fileio.reading import open_handle

_MAX_HEADER_BYTES = 2**13  # as in hub/tar.py: a longer header takes tarfile quadratic time before 3.12.6
_MAX_LABEL_BYTES = 2**16  # of a member with a class
_MAX_TEXT = 100  # characters of a class in KEY.txt; more are a caption
MAX_PROBLEMS = 1000  # that an index keeps; training begins with none at all
_LABELS = ("cls", "json", "txt")  # suffixes of what may hold the class, the first that does
IMAGE_SUFFIXES = frozenset(suffix[1:] for suffix in SUFFIXES)
_KINDS = ("damaged", "member", "repeated", "label", "image")  # of problems


class _Archive(io.BufferedReader):
    """Refuses long reads: tarfile would take a header of any declared length into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header declares {size} bytes")
        return super().read(size)

    def content(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of a small member."""
        self.seek(member.offset_data)
        return super().read(member.size)


@dataclass
class Sample:
    """A sample of a shard, as far as it is known."""

    __slots__ = ("image", "label", "length", "rank", "start")
    image: str
    start: int
    length: int
    label: str
    rank: int  # of the suffix that has given the class, in _LABELS; after the last one for none


class Damaged(Exception):
    """A shard cannot be read beyond some place."""


def make_index(shard: Path) -> Index:
    """The index of a shard.

    Columns image, start, length and label have a value for each sample; problems has triples of a kind (`_KINDS`), the
    member's name and a message. OSError if the shard cannot be read.
    """
    samples: dict[str, Sample] = {}
    problems: list[list[str]] = []
    seen: set[str] = set()

    def add(member: tarfile.TarInfo, content: bytes | None) -> None:
        problem = _add(member, content, samples, seen)
        if problem and len(problems) < MAX_PROBLEMS:
            problems.append([problem[0], member.name[:200], problem[1]])

    try:
        for member, content in members(shard):
            add(member, content)
    except Damaged as error:
        problems.append(["damaged", "", str(error)])
    whole = {key: sample for key, sample in samples.items() if sample.image and sample.label}
    for key, sample in samples.items():
        if sample.image and not sample.label and len(problems) < MAX_PROBLEMS:
            problems.append(["label", key[:200], "the sample has an image and no class"])
    return {
        "image": [sample.image for sample in whole.values()],
        "start": [sample.start for sample in whole.values()],
        "length": [sample.length for sample in whole.values()],
        "label": [sample.label for sample in whole.values()],
        "problems": problems,
    }


def is_index(index: Index, size: int) -> bool:
    """Whether columns are an index of a shard of `size` bytes, wherever they come from."""
    columns = [index.get(name, []) for name in ("image", "start", "length", "label")]
    images, starts, lengths, labels = columns
    return (
        set(index) == {"image", "start", "length", "label", "problems"}
        and len({len(column) for column in columns}) == 1
        and all(isinstance(text, str) and text for text in (*images, *labels))
        and len(set(images)) == len(images)
        and all(type(number) is int and number >= 0 for number in (*starts, *lengths))
        and all(start + length <= size for start, length in zip(starts, lengths, strict=True))
        and all(isinstance(p, list) and len(p) == 3 and all(isinstance(t, str) for t in p) for p in index["problems"])
        and all(p[0] in _KINDS for p in index["problems"])
    )


def members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """The members of a shard in turn, with the content of those that may hold a class.

    Raises Damaged for what is not a tar file or ends early, OSError if the shard cannot be read.
    """
    with _Archive(io.FileIO(open_handle(shard))) as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                yield from _members(tar, stream, size)
        except (OSError, Damaged):
            raise
        except Exception as error:  # tarfile's own, and whatever else a damaged header makes of it
            raise Damaged(str(error)[:200] or type(error).__name__) from error


def _members(tar: tarfile.TarFile, stream: _Archive, size: int) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    before = -1
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined] # it would keep all of them
        plain = member.isreg() and not member.issparse()
        if not before < tar.offset or member.size < 0:
            raise Damaged(f"{member.name[:80]!r} declares a size that leads back")
        if plain and member.offset_data + member.size > size:
            raise Damaged(f"it ends within {member.name[:80]!r}")
        before = tar.offset
        labelled = plain and member.size <= _MAX_LABEL_BYTES and split_name(member.name)[1] in _LABELS
        yield member, stream.content(member) if labelled else None
    # A header that is not understood ends the loop, as the two empty blocks of the true end do.
    stream.seek(tar.offset)
    if stream.read(1024) != bytes(1024):
        raise Damaged("it ends early, or a header in it is damaged" if before > -1 else "it is not a tar file")


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member, in lower case: ("a/b", "jpg") of "a/b.jpg"."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, suffix = file.partition(".")
    return folder + slash + key, suffix.lower()


def _add(
    member: tarfile.TarInfo, content: bytes | None, samples: dict[str, Sample], seen: set[str]
) -> tuple[str, str] | None:
    """Add a member to its sample; returns what is wrong with it, if anything."""
    key, suffix = split_name(member.name)
    is_image = suffix in IMAGE_SUFFIXES
    if member.isdir() or not (is_image or suffix in _LABELS) or os.path.basename(key) == "":
        return None
    if not member.isreg() or member.issparse():
        return "member", "it is a link, a device or a sparse file, and is left out"
    name = f"{key}.{suffix}"
    if name in seen or not name.isprintable():
        return "repeated", "the name is there twice, or cannot be printed; the member is left out"
    seen.add(name)
    sample = samples.setdefault(key, Sample("", 0, 0, "", len(_LABELS)))
    if is_image:
        if sample.image:
            return "image", f"the sample has another image, {sample.image[:200]}; this one is left out"
        sample.image, sample.start, sample.length = name, member.offset_data, member.size
        return None
    rank = _LABELS.index(suffix)
    label = label_of(content, suffix) if content is not None else None
    if label and rank < sample.rank:
        sample.label, sample.rank = label, rank
    elif label is None and suffix == "cls":
        return "label", "it is not a class, a line of text"
    return None


def label_of(content: bytes, suffix: str) -> str | None:
    """The class that a member holds; None if it has none."""
    try:
        if suffix == "json":
            return _label_of_json(json.loads(content))
        text = content.decode("utf-8-sig").strip()
    except (ValueError, RecursionError):
        return None
    return text if text and len(text) <= _MAX_TEXT and text.isprintable() else None


def _label_of_json(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    columns = Columns.of(value, path="")
    text = text_of(value[columns.label]) if columns and not isinstance(value[columns.label], (list, bool)) else None
    return text.strip() if text and text.strip() and text.isprintable() else None
