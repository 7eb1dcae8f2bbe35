"""Class folders and tables: how they are recognised, divided and read."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.readers import LISTS, find_root, reader_of, require_lists
from paddlex_feat.data.readers.columns import CONVERTED_HEAD
from paddlex_feat.errors import DatasetError

NAMES = ("cat", "dog", "a b", "猫", "x[1]", "#1", "00", "naïve", "UPPER", "e.g")


def put(root: Path, *paths: str) -> Path:
    """Empty files: readers look at names, not into images."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def table(file: Path, *rows: tuple[object, ...], delimiter: str = ",") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)


def classes(records) -> set[str]:
    return {records.names.get(label, str(label)) for label in records.labels}


def test_a_folder_is_a_class_and_the_set_is_divided_by_classes(tmp_path, caplog):
    put(tmp_path, *(f"{name}/{i}.jpg" for name in NAMES for i in range(4)), "readme.txt", ".DS_Store", "cat/Thumbs.db")
    with caplog.at_level("INFO"):
        lists = require_lists(str(tmp_path))
    assert reader_of(tmp_path).name == "ClassFolders"
    assert sum(map(len, lists.values())) == 40 and set().union(*map(classes, lists.values())) == set(NAMES)
    trained, asked, searched = (classes(lists[name]) for name in ("train", "query", "gallery"))
    assert not trained & searched and asked <= searched
    assert "a folder is a class; divided by class with seed 0 into 50 % train" in caplog.text
    assert require_lists(str(tmp_path))["train"].paths == lists["train"].paths  # the same draw


def test_folders_that_lead_to_all_classes_name_none_and_nested_ones_name_all(tmp_path):
    put(tmp_path, "photos/all/cat/1.jpg", "photos/all/dog/1.jpg", "photos/all/dog/puppy/1.jpg", "photos/note.md")
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]
    assert classes(found) == {"cat", "dog", "dog/puppy"} and found.paths[0] == "photos/all/cat/1.jpg"


@pytest.mark.parametrize(
    ("folders", "sizes", "alone"),
    [
        (("train", "gallery", "query"), (4, 4, 4), False),
        (("Train", "Validation", "TEST"), (4, 4, 4), True),
        (("training", "val"), (4, 4, 4), True),
    ],
)
def test_folders_of_lists(tmp_path, folders, sizes, alone):
    put(tmp_path, *(f"{part}/{name}/{i}.jpg" for part in folders for name in ("cat", "dog") for i in range(2)))
    lists = require_lists(str(tmp_path))
    assert tuple(map(len, lists.values())) == sizes and lists["query"].leave_one_out is alone
    assert {path.split("/")[0] for path in lists["train"].paths} == {folders[0]}
    assert {path.split("/")[0] for path in lists["gallery"].paths} == {
        folders[1] if len(folders) < 3 or not alone else "TEST"
    }


def test_classes_may_hold_the_folders_of_lists(tmp_path):
    put(tmp_path, *(f"{name}/{part}/{i}.jpg" for name in ("cat", "dog") for part in ("train", "test") for i in (1, 2)))
    lists = require_lists(str(tmp_path))
    assert classes(lists["train"]) == {"cat", "dog"} and lists["query"].leave_one_out
    assert all("/train/" in path for path in lists["train"].paths)


def test_a_class_that_is_called_train_is_a_class(tmp_path):
    put(tmp_path, *(f"{name}/{i}.jpg" for name in ("train", "bus", "car", "test") for i in (1, 2)))
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]
    assert classes(found) == {"train", "bus", "car", "test"}


def test_lists_without_classes_are_no_classes(tmp_path):
    put(tmp_path, *(f"images/{part}/{i}.jpg" for part in ("train", "val") for i in range(4)))
    with pytest.raises(DatasetError) as caught:
        require_lists(str(tmp_path))
    assert caught.value.code == "list-errors" and "no folders of classes" in caught.value.what


def test_what_is_no_part_of_the_set_is_said(tmp_path):
    put(
        tmp_path,
        "train/cat/1.jpg",
        "train/dog/1.jpg",
        "test/cat/2.jpg",
        "test/dog/2.jpg",
        "docs/a/plot.png",
        "test/x.jpg",
    )
    reading = reader_of(tmp_path).read(tmp_path, ("train", "gallery", "query"), False)
    assert {(f.code, f.where) for f in reading.findings} == {
        ("folder-of-no-list", "docs/a"),
        ("image-without-class", "test"),
    }
    assert len(reading.lists["gallery"]) == 2


