"""Tar shards as webdataset writes them: KEY.jpg beside KEY.cls, KEY.json or KEY.txt, read in any order by an index."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.lists.outside import Bounds
from paddlex_feat.data.readers.derived import Place, stored
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.names import divided_files
from paddlex_feat.data.readers.packed import MISSING, packed
from paddlex_feat.data.readers.parts import TRAIN, assign
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.data.readers.tar_index import (
    IMAGE_SUFFIXES,
    Damaged,
    is_index,
    label_of,
    make_index,
    members,
    split_name,
)
from paddlex_feat.fileio.reading import first_bytes

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LOOKED_AT = 400  # members of a shard that decide whether it is one
_AGAIN = "Copy or make the shard again."
DAMAGED = FindingSpec("shard-damaged", "error", "a tar shard is damaged or ends early", _AGAIN)
MEMBER = FindingSpec(
    "shard-member", "warning", "an image or class of a shard is a link, a device or sparse", "Store it as a plain file."
)
REPEATED = FindingSpec(
    "shard-repeated", "error", "two members of a shard have one name", "Give each sample a key of its own."
)
LABEL = FindingSpec(
    "shard-class", "error", "a sample of a shard has no class", "Add KEY.cls, KEY.json with a label, or KEY.txt."
)
IMAGE = FindingSpec(
    "shard-images", "warning", "a sample of a shard has several images; the first is used", "Leave one in each sample."
)
COMPRESSED = FindingSpec(
    "shard-compressed",
    "error",
    "a shard is compressed, so its images cannot be read in any order",
    "Unpack it, as by gunzip, or write plain .tar files: images are compressed themselves.",
)
NO_PART = FindingSpec(
    "shard-part",
    "warning",
    "the name of a shard says no list, such as train, while those of others do; it is left out",
    "Begin its name with train, test, gallery, query or validation.",
)
EMPTY = FindingSpec("shard-empty", "error", "the shards hold no usable image", LABEL.fix)
_SPECS = {"damaged": DAMAGED, "member": MEMBER, "repeated": REPEATED, "label": LABEL, "image": IMAGE}


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists, if a shard's first members are samples; one less if one is compressed that may hold some."""
    files = divided_files(folder, (".tar", *_COMPRESSED))
    shards = [name for name in files if name.lower().endswith(".tar")]
    if any(_is_shard(folder / shard) for shard in shards[:3]):
        return len(names)
    return len(names) - 1 if any(_holds_images(folder / name) for name in files) else 0


def _is_shard(shard: Path) -> bool:
    """Whether the first members are images with classes. Texts are classes if one of them is there twice."""
    images, sure, texts = set(), set(), {}
    try:
        for member, content in islice(members(shard), _LOOKED_AT):
            key, suffix = split_name(member.name)
            if suffix in IMAGE_SUFFIXES and member.isreg():
                images.add(key)
            label = label_of(content, suffix) if content is not None else None
            if label and suffix == "txt":
                texts[key] = label
            elif label:
                sure.add(key)
            if images & sure:
                return True
    except (Damaged, OSError):
        pass
    of_images = [text for key, text in texts.items() if key in images]
    return len(set(of_images)) < len(of_images)


def _is_compressed(shard: Path) -> bool:
    """Whether a shard is compressed, by its name or, called .tar, by its content."""
    try:
        return shard.name.lower().endswith(_COMPRESSED) or first_bytes(shard, 2) == b"\x1f\x8b"
    except OSError:
        return False


def _holds_images(archive: Path) -> bool:
    """Whether the first member of a .tar.gz has the suffix of a sample's."""
    try:
        header = zlib.decompressobj(31).decompress(first_bytes(archive, 4096), 512)
    except (OSError, zlib.error):
        return False
    name = header[:100].rstrip(b"\0").decode(errors="replace")
    return header[257:262] == b"ustar" and split_name(name)[1] in {*IMAGE_SUFFIXES, "cls", "json"}


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    shards, items = divided_files(root, (".tar", *_COMPRESSED)), Items(root)
    divided, found = any(shards.values()), dict[str, Part]()
    findings: list[Finding] = []
    bounds = Bounds(root)
    used = []
    for shard, part in shards.items():
        problem = bounds.problem(shard) if refuse_outside else None
        if _is_compressed(root / shard):
            findings.append(COMPRESSED.at(shard, f"{shard} is a compressed archive."))
        elif problem:
            findings.append(problem[0].at(shard, f"{shard} {problem[1]}", severity="error"))
        elif divided and part is None:
            findings.append(NO_PART.at(shard, f"{shard} is not used."))
        else:
            used.append(shard)
            findings += cap_per_code(_read_shard(root, shard, found.setdefault(part or TRAIN, Part())))
    findings += [MISSING.at(name, f"{name} is not there.") for name in packed(root, "tar") if name not in shards]
    told = assign(items, found)
    if not items.parts:
        findings.append(EMPTY.at(str(root), "There is no usable image."))
    return Reading(items.lists(names), cap_per_code(findings), f"{len(used)} tar shards; {told}")


def _read_shard(root: Path, shard: str, part: Part) -> Iterator[Finding]:
    file = root / shard
    try:
        place = Place(file, "tar")
        index = stored(place, lambda: make_index(file), lambda columns: is_index(columns, place.size))
    except OSError as error:
        yield DAMAGED.at(shard, f"The shard cannot be read ({error.strerror or error}).")
        return
    path = str(file)
    for image, start, length, label in zip(*(index[c] for c in ("image", "start", "length", "label")), strict=True):
        part.add(ImageSource(f"{shard}/{image}", path, start, length), label)
    for kind, member, message in index["problems"]:
        yield _SPECS[kind].at(f"{shard}/{member}" if member else shard, f"{member or shard}: {message}.")


TAR_SHARDS = ReaderSpec(
    name="TarShards",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("tar shards",),
    layout="Tar shards, as train-0000.tar, hold KEY.jpg beside KEY.cls, KEY.json with a label, or KEY.txt.",
    findings=(DAMAGED, MEMBER, REPEATED, LABEL, IMAGE, COMPRESSED, NO_PART, MISSING, EMPTY),
)
