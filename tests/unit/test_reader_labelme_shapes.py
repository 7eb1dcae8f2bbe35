"""LabelMe's shapes, by the files that LabelMe 5 writes."""

import json

import pytest
from support.boxes import NAMES, codes, fuzz, items, picture, read

from paddlex_feat.data.readers.labelme_shapes import LABELME_SHAPES


def shape(label, *points, kind="rectangle"):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}


def write(path, image, *shapes, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.1.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None,
               "imageHeight": 80, "imageWidth": 100, **more}  # fmt: skip
    path.write_text(json.dumps(content))


@pytest.fixture
def labelme(tmp_path):
    root = tmp_path / "set"
    picture(root / "a b.jpg")
    picture(root / "ü[1].jpg")
    write(
        root / "a b.json",
        "a b.jpg",
        shape("cat", [50, 40], [10, 5]),
        shape("犬", [0, 0], [9, 0], [5, 9], kind="polygon"),
    )
    write(
        root / "ü[1].json", "..\\old\\ü[1].jpg", shape("cat", [1, 2], [30, 40]), shape("_background_", [1, 1], [9, 9])
    )
    (root / "labels.txt").write_text("cat\n")
    return root


def test_rectangles_and_polygons(labelme):
    reading = read(labelme.parent, "LabelMeShapes", refuse_outside=True)
    assert items(reading.lists["all"]) == [
        ("a b.jpg", (0, 0, 9, 9), "犬"),
        ("a b.jpg", (10, 5, 50, 40), "cat"),
        ("ü", (1, 2, 30, 40), "cat"),
    ]
    assert codes(reading) == [("annotations-left-out", str(labelme))]


def test_folders_of_parts(tmp_path):
    for part in ("train", "val"):
        picture(tmp_path / part / "x.jpg")
        write(tmp_path / part / "x.json", "x.jpg", shape(part, [1, 1], [9, 9]))
    reading = read(tmp_path, "LabelMeShapes")
    assert items(reading.lists["train"]) == [("train/x.jpg", (1, 1, 9, 9), "train")]
    assert items(reading.lists["query"]) == [("val/x.jpg", (1, 1, 9, 9), "val")]


def test_folders_of_other_names(labelme):
    other = labelme.parent / "other"
    picture(other / "x.jpg")
    write(other / "x.json", "x.jpg", shape("cat", [1, 1], [9, 9]))
    assert len(read(labelme.parent, "LabelMeShapes").lists["all"]) == 4


def test_what_is_wrong_is_a_finding_and_the_rest_is_read(labelme):
    write(labelme / "a b.json", "a b.jpg", shape("cat", [-9, 5], [20, 9]), shape("cat", [200, 5], [300, 9]),
          shape("", [1, 1], [9, 9]), shape("x", [1, "a"], [9, 9]), shape("c", [5, 5], [9, 9], kind="circle"), 7,
          shape("cat", [1, 1]))  # fmt: skip
    write(labelme / "gone.json", "gone.jpg", shape("cat", [1, 1], [9, 9]))
    (labelme / "bad.json").write_text('{"shapes": [')
    (labelme / "other.json").write_text("[1]")
    reading = read(labelme, "LabelMeShapes")
    at = "a b.json:shapes[{}]".format
    assert codes(reading)[:-1] == [
        ("box-clipped", at(0)), ("box-without-area", at(1)), *[("annotation-unusable", at(i)) for i in (2, 3, 5, 6)],
        ("annotations-unreadable", "bad.json"), ("annotated-image-missing", "gone.json"),
    ]  # fmt: skip
    assert "JSON files of other programs: 1" in reading.findings[-1].message
    assert "shapes of type circle: 1" in reading.findings[-1].message
    assert [name for _, _, name in items(reading.lists["all"])] == ["cat", "cat"]


@pytest.mark.parametrize(
    "shapes, claimed",
    [
        ((), 0),
        ((shape("cat", [0, 0], [100, 80]),), 0),  # a class of the whole picture: for the converter
        ((shape("cat", [0, 0], [100, 80]), shape("cat", [0, 0], [100, 80])), 0),
        ((shape("cat", [0, 0], [100, 80]), shape("dog", [0, 0], [100, 80])), 3),
        ((shape("cat", [0, 0], [50, 80]),), 3),
        ((shape("cat", [0, 0], [50, 80], kind="circle"),), 0),
        ((shape("__ignore__", [0, 0], [50, 80]),), 0),
    ],
)
def test_claimed_only_for_parts_of_pictures(tmp_path, shapes, claimed):
    picture(tmp_path / "x.jpg")
    write(tmp_path / "x.json", "x.jpg", *shapes)
    assert LABELME_SHAPES.count_lists(tmp_path, NAMES) == claimed


def test_fuzzed(labelme):
    assert fuzz(labelme, sorted(labelme.glob("*.json")), "LabelMeShapes") > 20