def test_numbers_stay_labels(tmp_path):
    put(tmp_path, "10/1.jpg", "2/1.jpg", "7/1.jpg")
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]
    assert sorted(found.labels) == [2, 7, 10] and not found.names


def test_too_few_classes_are_an_error_that_says_so(tmp_path):
    put(tmp_path, "cat/1.jpg", "dog/1.jpg")
    with pytest.raises(DatasetError) as caught:
        require_lists(str(tmp_path))
    assert caught.value.code == "split-impossible"


def test_a_table_names_paths_classes_and_parts(tmp_path):
    put(tmp_path, *(f"img/{i}.jpg" for i in range(6)))
    rows = [(f"img/{i}.jpg", "ab"[i % 2], "train" if i < 2 else "validation", i > 3, 1 < i < 4) for i in range(6)]
    table(tmp_path / "own.csv", ("Image Path", "class_name", "split", "is_query", "is_gallery"), *rows)
    lists = require_lists(str(tmp_path))
    assert [lists[n].paths for n in lists] == [[f"img/{i}.jpg" for i in pair] for pair in ((0, 1), (2, 3), (4, 5))]
    assert lists["train"].where(0) == "own.csv:2" and classes(lists["query"]) == {"a", "b"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_parts_and_separators(tmp_path, delimiter):
    for part in ("train", "test"):
        put(tmp_path, f"{part}/1.jpg", f"{part}/2.jpg")
        rows = [(f"{part}/1.jpg", "x"), (f"{part}/2.jpg", "y")]
        table(tmp_path / f"{part}.csv", ("file", "label"), *rows, delimiter=delimiter)
    lists = require_lists(str(tmp_path))
    assert lists["query"].leave_one_out and lists["train"].paths == ["train/1.jpg", "train/2.jpg"]


def test_boxes_of_a_table_are_parts_of_their_image(tmp_path):
    put(tmp_path, "a.jpg")
    table(
        tmp_path / "t.csv",
        ("path", "label", "x_1", "y_1", "x_2", "y_2"),
        ("a.jpg", "c", 1, 2, 30.5, 40),
        ("a.jpg", "c", *"    "),
    )
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]
    assert found.paths == ["a.jpg[1,2,30.5,40]", "a.jpg"] and isinstance(found.paths[0], ImageSource)
    assert tuple(found.paths[0].box) == (1, 2, 30.5, 40) and found.paths[0].file == str(tmp_path / "a.jpg")


def test_a_table_may_give_boxes_by_their_size(tmp_path):
    put(tmp_path, "a.jpg")
    table(tmp_path / "t.csv", ("path", "label", "x", "y", "width", "height"), ("a.jpg", "c", 1, 2, 30, 40))
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]
    assert tuple(found.paths[0].box) == (1, 2, 31, 42)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (("", "c"), "table-path"),
        (("ftp://host/a.jpg", "c"), "table-url"),
        (("a.jpg", ""), "table-class"),
        (("a.jpg",), "table-path"),
    ],
)
def test_a_wrong_line_of_a_table_is_named(tmp_path, row, code):
    put(tmp_path, "a.jpg")
    table(tmp_path / "t.csv", ("path", "label"), ("a.jpg", "c"), row)
    reading = reader_of(tmp_path).read(tmp_path, ("train",), False)
    assert [(f.code, f.where) for f in reading.findings] == [(code, "t.csv:3")] and len(reading.lists["all"]) == 1


def test_two_formats_in_one_folder_are_both_named(tmp_path):
    put(tmp_path, "a.jpg")
    table(tmp_path / "t.csv", ("path", "label"), ("a.jpg", "c"))
    (tmp_path / "metadata.csv").write_text("file_name,label\na.jpg,c\n")
    with pytest.raises(DatasetError) as caught:
        require_lists(str(tmp_path))
    assert caught.value.code == "several-formats" and "Table or as ImageFolders" in caught.value.what
    assert reader_of(tmp_path, form="Table").name == "Table"


def test_a_set_within_a_folder_of_other_images_is_not_guessed(tmp_path):
    put(tmp_path, *(f"{name}/{i}.jpg" for name in "ab" for i in (1, 2)), "old/p.jpg")
    table(tmp_path / "old/t.csv", ("path", "label"), ("p.jpg", "c"))
    with pytest.raises(DatasetError) as caught:
        find_root(str(tmp_path))
    assert caught.value.code == "several-formats" and "dataset_format=ClassFolders" in caught.value.fix
    assert find_root(str(tmp_path), form="ClassFolders") == tmp_path
    assert find_root(str(tmp_path), form="Table") == tmp_path / "old"  # named, so no guess


