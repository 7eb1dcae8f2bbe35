"""ShiTuRecDataset lists with other separators and names as labels; those of spaces and integers stay as they are."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from paddlex_feat.data.readers import LISTS
from paddlex_feat.data.readers.shitu_rec import SHITU_REC, read_list

CASES = int(os.environ.get("PADDLEX_FEAT_FUZZ_CASES", "120"))


def write(root: Path, **lists: list[str]) -> None:
    for name in LISTS:
        (root / f"{name}.txt").write_text("\n".join(lists.get(name, lists["train"])) + "\n", encoding="utf-8")


def read(root: Path, *names: str) -> tuple[list[str], list[int], list[str]]:
    """Paths and labels of the first list, and the codes of all findings."""
    lists, findings = SHITU_REC.read(root, names or LISTS, False)[:2]
    first = lists[(names or LISTS)[0]]
    return first.paths, first.labels, sorted({f.code for f in findings})


@pytest.mark.parametrize(
    ("lines", "paths", "labels", "codes"),
    [
        (["a b.jpg,3", "c.jpg,4"], ["a b.jpg", "c.jpg"], [3, 4], ["list-separator"]),
        (["a.jpg;3", "b.jpg ;4"], ["a.jpg", "b.jpg"], [3, 4], ["list-separator"]),
        (["a,b.jpg,3", "c,d.jpg,4"], ["a,b.jpg", "c,d.jpg"], [3, 4], ["list-separator"]),
        (["a,3", "b,4"], ["a", "b"], [3, 4], ["list-separator"]),
        (["a b.jpg,cat", "c.jpg,a dog"], ["a b.jpg", "c.jpg"], [1, 0], ["label-names", "list-separator"]),
        (["a;b.jpg\tred cat", "c.jpg\tdog"], ["a;b.jpg", "c.jpg"], [1, 0], ["label-names", "list-separator"]),
        (["a b.JPG cat", "c.jpeg dog"], ["a b.JPG", "c.jpeg"], [0, 1], ["label-names"]),
        (["a.jpg 猫", "b.png собака", "c.bmp قط"], ["a.jpg", "b.png", "c.bmp"], [2, 0, 1], ["label-names"]),
        (["a.jpg\tcat", "b.jpg\tdog"], ["a.jpg", "b.jpg"], [0, 1], ["label-names"]),
        # as they were read before: valid lists, and those whose faults are errors
        (["a.jpg, 3", "b.jpg, 4"], ["a.jpg,", "b.jpg,"], [3, 4], []),
        (["a.jpg\t3", "b c.jpg  4"], ["a.jpg", "b c.jpg"], [3, 4], []),
        (["a;b.jpg,c 3", "d 4"], ["a;b.jpg,c", "d"], [3, 4], []),
        (["a.jpg 3", "b.jpg cat"], ["a.jpg"], [3], ["label-not-integer"]),
        (["a.jpg -1", "b.jpg 2.5", "c.jpg nan", "d.jpg ²"], [], [], ["label-not-integer"]),
        (["3 a.jpg", "4 b.jpg"], [], [], ["label-not-integer"]),
        (["a cat", "b dog"], [], [], ["label-not-integer"]),
        (["a.jpg 1234567890123456789"], [], [], ["label-not-integer"]),
        (["a.jpg", "b.jpg"], [], [], ["line-format"]),
        (['"a b.jpg",cat', '"c d.jpg",dog'], [], [], ["label-not-integer"]),
    ],
)  # fmt: skip
def test_lists_are_read_as_a_whole(lines, paths, labels, codes, tmp_path):
    write(tmp_path, train=lines)
    assert read(tmp_path) == (paths, labels, codes)
    assert read_list(tmp_path, "train")[0].paths == paths


@pytest.mark.parametrize(("wrong", "names"), [(9, True), (10, False), (11, False), (50, False), (95, False)])
def test_names_are_labels_where_hardly_any_label_is_an_integer(wrong, names, tmp_path):
    """Of 100 lines in each list as many have integers."""
    lines = [f"i{k}.jpg {k if k < wrong else 'cat'}" for k in range(100)]
    write(tmp_path, train=lines)
    paths, _, codes = read(tmp_path)
    assert (len(paths), codes) == ((100, ["label-names"]) if names else (wrong, ["label-not-integer"]))


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("spaces", [5, 15])
def test_a_separator_is_one_of_the_whole_list(separator, spaces, tmp_path):
    lines = [f"i{k}.jpg {k}" if k < spaces else f"i{k}.jpg{separator}{k}" for k in range(100)]
    write(tmp_path, train=lines)
    _, labels, codes = read(tmp_path)
    if spaces < 10:  # the few others are errors
        assert labels == list(range(spaces, 100)) and codes == ["line-format", "list-separator"]
    else:
        assert labels == list(range(spaces)) and codes == ["line-format"]


def test_names_are_numbered_over_all_lists_whichever_are_asked_for(tmp_path):
    write(tmp_path, train=["a.jpg dog", "b.jpg 1984"] + ["c.jpg emu"] * 20, gallery=["d.jpg cat"], query=["e.jpg,bee"])
    whole = SHITU_REC.read(tmp_path, LISTS, False)[0]
    numbers = {"1984": 0, "bee": 1, "cat": 2, "dog": 3, "emu": 4}
    assert [whole[name].labels[0] for name in LISTS] == [3, 2, 1] and whole["train"].labels[1:3] == [0, 4]
    assert all(whole[name].names == {number: name for name, number in numbers.items()} for name in LISTS)
    for names in (("gallery",), ("query", "train")):
        some = SHITU_REC.read(tmp_path, names, False)[0]
        assert {name: some[name].labels for name in names} == {name: whole[name].labels for name in names}


def test_names_in_one_of_three_lists_of_integers_are_errors(tmp_path):
    write(tmp_path, train=[f"i{k}.jpg {k % 5}" for k in range(100)], query=["a.jpg cat", "b.jpg dog"])
    assert read(tmp_path)[2] == ["label-not-integer"]
    assert read(tmp_path, "query")[0] == []  # also where it is read alone


def test_integers_have_no_names(tmp_path):
    write(tmp_path, train=["a.jpg 7", "b.jpg 9"])
    assert SHITU_REC.read(tmp_path, LISTS, False)[0]["train"].names == {}


def test_the_line_of_a_fault_is_named_with_its_separator(tmp_path):
    write(tmp_path, train=[*(f"i{k}.jpg,cat" for k in range(30)), "", "x", "../y.jpg,cat"])
    findings = SHITU_REC.read(tmp_path, ("train",), True)[1]
    assert [(f.code, f.where) for f in findings if f.severity == "error"] == [
        ("line-format", "train.txt:32"),
        ("path-leaves", "train.txt:33"),
    ]
    assert "a comma and a label" in next(f.message for f in findings if f.code == "line-format")


FORMER = re.compile(r"(.*\S)[ \t]+([0-9]{1,18})", re.ASCII)


def test_lists_valid_before_are_read_as_before(tmp_path):
    rng = random.Random(18)
    letters = ["a", "猫", " ", ",", ";", "\t", ".jpg", "é", "1", "(", "]", "'", "-"]
    for _ in range(CASES):
        paths = ["x" + "".join(rng.choices(letters, k=rng.randint(0, 8))).strip() for _ in range(rng.randint(1, 12))]
        lines = [f"{path}{rng.choice((' ', chr(9), '  '))}{rng.randrange(10 ** rng.randint(1, 18))}" for path in paths]
        write(tmp_path, train=lines)
        found, labels, codes = read(tmp_path)
        fields = [match.groups() for line in lines if (match := FORMER.fullmatch(line))]
        assert (list(zip(found, map(str, labels), strict=True)), codes) == (fields, [])


def test_any_bytes_give_findings_and_no_traceback(tmp_path):
    rng = random.Random(19)
    pieces = [
        b"a.jpg",
        b"b c.png",
        b" ",
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r\n",
        b"cat",
        b"7",
        b"\xe7\x8c\xab",
        b"\xff",
        b"\0",
        b"-1",
    ]
    for _ in range(CASES):
        for name in LISTS:
            separator = rng.choice((b" ", b",", b";", b"\t"))
            lines = [
                rng.choice((b"a.jpg", b"d e.png")) + separator + rng.choice((b"cat", b"a dog", b"7")) for _ in range(9)
            ]
            lines += [b"".join(rng.choices(pieces, k=rng.randint(0, 6))) for _ in range(rng.randint(0, 3))]
            (tmp_path / f"{name}.txt").write_bytes(b"\n".join(lines))
        lists, findings = SHITU_REC.read(tmp_path, LISTS, rng.random() < 0.5)[:2]
        assert all(f.where and f.message and f.fix for f in findings)
        for records in lists.values():
            assert len(records.paths) == len(records.labels) == len(records.lines)
            assert not records.names or set(records.labels) <= set(records.names)


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_names_that_end_in_a_number_are_names_where_images_exist_so(tmp_path, separator):
    lines = [f"a {i}.jpg{separator}person {i % 2}" for i in range(30)]
    write(tmp_path, train=lines)
    assert read(tmp_path)[2] == []  # paths that end in "person", as ever
    for i in range(30):
        (tmp_path / f"a {i}.jpg").touch()
    paths, labels, codes = read(tmp_path)
    assert list(paths) == [f"a {i}.jpg" for i in range(30)] and list(labels) == [i % 2 for i in range(30)]
    assert codes == ["label-names", "list-separator"]
