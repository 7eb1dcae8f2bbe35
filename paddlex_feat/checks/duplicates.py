"""Checks for the same image in more than one record, to the byte or to the eye."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import Finding, FindingSpec, Severity
from paddlex_feat.data.images.source import are_parts_of_one

# Bits in which the perceptual hashes (phash.py) of near-identical images differ at most. Recompression, resizing and a
# change of light stay below these limits (tests/unit/test_checks.py), which have no outside source. If at most 7 of 128
# bits differ, one of 8 bands of 16 bits is equal (pigeonhole principle), so pairs are sought within bands.
MAX_HAMMING_128 = 7
MAX_HAMMING_512 = 24  # of the other 512 bits
_COARSE = 16  # bytes that hold the first 128
_ONES = np.array([i.bit_count() for i in range(256)], np.uint8)
MAX_PAIRS = 200_000  # pairs after which the search ends: a thousand copies have half a million
_MAX_BAND = 400  # files that share a band; more share it by chance or by a common background

_ONE_LIST = "Take it off one of the two lists."
_OTHERS = "Let each query look for the others of its class: -o Evaluate.exclude_self=True. Or keep the lists apart."
REPEATED = FindingSpec(
    "line-repeated", "warning", "the same file and label twice in a list", "Take one of the lines off the list."
)
CONFLICT = FindingSpec(
    "label-conflict",
    "error",
    "one image has two labels in train.txt, or in gallery.txt and query.txt",
    "Keep the line with the right label.",
)
IDENTICAL = FindingSpec("copy-identical", "warning", "the same image under two names in a list", "Keep one of the two.")
QUERY_IN_GALLERY = FindingSpec(
    "query-in-gallery", "warning", "a query is itself in the gallery", _ONE_LIST, otherwise="error if all"
)
LEAK = FindingSpec("leak-identical", "warning", "an evaluation image is in train.txt too", _ONE_LIST)
LEAK_NEAR = FindingSpec(
    "leak-near",
    "warning",
    "an evaluation image looks the same as one in train.txt",
    "Look at both; if they show the same picture, take it off one of the lists.",
)
CONFLICT_NEAR = FindingSpec(
    "label-conflict-near",
    "warning",
    "near-identical images have two labels",
    "Look at both; if they show the same thing, give them one label.",
)
COPY_NEAR = FindingSpec(
    "copy-near", "note", "pairs of near-identical images in one list and class", "Nothing, if there are few of them."
)
MANY = FindingSpec(
    "copy-many",
    "warning",
    "so many pairs of images look the same that the search ended",
    "Take copies off the lists, then check again.",
)


def check_repeated_lines(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """No file is twice in a list under one label."""
    for records in data.distinct_lists():
        groups = [[r for r in group if r.records is records] for group in data.same_files]
        pairs = [(again, group[0]) for group in groups for again in group[1:] if again.label == group[0].label]
        for again, first in sorted(pairs, key=lambda pair: pair[0].position):
            message = f"{again.path} is already in {first.where}."
            yield REPEATED.at(again.where, message, fix=f"Take one of the lines off {records.source}.")


def check_labels(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """One image has one label in train.txt, and one in gallery.txt and query.txt together."""
    for records in data.repeated:
        for names in (("train",), ("gallery", "query")):
            here = [record for record in records if record.list in names]
            for record in here[1:]:
                if record.label != here[0].label:
                    message = f"{record.path} has label {record.label} here and {here[0].label} in {here[0].where}."
                    yield CONFLICT.at(record.where, message, images=data.readable(record.file))


def check_copies(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """No list holds the same image under two names."""
    for records in data.repeated:
        first: dict[str, RecordLocation] = {}
        for record in records:
            other = first.setdefault(record.list, record)
            if record.file != other.file and record.label == other.label:
                message = f"{record.path} is the same image as {other.path} ({other.where})."
                yield IDENTICAL.at(record.where, message, images=data.readable(record.file))


def check_query_in_gallery(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Queries are not themselves in the gallery, where they would find themselves."""
    found: list[tuple[RecordLocation, RecordLocation]] = []
    for records in data.repeated:
        gallery = next((p for p in records if p.list == "gallery"), None)
        queries = [record for record in records if record.list == "query"] if gallery else []
        found += [(record, gallery) for record in queries if gallery and not _is_left_out(record, gallery)]
    every = len(found) == len(data.lists["query"]) > 0
    severity: Severity = "error" if every else "warning"
    for query, gallery in found:
        message = f"{query.path} is in {gallery.where} too: it finds itself.{' So does every query.' if every else ''}"
        fix = _OTHERS if every else _ONE_LIST
        yield QUERY_IN_GALLERY.at(query.where, message, severity=severity, fix=fix, images=data.readable(query.file))