def test_paths_outside_are_refused_where_asked_for(tmp_path):
    root = put(tmp_path / "set", "a.jpg")
    put(tmp_path, "b.jpg")
    table(root / "t.csv", ("path", "label"), ("a.jpg", "c"), ("../b.jpg", "c"))
    allowed, refused = (reader_of(root).read(root, ("train",), refuse) for refuse in (False, True))
    assert len(allowed.lists["all"]) == 2 and len(refused.lists["all"]) == 1
    assert [f.severity for f in refused.findings] == ["error"]


def tree(rng: random.Random, root: Path) -> set[str]:
    """A random tree of class folders with other files among them; the names of its classes."""
    top = "/".join(rng.choice(("data", "images", "my photos", "v1.0")) for _ in range(rng.randint(0, 2)))
    deep = rng.random() < 0.3
    found = set()
    for name in rng.sample(NAMES, rng.randint(4, 8)):
        below = f"{name}/{rng.choice('xyz')}" if deep else name
        found.add(below)
        put(
            root,
            *(
                f"{top}/{below}/{i}{rng.choice(('.jpg', '.PNG', '.webp'))}".lstrip("/")
                for i in range(rng.randint(2, 5))
            ),
        )
    for extra in rng.sample(
        ("README.md", "labels.json", ".hidden/a.jpg", "notes.csv", "backup.zip", "__MACOSX/a.jpg"), 3
    ):
        put(root, extra)
    return found


def test_random_trees_are_read_as_they_were_made(tmp_path):
    for seed in range(100):
        root = tmp_path / str(seed)
        expected = tree(random.Random(seed), root)
        lists = require_lists(str(root))
        assert set().union(*map(classes, lists.values())) == expected, seed


@pytest.mark.parametrize(
    "folders",
    [
        ("training_set", "test_set"),
        ("train_images", "test_images"),
        ("images_train", "images_test"),
        ("Train1", "TEST-2"),
        ("trainval", "test"),
    ],
)
def test_names_of_parts_may_have_other_words(tmp_path, folders):
    put(tmp_path, *(f"{folder}/{name}/{i}.jpg" for folder in folders for name in ("cat", "dog") for i in range(3)))
    lists = require_lists(str(tmp_path))
    assert classes(lists["train"]) == {"cat", "dog"} and len(lists["train"]) == len(lists["query"]) == 6


def test_classes_that_are_called_as_parts_are_classes(tmp_path):
    names = ("index", "reference", "dev", "cat", "test tube", "train station")
    put(tmp_path, *(f"{name}/x/{i}.jpg" for name in names for i in range(4)))
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]
    assert classes(found) == {f"{name}/x" for name in names}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_tables_in_utf_16_are_read(tmp_path, encoding):
    rows = ["path\tlabel", *(f"{i}.jpg\t{'猫狗'[i % 2]}" for i in range(4000))]
    put(tmp_path, "0.jpg")
    start = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "t.tsv").write_bytes((start + "\r\n".join(rows)).encode(encoding))
    assert reader_of(tmp_path).name == "Table"
    assert len(reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]) == 4000


def test_images_without_a_label_are_left_out(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    table(tmp_path / "t.csv", ("path", "label"), ("a.jpg", "3"), ("b.jpg", "-1"))
    reading = reader_of(tmp_path).read(tmp_path, ("train",), False)
    assert [f.code for f in reading.findings] == ["table-unlabelled"] and len(reading.lists["all"]) == 1


def test_words_of_folders_divide_where_they_hold_the_same_classes(tmp_path):
    """As archives of Kaggle are unpacked: a folder in a folder of the same name, and one that is asked for later."""
    kinds = ("sea", "forest", "glacier")
    put(
        tmp_path,
        *(f"seg_{part}/seg_{part}/{kind}/{i}.jpg" for part in ("train", "test") for kind in kinds for i in "ab"),
    )
    put(tmp_path, "seg_pred/seg_pred/1.jpg", "seg_pred/seg_pred/2.jpg")
    lists = require_lists(str(tmp_path))
    assert classes(lists["train"]) == classes(lists["query"]) == set(kinds) and len(lists["train"]) == 6


def test_folders_of_the_same_classes_that_say_no_part_are_named(tmp_path):
    put(tmp_path, *(f"{fold}/{kind}/{i}.jpg" for fold in ("fold1", "fold2") for kind in ("a", "b") for i in range(3)))
    reading = reader_of(tmp_path).read(tmp_path, ("train",), False)
    assert [f.code for f in reading.findings] == ["folders-alike"] and len(classes(reading.lists["all"])) == 4


def test_folders_called_images_are_no_classes(tmp_path):
    """As Tiny ImageNet is: classes below train alone."""
    put(tmp_path, *(f"train/n{k}/images/{i}.jpg" for k in range(4) for i in range(3)), "val/images/1.jpg", "val/x.txt")
    reading = reader_of(tmp_path).read(tmp_path, ("train",), False)
    assert "image-without-class" in [f.code for f in reading.findings]
    assert classes(next(iter(reading.lists.values()))) == {"n0", "n1", "n2", "n3"}


def test_files_that_may_name_the_classes_are_spoken_of(tmp_path):
    put(tmp_path, *(f"part_{k}/{i}.jpg" for k in range(2) for i in range(3)), *(f"part_1/{i}.xml" for i in range(3)))
    table(tmp_path / "meta.csv", ("image_id", "dx"), ("0", "nv"), ("1", "mel"))
    put(tmp_path, "part_1/a.heic", "part_1/b.CR2")
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).findings
    told = {f.code: f.message for f in found}
    assert [f.code for f in found].count("annotations-unread") == 2 and ".xml files: 3" in told["annotations-unread"]
    assert told["picture-unread"] == "Not read: .heic files: 1, .cr2 files: 1."


