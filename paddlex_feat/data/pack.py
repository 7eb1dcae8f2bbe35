"""`main.py pack DATA TARGET`: a data set as tar or Parquet shards, which are copied and read as few large files."""

from __future__ import annotations

import argparse
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.images.source import ImageSource, box_of, size_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import LISTS, find_root, reader_of
from paddlex_feat.data.readers.find import read_whole, require_no_errors
from paddlex_feat.data.readers.items import UNDIVIDED
from paddlex_feat.data.readers.packed import PACKED, packed_name
from paddlex_feat.data.readers.parquet_file import arrow
from paddlex_feat.data.readers.tar_index import label_of
from paddlex_feat.errors import DatasetError, OutputError, as_output_error
from paddlex_feat.fileio.atomic import atomic_path, read_result, write_json
from paddlex_feat.fileio.reading import open_file
from paddlex_feat.fileio.temporary import remove_stale
from paddlex_feat.runtime.logs import log_to_console
from paddlex_feat.runtime.progress import bar

_VERSION = 1
_ROWS = 100  # images of a row group of Parquet
_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_STEM = 60  # characters of a picture's own name in that of its member; a tar file's plain header takes 100
EPILOG = """writes TARGET/train-00000.tar, …, gallery-00000.tar, …, query-00000.tar, … (test-00000.tar, … where each
test image looks for the others of its class): images as they are, each with its class beside it (KEY.jpg, KEY.cls), as
webdataset and Global.dataset_dir read them; with --to parquet, Parquet files with the columns image (bytes and path)
and label, as Hugging Face's datasets. A command that was killed goes on where it was; each shard is there whole or not
at all.

exit codes: 0 done; 1 the data set cannot be packed; 2 the command line is not understood.
"""


class Member(NamedTuple):
    """An image for a shard, and the name of its class."""

    source: str
    path: str
    label: str