def _is_left_out(query: RecordLocation, gallery: RecordLocation) -> bool:
    """Whether evaluation leaves out this gallery image for this query, as `matches.excluded_pairs` does."""
    if query.records.leave_one_out and query.file == gallery.file:
        return True
    cameras = query.records.cameras, gallery.records.cameras
    same = all(cameras) and cameras[0][query.position] == cameras[1][gallery.position]
    return same and query.label == gallery.label


def check_leaks(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """No evaluation image is trained on."""
    for records in data.repeated:
        train = next((p for p in records if p.list == "train"), None)
        for record in records if train else ():
            if train and record.list != "train":
                message = f"{record.path} is in {train.where} too: evaluation would look better than it is."
                yield LEAK.at(record.where, message, images=data.readable(record.file))


def check_near_duplicates(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Near-identical images: across train and evaluation, under two labels, and, as a note, otherwise."""
    hashes = {file: info.phash for file, info in data.image_info.items() if info.phash}
    near = list(near_pairs(hashes))
    if len(near) >= MAX_PAIRS:
        message = f"At least {len(near)} pairs of images look the same; the search for more has ended."
        yield MANY.at(str(data.root), message)
    pairs = [(a, b) for a, b in near if not _same(data, a, b)]
    wanted = {file for pair in pairs for file in pair}
    records: dict[str, RecordLocation] = {}
    for file, record in data.records() if wanted else ():
        if file in wanted:
            records.setdefault(file, record)
    harmless = []
    for a, b in pairs:
        first, second = sorted((records[a], records[b]), key=lambda p: p.list != "train")
        shown = data.readable(second.file, first.file)
        message = f"{second.path} looks the same as {first.path} ({first.where})"
        if (first.list == "train") != (second.list == "train"):
            yield LEAK_NEAR.at(second.where, f"{message}, which is trained on.", images=shown)
        elif first.label != second.label:
            message += f" but has label {second.label}, not {first.label}."
            yield CONFLICT_NEAR.at(second.where, message, images=shown)
        elif first.list == second.list:
            harmless.append((second.where, f"{message}.", shown))
    if harmless:
        where, message, shown = harmless[0]
        message = f"{len(harmless)} pairs of images in one list and class look the same. {message}"
        yield COPY_NEAR.at(where, message, images=shown)


def _same(data: DataSet, a: str, b: str) -> bool:
    """Whether two images are equal to the byte, which the checks above report, or boxes of one picture."""
    if are_parts_of_one(a, b):
        return True
    return bool(data.image_info[a].sha256) and data.image_info[a].sha256 == data.image_info[b].sha256


def near_pairs(hashes: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of keys whose hashes, as hex, are near; each pair once, in order.

    Near are hashes of which the first 128 bits differ in at most MAX_HAMMING_128 bits, and the others in at most
    MAX_HAMMING_512. Exact, except that files of a band that more than _MAX_BAND share are compared by
    their other bands only, and that about MAX_PAIRS are enough.
    """
    keys = list(hashes)
    if len(keys) < 2:
        return
    bits = np.frombuffer(bytes.fromhex("".join(hashes.values())), np.uint8).reshape(len(keys), -1)
    seen: set[tuple[int, int]] = set()
    for band in np.ascontiguousarray(bits[:, :_COARSE]).view(np.uint16).T:
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        starts = np.concatenate([[0], ends])
        lengths = np.diff(np.concatenate([starts, [len(keys)]]))
        for i in np.flatnonzero((lengths > 1) & (lengths <= _MAX_BAND)):
            seen |= _close(order[starts[i] : starts[i] + lengths[i]], bits)
            if len(seen) >= MAX_PAIRS:
                break
    for first, second in sorted(seen):
        yield keys[first], keys[second]


def _close(group: np.ndarray, bits: np.ndarray) -> set[tuple[int, int]]:
    """The pairs of a group, as sorted indices, whose hashes are near."""
    members = bits[group]
    differing = _ONES[members[:, None] ^ members[None]]
    near = differing[..., :_COARSE].sum(axis=-1) <= MAX_HAMMING_128
    near &= differing[..., _COARSE:].sum(axis=-1) <= MAX_HAMMING_512
    pairs = np.argwhere(np.triu(near, k=1))
    return {(min(a, b), max(a, b)) for a, b in group[pairs].tolist()}


CHECKS = (
    CheckSpec("repeated-lines", check_repeated_lines, (REPEATED,)),
    CheckSpec("labels", check_labels, (CONFLICT,)),
    CheckSpec("copies", check_copies, (IDENTICAL,)),
    CheckSpec("query-in-gallery", check_query_in_gallery, (QUERY_IN_GALLERY,)),
    CheckSpec("leaks", check_leaks, (LEAK,)),
    CheckSpec("near-duplicates", check_near_duplicates, (MANY, LEAK_NEAR, CONFLICT_NEAR, COPY_NEAR)),
)
