"""Damaged tables and odd trees of folders: findings or errors of ours, in bounded time. Other readers: their own tests.

PADDLEX_FEAT_FUZZ_CASES sets the number of cases of each reader.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from paddlex_feat.data.readers import LISTS, READERS, require_lists
from paddlex_feat.data.readers.spec import Reading
from paddlex_feat.errors import FeatError

CASES = int(os.environ.get("PADDLEX_FEAT_FUZZ_CASES", "150"))
SECONDS = 3
HEADERS = (
    "path,label,split", "path;class_name;is_query;is_gallery", "image\tlabel", "Image Path,category,x1,y1,x2,y2",
    "path,label,x,y,width,height", "label,path,path", "path", "", "path,label,split,is_query,is_gallery,x1,y1,x2,y2",
)  # fmt: skip
VALUES = (
    "a.jpg", "b.jpg", "c/d.jpg", "../a.jpg", "/etc/passwd", "http://h/a.jpg", "file:///a.jpg", "cat", "dog", "", " ",
    "train", "test", "query", "gallery", "True", "0", "1", "-1", "nan", "1e999", "9" * 400, "x" * 5000, "猫", "\ufeff",
    '"', '""', '"a,b"', "\0", "\r", "\u2028", "\ud7ff", "[1, 2, 3, 4]", "a[1,2,3,4]", "a.jpg[0,0,0,0]",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030", "latin-1")
NAMES = (
    b"cat", b"dog", b"train", b"test", b"gallery", b"query", b"val", b"images", b"a b", b"\xff\xfe", b"\xc3\x28", b"-o",
    b"new\nline", b"tab\tname", b"a[1,2,3,4]", b"#", b"%s", b"~", b"x" * 250, b".hidden", b"__MACOSX", b"1", b"007",
    "猫".encode(), "قط".encode(), b"con", b"a.jpg", b"data.csv", b"annotations", b"\x1b[31m",
)  # fmt: skip
FILES = (b"1.jpg", b"2.PNG", b"3.webp", b"\xff.jpg", b"a\nb.jpg", b"a[1,2,3,4].jpg", b".jpg", b"x.txt", b"y.json",
         b"train.txt", b"z.csv", b"data.yaml", b"1.xml", b"s.tar")  # fmt: skip


def outcome(root: Path, form: str, rng: random.Random) -> str:
    """ "" if nothing claims or can use the folder, else "read"; whatever is in it, only our errors are raised."""
    start, reader = time.monotonic(), READERS.get(form)
    try:
        claimed = bool(reader.count_lists(root, LISTS))
        reading = Reading(*reader.read(root, LISTS, rng.random() < 0.5))
        for records in reading.lists.values():
            assert len(records.paths) == len(records.labels)
        assert all(f.message and f.where for f in reading.findings)
        require_lists(str(root))
    except FeatError as error:
        assert str(error)
        return ""
    finally:
        assert time.monotonic() - start < SECONDS
    return "read" if claimed else ""


def damaged_table(rng: random.Random) -> bytes:
    header, encoding = rng.choice(HEADERS), rng.choice(ENCODINGS)
    comma = next((mark for mark in ";\t" if mark in header), ",")
    good = [f"{'ab'[i % 2]}.jpg{comma}{('cat', 'dog', 'cow')[i % 3]}" for i in range(rng.randrange(12))]
    odd = [comma.join(rng.choices(VALUES, k=rng.randrange(8))) for _ in range(rng.choice((0, 0, 1, 3)))]
    lines = good + odd
    rng.shuffle(lines)
    data = rng.choice(("\n", "\n", "\r\n", "\r")).join([header, *lines]).encode(encoding, "replace")
    if data and rng.random() < 0.4:
        found = bytearray(data)
        for _ in range(rng.randrange(1, 8)):
            found[rng.randrange(len(found))] = rng.randrange(256)
        data = bytes(found[: rng.randrange(1, len(found) + 1)])
    return data


def test_damaged_tables(tmp_path):
    rng, outcomes = random.Random(18), set()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    for _ in range(CASES):
        tables = rng.sample(("own.csv", "train.csv", "test.tsv", "data.csv"), rng.choice((1, 1, 2)))
        for table in tables:
            (tmp_path / table).write_bytes(damaged_table(rng))
        outcomes.add(outcome(tmp_path, "Table", rng))
        for table in tables:
            (tmp_path / table).unlink()
    assert outcomes == {"", "read"}


def odd_tree(root: Path, rng: random.Random) -> None:
    """Folders and files of any names, links that lead in circles, pipes, and folders named as files."""
    folders = [root]
    for _ in range(rng.randrange(1, 12)):
        folder = rng.choice(folders) / os.fsdecode(rng.choice(NAMES))
        if len(folder.parts) < 12 and not os.path.lexists(folder):
            folder.mkdir()
            folders.append(folder)
    for folder in folders:
        for name in rng.sample(FILES, rng.choice((0, 1, 2, 4))):
            path, kind = folder / os.fsdecode(name), rng.random()
            if os.path.lexists(path):
                continue
            if kind < 0.05:
                path.symlink_to(rng.choice((".", "..", "/nowhere", str(root), "/dev/zero")))
            elif kind < 0.07:
                os.mkfifo(path)
            elif kind < 0.1:
                path.mkdir()
            else:
                path.write_bytes(rng.choice((b"", b"a.jpg 0\n", b"{}", rng.randbytes(20))))


@pytest.mark.skipif(os.name == "nt", reason="names of any bytes and pipes are those of POSIX")
def test_odd_trees_of_folders(tmp_path):
    rng, outcomes = random.Random(18), set()
    for case in range(CASES):
        root = tmp_path / str(case)
        root.mkdir()
        odd_tree(root, rng)
        before = sorted(root.rglob("*"))
        outcomes.add(outcome(root, "ClassFolders", rng))
        assert sorted(root.rglob("*")) == before
        shutil.rmtree(root)
    assert outcomes == {"", "read"}
