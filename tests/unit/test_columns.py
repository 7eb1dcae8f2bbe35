"""Lists of very many images: columns are sequences, and the quick reader finds what the general one does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paddlex_feat.data.lists import file_sizes
from paddlex_feat.data.lists.columns import Files, Numbers, Texts
from paddlex_feat.data.lists.fingerprint import fingerprint
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.repeated import same_files
from paddlex_feat.data.readers import shitu_rec
from paddlex_feat.data.readers.plain_list import read_plain
from paddlex_feat.fileio import npz

NAMES = ["a.jpg", "b c.png", "图像/猫.jpg", "a.jpg", "ü.png", ""]


def texts(names: list[str]) -> Texts:
    encoded = [os.fsencode(name) for name in names]
    ends = np.cumsum([len(e) + 1 for e in encoded]) - 1 if encoded else np.empty(0, np.int64)
    starts = ends - [len(e) for e in encoded] if encoded else ends
    return Texts(b"|".join(encoded), np.asarray(starts, np.int64), np.asarray(ends, np.int64))


def test_texts_are_a_sequence_of_strings():
    column = texts(NAMES)
    assert list(column) == NAMES and column == NAMES and column == NAMES and len(column) == 6
    assert column[2] == NAMES[2] and column[-2] == NAMES[-2] and column[1:4] == NAMES[1:4] and "ü.png" in column
    assert column.take(np.array([4, 0])) == [NAMES[4], NAMES[0]] and column != NAMES[:5] and column != "a"
    with pytest.raises(IndexError):
        column[6]
    assert column[:1] + column[1:] == NAMES == NAMES[:2] + column[2:]
    assert texts(["\udcff.jpg"])[0] == "\udcff.jpg"  # a name that is not UTF-8
    hashes = column.hashes()
    assert hashes[0] == hashes[3] and len(set(hashes.tolist())) == 5


def test_numbers_are_a_sequence_of_ints():
    column = Numbers(np.array([3, 1, 2**40]))
    assert column == [3, 1, 2**40] and type(column[0]) is int and type(next(iter(column))) is int
    assert np.asarray(column, np.float64).sum() == 4 + 2**40 and column[1:] == [1, 2**40]
    assert np.unique(column).tolist() == [1, 3, 2**40]


def test_files_are_joined_as_those_of_a_list():
    names = ["a.jpg", "./a.jpg", "b/../a.jpg", "/abs/a.jpg", "b//c.jpg"]
    general, columns = (ImageList("train", Path("/root"), paths) for paths in (names, texts(names)))
    assert isinstance(columns.files(), Files) and list(columns.files()) == general.files()
    assert columns.files()[1:3] == general.files()[1:3] and columns.files() == columns.files()


def general(root: Path, monkeypatch) -> tuple:
    with monkeypatch.context() as patch:
        patch.setattr(shitu_rec, "read_plain", lambda data: None)
        return shitu_rec.read_list(root, "train")


LINE = st.one_of(
    st.builds("{} {}".format, st.text(alphabet="ab./ü猫\u3000\xa0 -", max_size=6), st.integers(0, 10**19)),
    st.text(alphabet="a1 \t,;./ü\u3000\x85", max_size=8),
    st.just(""),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINE, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
@example(["a.jpg 1", "", "b c.jpg 22"], "\n", True)
@example(["a.jpg 123456789012345678", "b.jpg 0"], "\n", False)
@example(["\u3000a.jpg 1"], "\n", True)
@example(["か.jpg 1"], "\n", True)
@example([" 1"], "\n", True)
@example(["1"], "\n", False)
def test_the_quick_reader_finds_what_the_general_one_does(tmp_path_factory, lines, end, closed):
    root = tmp_path_factory.mktemp("lists")
    data = (end.join(lines) + (end if closed else "")).encode()
    (root / "train.txt").write_bytes(data)
    quick = read_plain(data)
    if quick is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        records, findings = general(root, patch)
    assert not findings
    assert (records.paths, records.labels, records.lines) == (*quick[:2], list(quick[2]))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a.jpg 1\nb c.jpg 20\n", range(1, 3)),
        (b"\na.jpg 1\n\nb.jpg 0", [2, 4]),
        ("图/猫.jpg 7\nか.png 8\n".encode(), range(1, 3)),
    ],
)
def test_plain_lists_are_read_the_quick_way(data, lines):
    paths, labels, found = read_plain(data)
    assert list(found) == list(lines) and len(paths) == len(labels) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"a.jpg\t1\n",
        b"a.jpg 1\r\n",
        b"a.jpg  1\n",
        b" a.jpg 1\n",
        b"a.jpg 1 \n",
        b"a.jpg x\n",
        b"a.jpg -1\n",
        b"\xef\xbb\xbfa.jpg 1\n",
        b"\xff.jpg 1\n",
        b"a.jpg 1234567890123456789\n",
        b"12\n",
        b" 12\n",
        "\u3000a 1\n".encode(),
    ],
)
def test_other_lists_are_left_to_the_general_reader(data):
    assert read_plain(data) is None


@pytest.mark.parametrize("as_columns", [False, True])
def test_records_of_one_file_are_found_across_lists(as_columns):
    column = texts if as_columns else list
    one = ImageList("train", Path("/r"), column(["a", "b", "a", "c"]), [0, 1, 0, 2])
    other = ImageList("query", Path("/r"), column(["d", "b", "a"]), [3, 1, 0])
    assert same_files([one, other]) == [[(0, 0), (0, 2), (1, 2)], [(0, 1), (1, 1)]]


def test_other_ways_to_write_a_path_are_the_same_file():
    records = ImageList("train", Path("/r"), texts(["a", "./a", "/r/a", "b"]), [0, 0, 0, 1])
    assert same_files([records]) == [[(0, 0), (0, 1), (0, 2)]]


def test_paths_whose_hashes_are_equal_are_compared(monkeypatch):
    monkeypatch.setattr(Texts, "hashes", lambda self: np.zeros(len(self), np.int64))
    records = ImageList("train", Path("/r"), texts(["a", "b", "a", "c"]), [0, 1, 0, 2])
    assert same_files([records]) == [[(0, 0), (0, 2)]]


def test_sizes_by_several_processes_are_those_of_one(tmp_path, monkeypatch):
    files = []
    for number in range(50):
        (tmp_path / str(number)).write_bytes(b"x" * number)
        files.append(str(tmp_path / str(number)))
    files[7] = str(tmp_path / "missing")
    alone = np.concatenate(list(file_sizes.file_sizes(files)))
    assert alone[7] == -1 and alone[49] == 49
    monkeypatch.setattr(file_sizes, "_MANY", 10)
    monkeypatch.setattr(file_sizes, "ROWS", 8)
    monkeypatch.setattr(file_sizes, "cpu_count", lambda: 3)
    assert np.array_equal(np.concatenate(list(file_sizes.file_sizes(files))), alone)
    columns = Files(str(tmp_path), texts([Path(file).name for file in files]))
    assert np.array_equal(np.concatenate(list(file_sizes.file_sizes(columns))), alone)
    parent = os.getpid()
    monkeypatch.setattr(file_sizes, "_size_of", lambda file: (os.getpid() == parent and 3) or os._exit(1))
    assert np.concatenate(list(file_sizes.file_sizes(files))).tolist() == [3] * 50  # a killed process is replaced


def test_a_fingerprint_does_not_depend_on_the_kind_of_column(tmp_path):
    names = [f"{n}.jpg" for n in range(5)]
    for name in names[1:]:
        (tmp_path / name).write_bytes(name.encode() * 3)
    one, other = (ImageList("train", tmp_path, *columns) for columns in (
        (names, [1, 2, 3, 4, 5]), (texts(names), Numbers(np.arange(1, 6)))))  # fmt: skip
    prints = [fingerprint(r.paths, r.files(), r.labels) for r in (one, other)]
    assert prints[0] == prints[1] and prints[0].missing == [0]
    assert prints[0].sha256 == "4360f5ab77ff6494128c3562ab350c14918208434ca024e0c1cb6fc0c3bbd936"


def test_a_part_keeps_its_lines():
    data = b"a 1\nb 2\nc 1\nd 3\n"
    records = ImageList("train", Path("/r"), *read_plain(data))
    part = records.part([3, 1])
    assert (part.paths, part.labels, part.lines) == (["d", "b"], [3, 2], [4, 2])
    assert records.class_sizes() == {1: 2, 2: 1, 3: 1} and list(records.class_sizes()) == [1, 2, 3]


@pytest.mark.parametrize("padded_bytes", [0, 10**6])
def test_many_names_go_into_a_file_without_padding(tmp_path, monkeypatch, padded_bytes):
    monkeypatch.setattr(npz, "PADDED_BYTES", padded_bytes)
    for names in (NAMES, texts(NAMES)):
        with npz.NpzWriter(tmp_path / "f.npz") as writer:
            writer.write_names("paths", names)
        with np.load(tmp_path / "f.npz") as content:
            assert ("paths" in content.files) == (padded_bytes > 0)
            assert list(npz.read_names(content, "paths")) == NAMES and npz.read_names(content, "others") is None


def test_names_with_wrong_offsets_are_refused(tmp_path):
    np.savez(tmp_path / "f.npz", paths_bytes=np.zeros(3, np.uint8), paths_offsets=np.array([0, 4]))
    with np.load(tmp_path / "f.npz") as content, pytest.raises(ValueError, match="offsets"):
        npz.read_names(content, "paths")
