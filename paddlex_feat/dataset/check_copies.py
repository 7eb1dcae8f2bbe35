"""Checks for the same image in more than one place, to the byte or to the eye."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddlex_feat.dataset.findings import Finding
from paddlex_feat.dataset.subject import DataSet, Settings

# Bits of 128 in which the perceptual hashes of near-identical images differ at most: 8 bands of 16 bits,
# one of which must then be equal.
NEAR = 7
_ONES = np.array([i.bit_count() for i in range(256)], np.uint8)
_LARGEST_BAND = 500  # files that share a band; more share it by chance or by a common background

Place = tuple[str, int, str, str]  # file, label, file:line, list


def repeated_lines(data: DataSet, settings: Settings) -> list[Finding]:
    """No file stands twice in a list."""
    findings = []
    for name, records in data.lists.items():
        first: dict[str, int] = {}
        for i, path in enumerate(records.paths):
            before = first.setdefault(path, i)
            if before != i and records.labels[before] == records.labels[i]:
                message = f"{path} is already in {records.where(before)}."
                fix = f"Take one of the lines off {name}.txt."
                findings.append(Finding("line-repeated", "warning", records.where(i), message, fix))
    return findings


def _by_content(data: DataSet) -> dict[str, list[Place]]:
    """Records by the content of their file, where it is known; else by path."""
    places: dict[str, list[Place]] = {}
    for place in data.records():
        facts = data.facts.get(place[0])
        places.setdefault(facts.content if facts and facts.content else place[0], []).append(place)
    return {key: found for key, found in places.items() if len(found) > 1}


def contradictory_labels(data: DataSet, settings: Settings) -> list[Finding]:
    """One image has one label in train.txt, and one in gallery.txt and query.txt together."""
    findings = []
    for found in _by_content(data).values():
        for names in (("train",), ("gallery", "query")):
            here = [place for place in found if place[3] in names]
            for file, label, where, _ in here[1:]:
                if label != here[0][1]:
                    message = f"{data.short(file)} has label {label} here and {here[0][1]} in {here[0][2]}."
                    fix = "Keep the line with the right label."
                    findings.append(Finding("label-conflict", "error", where, message, fix, data.readable(file)))
    return findings


def identical(data: DataSet, settings: Settings) -> list[Finding]:
    """No list holds the same image under two names."""
    findings = []
    for found in _by_content(data).values():
        first: dict[str, Place] = {}
        for place in found:
            other = first.setdefault(place[3], place)
            if place[0] != other[0] and place[1] == other[1]:
                message = f"{data.short(place[0])} is the same image as {data.short(other[0])} ({other[2]})."
                fix = "Keep one of the two."
                findings.append(Finding("copy-identical", "warning", place[2], message, fix, data.readable(place[0])))
    return findings


def query_in_gallery(data: DataSet, settings: Settings) -> list[Finding]:
    """Queries are not themselves in the gallery, where they would find themselves."""
    found: list[tuple[Place, Place]] = []
    for places in _by_content(data).values():
        gallery = next((p for p in places if p[3] == "gallery"), None)
        found += [(place, gallery) for place in places if gallery and place[3] == "query"]
    every = len(found) == len(data.lists["query"]) > 0
    severity, fix = ("error" if every else "warning"), "Take it off one of the two lists."
    return [
        Finding(
            "query-in-gallery",
            severity,
            query[2],
            f"{data.short(query[0])} is in {gallery[2]} too: it finds itself." + (" So does every query." if every else ""),
            fix,
            data.readable(query[0]),
        )
        for query, gallery in found
    ]


def leaks(data: DataSet, settings: Settings) -> list[Finding]:
    """What is evaluated was not trained on."""
    findings = []
    for places in _by_content(data).values():
        train = next((p for p in places if p[3] == "train"), None)
        for file, _, where, name in places if train else ():
            if train and name != "train":
                message = f"{data.short(file)} is in {train[2]} too: evaluation would look better than it is."
                fix = "Take it off one of the two lists."
                findings.append(Finding("leak-identical", "warning", where, message, fix, data.readable(file)))
    return findings


def look_alikes(data: DataSet, settings: Settings) -> list[Finding]:
    """Near-identical images: across train and evaluation, under two labels, and, as a note, otherwise."""
    places: dict[str, Place] = {}
    for place in data.records():
        places.setdefault(place[0], place)
    findings, harmless = [], []
    for a, b in near_pairs({file: f.looks for file, f in data.facts.items() if f.looks and file in places}):
        if data.facts[a].content == data.facts[b].content:
            continue  # said by the checks above
        first, second = sorted((places[a], places[b]), key=lambda p: p[3] != "train")
        pair = data.readable(second[0], first[0])
        message = f"{data.short(second[0])} looks the same as {data.short(first[0])} ({first[2]})"
        if (first[3] == "train") != (second[3] == "train"):
            fix = "Look at both; if they show the same picture, take it off one of the lists."
            findings.append(
                Finding("leak-near", "warning", second[2], f"{message}, which is trained on.", fix, pair)
            )
        elif first[1] != second[1] and (first[3] == "train") == (second[3] == "train"):
            fix = "Look at both; if they show the same thing, give them one label."
            message += f" but has label {second[1]}, not {first[1]}."
            findings.append(Finding("label-conflict-near", "warning", second[2], message, fix, pair))
        elif first[3] == second[3]:
            harmless.append((second[2], f"{message}.", pair))
    if harmless:
        where, message, pair = harmless[0]
        message = f"{len(harmless)} pairs of images in one list and class look the same. {message}"
        findings.append(Finding("copy-near", "note", where, message, "Nothing, if there are few of them.", pair))
    return findings


def near_pairs(looks: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of keys whose 128-bit hashes, as hex, differ in at most NEAR bits; each pair once, in order.

    Exact, except that files of a band that more than _LARGEST_BAND share are compared by their other
    bands only.
    """
    keys = list(looks)
    if len(keys) < 2:
        return
    bits = np.frombuffer(bytes.fromhex("".join(looks.values())), np.uint8).reshape(len(keys), -1)
    seen: set[tuple[int, int]] = set()
    for band in bits.view(np.uint16).T:
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        starts = np.concatenate([[0], ends])
        lengths = np.diff(np.concatenate([starts, [len(keys)]]))
        for i in np.flatnonzero((lengths > 1) & (lengths <= _LARGEST_BAND)):
            seen |= _close(order[starts[i] : starts[i] + lengths[i]], bits)
    for first, second in sorted(seen):
        yield keys[first], keys[second]


def _close(group: np.ndarray, bits: np.ndarray) -> set[tuple[int, int]]:
    """The pairs of a group, as sorted indices, whose hashes are near."""
    members = bits[group]
    distance = _ONES[members[:, None] ^ members[None]].sum(axis=-1)
    pairs = np.argwhere(np.triu(distance <= NEAR, k=1))
    return {(min(a, b), max(a, b)) for a, b in group[pairs].tolist()}