def test_classes_of_integers_that_were_written_as_floats(tmp_path):
    for part, labels in (("train", ("1", "2")), ("test", ("1.0", "2.0"))):
        put(tmp_path, *(f"{part}/{i}.jpg" for i in range(4)))
        rows = [(f"{part}/{i}.jpg", labels[i % 2]) for i in range(4)]
        table(tmp_path / f"{part}.csv", ("path", "label"), *rows, *[("path", "label")][: part == "test"])
    reading = reader_of(tmp_path).read(tmp_path, ("train", "gallery", "query"), False)
    assert reading.lists["train"].labels == reading.lists["query"].labels == [1, 2, 1, 2]
    assert [f.code for f in reading.findings] == ["table-header-again"]


@pytest.mark.parametrize("folder", ["images", "own", "train"])
def test_a_table_may_leave_out_the_folder_of_its_images(tmp_path, folder):
    put(tmp_path, *(f"{folder}/sub/{i}.jpg" for i in range(6)))
    table(tmp_path / "own.csv", ("file", "label"), *((f"sub\\{i}.jpg", "ab"[i % 2]) for i in range(6)))
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).lists["all"]
    assert found.paths == [f"{folder}/sub/{i}.jpg" for i in range(6)]


def test_tables_in_folders_of_parts(tmp_path):
    """As Roboflow exports them."""
    for part in ("train", "valid"):
        put(tmp_path, *(f"{part}/{i}.jpg" for i in range(4)))
        rows = [(f"{i}.jpg", 10, 10, "ab"[i % 2], 1, 2, 5, 6) for i in range(4)]
        head = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
        table(tmp_path / part / "_annotations.csv", head, *rows)
    lists = require_lists(str(tmp_path))
    assert lists["train"].paths[0] == "train/0.jpg[1,2,5,6]" and lists["query"].paths[0] == "valid/0.jpg[1,2,5,6]"


def test_a_table_is_divided_by_the_folders_of_its_images(tmp_path):
    put(tmp_path, *(f"{part}/{i}.jpg" for part in ("train", "test") for i in range(4)))
    rows = [(f"{part}/{i}.jpg", "ab"[i % 2]) for part in ("train", "test") for i in range(4)]
    table(tmp_path / "metadata_of_all.csv", ("file", "label"), *rows)
    lists = require_lists(str(tmp_path))
    assert all(path.startswith("train/") for path in lists["train"].paths) and len(lists["query"]) == 4


def test_a_table_of_no_part_beside_others_is_named(tmp_path):
    put(tmp_path, *(f"{i}.jpg" for i in range(4)))
    for name in ("train", "test", "extra"):
        table(tmp_path / f"{name}.csv", ("file", "label"), *((f"{i}.jpg", "ab"[i % 2]) for i in range(4)))
    found = reader_of(tmp_path).read(tmp_path, ("train",), False).findings
    assert [(f.code, f.where) for f in found] == [("table-of-no-part", "extra.csv")]


