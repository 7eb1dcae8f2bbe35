"""Pictures, and damage to annotations, for the tests of the readers of boxes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import cv2
import numpy as np

from paddlex_feat.data.images.source import box_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers.find import READERS, find_root, reader_of
from paddlex_feat.data.readers.spec import Reading

NAMES = ("train", "gallery", "query")
CASES = int(os.environ.get("PADDLEX_FEAT_FUZZ_CASES", "100"))
_TOKENS = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"-1", b"1e999", b"NaN", b"true", b"<", b">", b"&a;",
           b"<!DOCTYPE a>", b"\0", b"\xff", b"\n", b" ", b"../", b"/", b"9" * 30, b"\\ud800", b"[" * 2000]  # fmt: skip


def picture(path: Path, width: int = 100, height: int = 80, seed: int = 0) -> Path:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
    return path


def read(top: Path, form: str, refuse_outside: bool = False) -> Reading:
    """Find the data set, require that only the reader `form` claims it, and read it."""
    root = find_root(str(top))
    reader = reader_of(root)
    assert reader.name == form
    return Reading(*reader.read(root, NAMES, refuse_outside))


def items(records: ImageList) -> list[tuple[str, tuple[float, ...], str]]:
    """(picture, box, class) of each record."""
    names = [records.names.get(label, str(label)) for label in records.labels]
    boxes = [(path.partition("[")[0], box_of(path)) for path in records.paths]
    return sorted((file, tuple(box or ()), name) for (file, box), name in zip(boxes, names, strict=True))


def codes(reading: Reading) -> list[tuple[str, str]]:
    """(code, where) of the findings."""
    return [(finding.code, finding.where) for finding in reading.findings]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with a few random changes."""
    for _ in range(rng.integers(1, 4)):
        at, length = rng.integers(0, len(data) + 1), rng.integers(0, 30)
        new = _TOKENS[rng.integers(len(_TOKENS))] if rng.random() < 0.7 else rng.bytes(rng.integers(0, 5))
        data = data[:at] + new + data[at + length * (rng.random() < 0.5) :]
    return data if rng.random() < 0.9 else data[: rng.integers(0, len(data) + 1)]


def fuzz(root: Path, files: list[Path], form: str) -> int:
    """Read a data set with damaged files many times; returns how often boxes were left.

    Neither claim nor reading may raise an error or take long, and what is left must be boxes.
    """
    reader, rng, left = READERS.get(form), np.random.default_rng(0), 0
    originals = {file: file.read_bytes() for file in files}
    before = sorted(root.rglob("*"))
    for case in range(CASES):
        for file, data in originals.items():
            file.write_bytes(damaged(data, rng) if rng.random() < 0.8 else data)
        start = time.monotonic()
        for name in READERS.names() if case % 10 == 0 else (form,):
            READERS.get(name).count_lists(root, NAMES)
        reading = Reading(*reader.read(root, NAMES, bool(rng.random() < 0.5)))
        assert time.monotonic() - start < 3
        for records in reading.lists.values():
            assert len(records.paths) == len(records.labels)
            assert all(box is not None and box.x1 < box.x2 and box.y1 < box.y2 for box in map(box_of, records.paths))
            left += bool(records.paths)
        known = {spec.code for spec in reader.findings} | {"path-leaves", "path-absolute"}
        assert all(f.code in known and f.where and f.message for f in reading.findings)
    assert sorted(root.rglob("*")) == before  # nothing is written
    return left