def main(words: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises DatasetError, OutputError."""
    parser = argparse.ArgumentParser(
        prog="main.py pack", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="a data set of any format, see docs/datasets.md")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the folder of the shards")
    parser.add_argument("--images", type=int, default=10_000, help="images of a shard (default: %(default)s)")
    parser.add_argument("--to", choices=("tar", "parquet"), default="tar", help="form of the shards (default: tar)")
    parser.add_argument("--seed", type=int, help="shuffle the images of each list; without it their order is kept")
    parser.add_argument("--format", help="format of the data set (default: it is recognized)")
    given = parser.parse_args(words)
    if given.images < 1 or (given.seed or 0) < 0:
        parser.error("--images is at least 1, and --seed at least 0")
    log_to_console()
    counts = pack(given.data, given.target, given.images, given.seed, given.format, given.to)
    for name, (images, shards) in counts.items():
        print(f"{name}: {images} images in {shards} shards")
    return 0


def pack(
    data: Path, target: Path, images: int = 10_000, seed: int | None = None, form: str | None = None, to: str = "tar"
) -> dict[str, tuple[int, int]]:
    """Write a data set as shards.

    Args:
        data: folder of the data set.
        target: folder of the shards; one that a killed call has left is completed.
        images: of a shard.
        seed: shuffles the images of each list, so that a part of the shards is a sample of it; None: the order is kept.
        form: of the data set; None: it is recognized.
        to: "tar" or "parquet".

    Returns the number of images and of shards of each list.

    Raises DatasetError for a data set that cannot be read, or has boxes; OutputError, also for a target of others;
    DependencyError without pyarrow.
    """
    root = find_root(str(data), form=form)
    if target.resolve().is_relative_to(root.resolve()):
        fix = "Give a folder beside it."
        what = "The target is within the data set, of which the shards would become a part."
        raise OutputError(what, where=str(target), fix=fix, code="pack-target")
    lists, findings, _ = read_whole(root, reader_of(root, form=form), LISTS, False, None)
    require_no_errors(findings, root)
    members = {name: _members(records, seed) for name, records in _parts(lists, root).items()}
    names = {member.label for listed in members.values() for member in listed}
    write = _write if to == "tar" else partial(_write_parquet, _schema(names))
    _claim(target, members, images, to)
    counts = {}
    with bar(sum(map(len, members.values())), "packing", "images") as progress:
        for name, listed in members.items():
            starts = range(0, len(listed), images)
            for number, first in enumerate(starts):
                part = listed[first : first + images]
                write(target / packed_name(name, number, to), part, first)
                progress.update(len(part))
            counts[name] = len(listed), len(starts)
    return counts


def _parts(lists: dict[str, ImageList], root: Path) -> dict[str, ImageList]:
    """The lists by the name that their shards get. Raises DatasetError for what shards cannot tell."""
    if UNDIVIDED in lists:
        return {"train": lists[UNDIVIDED]}
    query, gallery = lists["query"], lists["gallery"]
    if query.cameras or gallery.cameras:
        raise DatasetError(
            "The images have cameras, which an evaluation needs and a shard does not tell.",
            where=str(root),
            fix="Use the data set as it is.",
            code="pack-cameras",
        )
    there = {name: lists[name] for name in LISTS if len(lists[name])}
    if query.leave_one_out and query.files() == gallery.files():  # each image looks for the others
        return {**{name: records for name, records in there.items() if name == "train"}, "test": query}
    shared = set(query.files()) & set(gallery.files())
    if shared:
        raise DatasetError(
            f"{len(shared)} images are gallery and query at once, and as shards they would find themselves.",
            where=str(root),
            fix="Use the data set as it is, or leave them out of one of the lists.",
            code="pack-shared",
        )
    return there


def _members(records: ImageList, seed: int | None) -> list[Member]:
    if any(box_of(path) is not None for path in records.paths):
        raise DatasetError(
            "The data set has boxes, and a shard has images as they are.",
            where=str(records.root),
            fix="Write the crops first: CheckDataset.convert.enable=True CheckDataset.convert.crops=True.",
            code="pack-boxes",
        )
    columns = zip(records.files(), records.paths, map(records.name_of, records.labels), strict=True)
    members = [Member(*row) for row in columns]
    unfit = next((m.label for m in members if label_of(m.label.encode("utf-8", "replace"), "cls") != m.label), None)
    if unfit is not None:
        what = f"The class {unfit!r} would be read from a shard as another one, or not at all."
        fix = "Give it a name of at most 100 characters without spaces around it."
        raise DatasetError(what, where=str(records.root), fix=fix, code="pack-class")
    if seed is not None:
        order = np.random.default_rng([seed, *records.name.encode()]).permutation(len(members))
        members = [members[place] for place in order.tolist()]
    return members


def _claim(target: Path, members: dict[str, list[Member]], images: int, to: str) -> None:
    """Write what the shards are made of; raise OutputError if the target is made of something else."""
    digest = sha256()
    for name, listed in members.items():
        for member in listed:
            try:
                size = size_of(member.source)
            except (OSError, ValueError) as error:
                raise _unreadable(member.source, error) from None
            digest.update(f"{name}\0{member.path}\0{member.label}\0{size}\n".encode("utf-8", "surrogatepass"))
    counts = {name: len(listed) for name, listed in members.items()}
    told: dict[str, Any] = {"version": _VERSION, "images": counts, "of_a_shard": images, "digest": digest.hexdigest()}
    told |= {} if to == "tar" else {"form": to}
    with as_output_error(target):
        target.mkdir(parents=True, exist_ok=True)
        remove_stale(target)
        others = any(target.iterdir())
    if others and read_result(target / PACKED) != told:
        raise OutputError(
            "The folder has shards of other images, or something else.",
            where=str(target),
            fix="Give another folder, or remove what is there.",
            code="pack-target",
        )
    write_json(target / PACKED, told)


def _write(shard: Path, members: Sequence[Member], first: int) -> None:
    """Write one shard, unless it is there; `first`: number of its first image in the list."""
    if shard.exists():
        return
    with atomic_path(shard) as temporary, tarfile.open(temporary, "w:", format=tarfile.USTAR_FORMAT) as tar:
        for number, member in enumerate(members, first):
            for name, content in _files(number, member):
                entry = tarfile.TarInfo(name)  # without time and owner: the same images give the same bytes
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def _schema(names: set[str]) -> Any:
    """The columns of Parquet files; classes are integers if all names in the data set are, as Python writes them."""
    pa = arrow()
    numbers = all(re.fullmatch("0|[1-9][0-9]{0,17}", name) for name in names)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema([("image", image), ("label", pa.int64() if numbers else pa.string())])


def _write_parquet(schema: Any, shard: Path, members: Sequence[Member], first: int) -> None:
    """As `_write`, a Parquet file."""
    if shard.exists():
        return
    pa = arrow()
    from pyarrow.parquet import ParquetWriter

    image, kind = schema.field("image").type, schema.field("label").type
    numbers = pa.types.is_integer(kind)
    with atomic_path(shard) as temporary, ParquetWriter(temporary, schema, compression="none") as writer:
        for at in range(0, len(members), _ROWS):
            part = members[at : at + _ROWS]
            rows = [{"bytes": _content(m.source), "path": _key(first + at + n, m)} for n, m in enumerate(part)]
            labels = [int(m.label) if numbers else m.label for m in part]
            writer.write_table(pa.table([pa.array(rows, image), pa.array(labels, kind)], schema=schema))


def _key(number: int, member: Member) -> str:
    """Name of an image among those of its list: its number, and its own name as far as tar files may hold it."""
    inner = Path(str(member.path))
    suffix = inner.suffix.lower() if inner.suffix.lower() in SUFFIXES else ".jpg"
    return f"{number:09d}-{_NOT_IN_A_KEY.sub('_', inner.stem)[:_MAX_STEM]}{suffix}"


def _files(number: int, member: Member) -> Iterator[tuple[str, bytes]]:
    """The files of a sample."""
    name = _key(number, member)
    yield name, _content(member.source)
    yield f"{Path(name).stem}.cls", member.label.encode("utf-8")


def _content(source: str) -> bytes:
    """The bytes of an image. Raises DatasetError."""
    place = source if isinstance(source, ImageSource) else ImageSource(source, source)
    try:
        with open_file(Path(place.file)) as stream:
            stream.seek(place.start)
            data = stream.read() if place.length is None else stream.read(place.length)
    except OSError as error:
        raise _unreadable(source, error) from None
    return data


def _unreadable(source: str, error: Exception) -> DatasetError:
    what = f"An image cannot be read ({getattr(error, 'strerror', None) or error})."
    fix = "Check the data set (Global.mode=check_dataset), and run this again: it goes on from there."
    return DatasetError(what, where=source, fix=fix, code="pack-image")