@pytest.mark.parametrize(("sized", "corners"), [(True, (20, 3, 25, 13)), (False, (1, 2, 30, 40))])
def test_boxes_in_one_column_are_corners_or_sizes_of_all(tmp_path, sized, corners):
    put(tmp_path, "a.jpg")
    boxes = ["[20, 3, 5, 10]", "[2, 3, 20, 10]"] * 4 if sized else ["[1, 2, 30, 40]"] * 9 + ["[5, 5, 1, 1]"]
    table(tmp_path / "t.csv", ("path", "label", "bbox"), *(("a.jpg", "c", box) for box in boxes))
    reading = reader_of(tmp_path).read(tmp_path, ("train",), False)
    assert tuple(reading.lists["all"].paths[0].box) == corners
    assert [f.code for f in reading.findings] == (["table-box-sizes"] if sized else ["table-box"])


def codes_of(root: Path) -> list[str]:
    return [finding.code for finding in reader_of(root).read(root, LISTS, False).findings]


@pytest.mark.parametrize("row", [0, 50, 98])
@pytest.mark.parametrize("column", ["path", "label", "note"])
def test_a_quotation_mark_that_is_never_closed_is_an_error(tmp_path, row, column):
    put(tmp_path, *(f"images/{i}.jpg" for i in range(100)))
    rows = [[f"images/{i}.jpg", f"c{i // 10}", "x"] for i in range(100)]
    rows[row][("path", "label", "note").index(column)] = '"' + rows[row][("path", "label", "note").index(column)]
    text = "".join(",".join(line) + "\n" for line in [["path", "label", "note"], *rows])
    (tmp_path / "t.csv").write_text(text)
    assert "table-unreadable" in codes_of(tmp_path)


def test_quotation_marks_within_values_and_lines_within_quotation_marks_are_read(tmp_path):
    put(tmp_path, *(f"images/{i}.jpg" for i in range(40)))
    notes = ['5" wide', '"two\nlines"', "plain", '"a ""b"""']
    lines = [f"images/{i}.jpg,c{i // 10},{notes[i % 4]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("path,label,note\n" + "\n".join(lines) + "\n")
    assert sum(len(records) for records in require_lists(str(tmp_path)).values()) == 40


def test_a_class_with_control_characters_is_an_error(tmp_path):
    put(tmp_path, *(f"{i}.jpg" for i in range(40)))
    table(
        tmp_path / "t.csv", ("path", "label"), *((f"{i}.jpg", "a\0b" if i == 3 else f"c{i // 10}") for i in range(40))
    )
    assert "table-class" in codes_of(tmp_path)


def test_a_table_in_another_code_page_is_told_of(tmp_path):
    put(tmp_path, *(f"{i}.jpg" for i in range(40)))
    (tmp_path / "t.csv").write_bytes(
        "".join(["path,label\n", *(f"{i}.jpg,château {i // 10}\n" for i in range(40))]).encode("latin-1")
    )
    assert "table-gbk" in codes_of(tmp_path)


def test_a_key_that_json_lines_have_late_is_a_column(tmp_path):
    put(tmp_path, *(f"{i}.jpg" for i in range(40)))
    rows = [{"file_name": f"{i}.jpg", "label": f"c{i % 4}"} | ({"split": "test"} if i >= 26 else {}) for i in range(40)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = reader_of(tmp_path).read(tmp_path, LISTS, False)
    assert len(reading.lists["query"]) == 14 and "split" in reading.understood


def test_classes_of_a_converted_table_are_meant_as_they_stand(tmp_path):
    put(tmp_path, *(f"{i}.jpg" for i in range(8)))
    rows = [(f"{i}.jpg", ("1", "1.0")[i % 2], ("train", "validation")[i // 4], i // 4, i // 4) for i in range(8)]
    table(tmp_path / "data.csv", CONVERTED_HEAD, *((*row, "", "", "", "") for row in rows))
    assert classes(require_lists(str(tmp_path))["train"]) == {"1", "1.0"}


@pytest.mark.parametrize("output", ["output", "."])
def test_what_this_program_has_written_is_no_class(tmp_path, output):
    put(tmp_path, *(f"{name}/{i}.jpg" for name in "abcd" for i in range(6)))
    before = {name: records.paths for name, records in require_lists(str(tmp_path)).items()}
    put(
        tmp_path / output,
        "check_dataset_result.json",
        "check_dataset/demo_img/train_1.jpg",
        "check_dataset/histogram.png",
    )
    assert {name: records.paths for name, records in require_lists(str(tmp_path)).items()} == before


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("named", [10, 48])
def test_images_that_a_table_does_not_name_are_told_of(tmp_path, named, prefix):
    images = [f"{name}/{i}.jpg" for name in "abcdefgh" for i in range(6)]
    put(tmp_path, *images)
    table(tmp_path / "bad_images.csv", ("filename", "class"), *((prefix + path, "blurred") for path in images[:named]))
    assert ("table-images-beside" in codes_of(tmp_path)) is (named < 48)
