"""Checks for the same image in more than one record, to the byte or to the eye."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddlex_feat.checks.context import CheckSettings, DataSet, RecordLocation
from paddlex_feat.data.findings import Finding

# Bits of 128 in which the perceptual hashes of near-identical images differ at most: 8 bands of 16 bits,
# one of which must then be equal.
MAX_HAMMING_128 = 7
MAX_HAMMING_512 = 24  # of the other 512 bits
_COARSE = 16  # bytes that hold the first 128
_ONES = np.array([i.bit_count() for i in range(256)], np.uint8)
MAX_PAIRS = 200_000  # pairs after which no more are looked for: a thousand copies have half a million
_MAX_BAND = 400  # files that share a band; more share it by chance or by a common background


def repeated_lines(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """No file stands twice in a list."""
    for name, records in data.lists.items():
        first: dict[str, int] = {}
        for i, file in enumerate(records.files()):
            before = first.setdefault(file, i)
            if before != i and records.labels[before] == records.labels[i]:
                message = f"{records.paths[i]} is already in {records.where(before)}."
                fix = f"Take one of the lines off {name}.txt."
                yield Finding("line-repeated", "warning", records.where(i), message, fix)


def contradictory_labels(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """One image has one label in train.txt, and one in gallery.txt and query.txt together."""
    for records in data.repeated:
        for names in (("train",), ("gallery", "query")):
            here = [record for record in records if record.list in names]
            for record in here[1:]:
                if record.label != here[0].label:
                    message = f"{record.path} has label {record.label} here and {here[0].label} in {here[0].where}."
                    fix = "Keep the line with the right label."
                    shown = data.readable(record.file)
                    yield Finding("label-conflict", "error", record.where, message, fix, shown)


def identical(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """No list holds the same image under two names."""
    for records in data.repeated:
        first: dict[str, RecordLocation] = {}
        for record in records:
            other = first.setdefault(record.list, record)
            if record.file != other.file and record.label == other.label:
                message = f"{record.path} is the same image as {other.path} ({other.where})."
                shown = data.readable(record.file)
                yield Finding("copy-identical", "warning", record.where, message, "Keep one of the two.", shown)


def query_in_gallery(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Queries are not themselves in the gallery, where they would find themselves."""
    found: list[tuple[RecordLocation, RecordLocation]] = []
    for records in data.repeated:
        gallery = next((p for p in records if p.list == "gallery"), None)
        found += [(record, gallery) for record in records if gallery and record.list == "query"]
    every = len(found) == len(data.lists["query"]) > 0
    severity, more = ("error", " So does every query.") if every else ("warning", "")
    for query, gallery in found:
        message, fix = (
            f"{query.path} is in {gallery.where} too: it finds itself.{more}",
            "Take it off one of the two lists.",
        )
        yield Finding("query-in-gallery", severity, query.where, message, fix, data.readable(query.file))


def leaks(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """What is evaluated was not trained on."""
    for records in data.repeated:
        train = next((p for p in records if p.list == "train"), None)
        for record in records if train else ():
            if train and record.list != "train":
                message = f"{record.path} is in {train.where} too: evaluation would look better than it is."
                fix = "Take it off one of the two lists."
                shown = data.readable(record.file)
                yield Finding("leak-identical", "warning", record.where, message, fix, shown)


def near_duplicates(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """Near-identical images: across train and evaluation, under two labels, and, as a note, otherwise."""
    hashes = {file: info.phash for file, info in data.image_info.items() if info.phash}
    near = list(near_pairs(hashes))
    if len(near) >= MAX_PAIRS:
        message = (
            f"At least {len(near)} pairs of images look the same; where there are so many, the rest is not looked for."
        )
        yield Finding("copy-many", "warning", str(data.root), message, "Take copies off the lists, then check again.")
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
            fix = "Look at both; if they show the same picture, take it off one of the lists."
            yield Finding("leak-near", "warning", second.where, f"{message}, which is trained on.", fix, shown)
        elif first.label != second.label:
            fix = "Look at both; if they show the same thing, give them one label."
            message += f" but has label {second.label}, not {first.label}."
            yield Finding("label-conflict-near", "warning", second.where, message, fix, shown)
        elif first.list == second.list:
            harmless.append((second.where, f"{message}.", shown))
    if harmless:
        where, message, shown = harmless[0]
        message = f"{len(harmless)} pairs of images in one list and class look the same. {message}"
        yield Finding("copy-near", "note", where, message, "Nothing, if there are few of them.", shown)


def _same(data: DataSet, a: str, b: str) -> bool:
    """Are the files equal to the byte? Then the checks above have said so."""
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
