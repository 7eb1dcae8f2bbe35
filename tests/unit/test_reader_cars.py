"""Cars-196 as it was published: annotations in MATLAB 5 files, which are untrusted."""

from __future__ import annotations

import builtins
import functools
import os
import random
import resource
import struct
import time
import zlib
from pathlib import Path

import pytest

from paddlex_feat.data.findings import Finding
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import LISTS, find_root, reader_of
from paddlex_feat.data.readers.find import read_lists
from paddlex_feat.data.readers.published import CARS, matlab
from paddlex_feat.errors import DependencyError

pytest.importorskip("scipy")
CASES = int(os.environ.get("PADDLEX_FEAT_FUZZ_CASES", "200"))
CHAR, CELL, STRUCT, UINT8 = 4, 1, 2, 9


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(form: int, shape: tuple[int, ...], content: bytes, name: str = "") -> bytes:
    head = element(6, struct.pack("<II", form, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, head + element(1, name.encode()) + content)


def text(value: str) -> bytes:
    return array(CHAR, (1, len(value)), element(4, value.encode("utf-16-le")))


@functools.cache
def number(value: int) -> bytes:
    return array(UINT8, (1, 1), element(2, bytes([value])))


def structs(rows: list[dict[str, bytes]], name: str) -> bytes:
    fields = list(rows[0])
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    head = element(5, struct.pack("<i", 32)) + element(1, names)
    return array(STRUCT, (1, len(rows)), head + b"".join(row[f] for row in rows for f in fields), name)


def cells(values: list[str], name: str) -> bytes:
    return array(CELL, (1, len(values)), b"".join(map(text, values)), name)


def mat(*variables: bytes, compress: bool = True) -> bytes:
    """A MATLAB 5 file, as "MAT-File Format" describes it."""
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    for data in variables:
        packed = zlib.compress(data, 1)
        head += struct.pack("<II", 15, len(packed)) + packed if compress else data
    return head


NAMES = [f"Make Model {i} Coupé 20{i:02d}" if i < 100 else f"Other's {i}/2 SUV" for i in range(196)]


def rows_of(images: int, first: int, field: str, top: str = "", start: int = 1) -> list[dict[str, bytes]]:
    """Annotations of as many images, of 98 classes from `first` on."""
    each = [images // 98 + (i < images % 98) for i in range(98)]
    labels = [first + i for i, size in enumerate(each) for _ in range(size)]
    return [
        {field: text(f"{top}{k:06d}.jpg"), "class": number(c), "test": number(0)} for k, c in enumerate(labels, start)
    ]


def write_one(root: Path, train: int, test: int) -> None:
    (root / "car_ims").mkdir(parents=True)
    rows = rows_of(train, 1, "relative_im_path", "car_ims/") + rows_of(
        test, 99, "relative_im_path", "car_ims/", train + 1
    )
    (root / "cars_annos.mat").write_bytes(mat(structs(rows, "annotations"), cells(NAMES, "class_names")))


def read(root: Path, outside: bool = False) -> tuple[str, dict[str, ImageList], list[Finding]]:
    found = find_root(str(root))
    reader = reader_of(found)
    lists, findings, _ = read_lists(found, reader, LISTS, outside)
    return reader.name, lists, findings


def test_cars_has_the_counts_of_papers(tmp_path):
    write_one(tmp_path, 8_054, 8_131)
    name, lists, findings = read(tmp_path)
    assert name == "Cars-196" and findings == []
    found = {n: (len(records), len(set(records.labels))) for n, records in lists.items()}
    assert found == {"train": (8_054, 98), "gallery": (8_131, 98), "query": (8_131, 98)}
    assert lists["query"].leave_one_out and lists["train"].paths[0] == "car_ims/000001.jpg"
    assert {lists["train"].names[n] for n in set(lists["train"].labels)} == set(NAMES[:98])
    assert {lists["query"].names[n] for n in set(lists["query"].labels)} == set(NAMES[98:])


@pytest.mark.parametrize("place", ["devkit", "."])
def test_the_first_layout_is_read_by_classes_and_not_by_its_division(place, tmp_path):
    for folder in ("cars_train", "cars_test", "devkit"):
        (tmp_path / folder).mkdir()
    halves = {"cars_train_annos": rows_of(196, 1, "fname") + rows_of(98, 99, "fname", start=197)}
    halves["cars_test_annos_withlabels"] = rows_of(98, 1, "fname") + rows_of(196, 99, "fname", start=99)
    for name, rows in halves.items():
        (tmp_path / place / f"{name}.mat").write_bytes(mat(structs(rows, "annotations"), compress=place == "."))
    (tmp_path / place / "cars_meta.mat").write_bytes(mat(cells(NAMES, "class_names")))
    name, lists, findings = read(tmp_path)
    assert name == "Cars-196" and {f.code for f in findings} == {"published-counts"}
    assert (len(lists["train"]), len(lists["query"])) == (294, 294)
    assert {path.partition("/")[0] for path in lists["train"].paths} == {"cars_train", "cars_test"}
    assert lists["train"].names[lists["train"].labels[0]] == NAMES[0]


def test_the_labels_of_the_test_half_are_missed(tmp_path):
    for folder in ("cars_train", "cars_test", "devkit"):
        (tmp_path / folder).mkdir()
    (tmp_path / "devkit/cars_train_annos.mat").write_bytes(mat(structs(rows_of(98, 1, "fname"), "annotations")))
    errors = [f for f in read(tmp_path)[2] if f.severity == "error"]
    assert errors[0].where == "devkit/cars_test_annos_withlabels.mat"


def test_annotations_that_cannot_be_used_are_named(tmp_path):
    write_one(tmp_path, 98, 98)
    rows = rows_of(98, 1, "relative_im_path") + rows_of(98, 99, "relative_im_path")
    for place, key, value in ((0, "class", number(0)), (1, "class", number(197)), (2, "relative_im_path", number(3)),
                              (3, "relative_im_path", text("a\nb.jpg")), (4, "class", text("cat"))):  # fmt: skip
        rows[place][key] = value
    rows[5]["relative_im_path"] = text("../a.jpg")
    (tmp_path / "cars_annos.mat").write_bytes(mat(structs(rows, "annotations")))
    _, lists, findings = read(tmp_path, outside=True)
    assert [f.where for f in findings if f.code == "published-record"] == [
        f"cars_annos.mat, annotation {i}" for i in range(1, 6)
    ]
    assert [f.severity for f in findings if f.code == "path-leaves"] == ["error"]
    assert len(lists["train"]) == 92 and lists["train"].names[lists["train"].labels[-1]] == "098"


def test_without_scipy_the_extra_is_named(tmp_path, monkeypatch):
    write_one(tmp_path, 98, 98)
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert CARS.count_lists(tmp_path, LISTS) == 3  # a claim opens no file of MATLAB
    with pytest.raises(DependencyError) as error:
        read(tmp_path)
    assert "paddlex_feat[mat]" in error.value.fix


def nested(depth: int) -> bytes:
    inner = number(1)
    for _ in range(depth):
        inner = array(CELL, (1, 1), inner)
    return inner


HUGE = 2**31 - 1
HOSTILE = {
    "an element of a kind that ends SciPy's process": array(UINT8, (1, 1), element(200, b"ab"), "a"),
    "a cell of 2 billion arrays": array(CELL, (HUGE, 1), number(1), "annotations"),
    "dimensions that multiply": array(CELL, (65536, 65536, 65536), number(1), "annotations"),
    "a structure of 2 billion": array(STRUCT, (HUGE, 1), element(5, struct.pack("<i", 4)) + element(1, b"abc\0"), "a"),
    "a structure without fields": array(STRUCT, (HUGE, 1), element(5, struct.pack("<i", 32)) + element(1, b""), "a"),
    "text of 2 billion characters": array(CHAR, (1, HUGE), element(4, b"ab"), "a"),
    "negative dimensions": array(CELL, (-1, -1), b"", "a"),
    "arrays a thousand deep": nested(1000),
    "more than can be counted": array(CELL, (1, 500_001), struct.pack("<II", 14, 0) * 500_001, "a"),
    "a sparse array": array(5, (2, 2), element(5, bytes(8)), "a"),
    "hidden data after an array": element(14, number(1) + number(2)),
    "a field name of 2 billion": array(STRUCT, (1, 1), element(5, struct.pack("<i", HUGE)) + element(1, b"abc\0"), "a"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("compress", [False, True])
def test_hostile_arrays_are_refused_before_scipy_sees_them(name, compress):
    start = time.process_time()
    with pytest.raises(matlab.MatError):
        matlab.expand(mat(HOSTILE[name], compress=compress))
    assert time.process_time() - start < 4


@pytest.mark.parametrize("elements", [1, 200])
def test_what_expands_a_thousandfold_is_refused_within_the_memory(elements, tmp_path):
    (tmp_path / "car_ims").mkdir()
    bomb = zlib.compress(bytes(matlab.MAX_BYTES * 3 // elements), 9)
    (tmp_path / "cars_annos.mat").write_bytes(mat() + (struct.pack("<II", 15, len(bomb)) + bomb) * elements)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, _, findings = read(tmp_path)
    assert "expands to more than" in next(f.message for f in findings if f.code == "published-unreadable")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


@pytest.mark.parametrize("content", [b"", b"x" * 127, b"MATLAB 7.3 MAT-file".ljust(512), bytes(1000), mat()])
def test_other_files_are_named(content, tmp_path):
    (tmp_path / "car_ims").mkdir()
    (tmp_path / "cars_annos.mat").write_bytes(content)
    _, lists, findings = read(tmp_path)
    assert not lists["train"] and {"published-unreadable", "published-empty"} == {f.code for f in findings}


def test_a_large_file_is_not_read(tmp_path):
    (tmp_path / "car_ims").mkdir()
    with (tmp_path / "cars_annos.mat").open("wb") as stream:
        stream.truncate(2**40)
    assert "33,554,432 bytes" in read(tmp_path)[2][0].message


def test_files_of_matlab_itself_are_read():
    """Those that come with SciPy's tests, where they are installed; written by MATLAB 6 to 7.4 on three systems."""
    from scipy.io import matlab as scipy_matlab

    folder = Path(scipy_matlab.__file__).parent / "tests" / "data"
    files = [f for kind in ("cell", "cellnest", "struct", "structarr", "structnest", "string", "double", "complex")
             for f in folder.glob(f"test{kind}_[67]*.mat")]  # fmt: skip
    if not files:
        pytest.skip("SciPy is installed without the data of its tests")
    assert all(matlab.load(file) for file in files) and len(files) > 20


def test_damaged_files_give_findings_and_no_traceback(tmp_path):
    write_one(tmp_path, 98, 98)
    rng, file = random.Random(18), tmp_path / "cars_annos.mat"
    rows = rows_of(98, 1, "relative_im_path")[:9]
    plain = (
        array(CELL, (1, 2), text("a") + number(2), "x") + structs(rows, "annotations") + cells(NAMES[:9], "class_names")
    )
    for _ in range(CASES):
        data = bytearray(plain)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data) // 4) * 4
            data[at : at + 4] = struct.pack(
                "<I", rng.choice((0, 1, 2, 5, 8, 14, 15, 0x10001, 2**31 - 1, 2**32 - 1, rng.getrandbits(32)))
            )
        whole = bytearray(
            mat(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]), compress=rng.random() < 0.3)
        )
        if rng.random() < 0.3:
            whole[rng.randrange(len(whole))] = rng.randrange(256)
        file.write_bytes(whole)
        lists, findings, _ = CARS.read(tmp_path, LISTS, rng.random() < 0.5)
        assert set(lists) == set(LISTS) and findings
