"""Label Studio's exports, by https://labelstud.io/guide/export (JSON and JSON-MIN)."""

import json

import pytest
from support.boxes import NAMES, codes, fuzz, items, picture, read

from paddlex_feat.data.readers.label_studio import LABEL_STUDIO


def rectangle(label, x, y, width, height, **more):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    outer = {"original_width": 100, "original_height": 80, "from_name": "label", "type": "rectanglelabels", "id": "x"}
    return {**outer, "value": {**value, **more}}


def task(image, *results, **more):
    return {
        "id": 1,
        "annotations": [{"id": 1, "result": list(results), **more}],
        "predictions": [],
        "data": {"image": image},
    }


@pytest.fixture
def studio(tmp_path):
    root = tmp_path / "set"
    for name in ("images/a b.jpg", "images/0a1b2c3d-ü[1].jpg", "photos/c.jpg", "cloud/d.jpg"):
        picture(root / name)
    tasks = [
        task("/data/upload/3/0a1b2c3d-a%20b.jpg", rectangle("cat", 10, 25, 50, 50), rectangle("犬", 0, 0, 100, 100)),
        task("/data/upload/3/0a1b2c3d-%C3%BC%5B1%5D.jpg", rectangle("cat", 0, 0, 10, 10)),
        task("/data/local-files/?d=home/photos/c.jpg", rectangle("cat", 50, 50, 20, 10, rotation=90)),
        task("s3://bucket/x/d.jpg", rectangle("cat", 1, 1, 9, 9)),
    ]
    (root / "project-1-at-2024-01-01.json").write_text(json.dumps(tasks))
    return root


def test_percent_become_pixels_and_addresses_files(studio):
    reading = read(studio.parent, "LabelStudio", refuse_outside=True)
    boxes = items(reading.lists["all"])
    assert [file for file, _, _ in boxes] == [
        "cloud/d.jpg",
        "images/0a1b2c3d-ü",
        "images/a b.jpg",
        "images/a b.jpg",
        "photos/c.jpg",
    ]
    assert boxes[2:4] == [("images/a b.jpg", (0, 0, 100, 80), "犬"), ("images/a b.jpg", (10, 20, 60, 60), "cat")]
    assert boxes[4][1] == pytest.approx((42, 40, 50, 60))  # turned clockwise about its upper left corner, 50,40
    assert codes(reading) == []


def test_json_min(tmp_path):
    picture(tmp_path / "a.jpg")
    result = rectangle("cat", 10, 25, 50, 50)
    flat = {**result["value"], "original_width": 100, "original_height": 80}
    (tmp_path / "x.json").write_text(
        json.dumps([{"image": "/data/upload/1/a.jpg", "id": 1, "label": [flat], "annotator": 1}])
    )
    assert items(read(tmp_path, "LabelStudio").lists["all"]) == [("a.jpg", (10, 20, 60, 60), "cat")]


def test_one_of_several_annotations_counts(tmp_path):
    picture(tmp_path / "a.jpg")
    first, second, truth = (rectangle(name, 10, 25, 50, 50) for name in ("first", "second", "truth"))
    several = task("a.jpg", first, was_cancelled=True)
    several["annotations"] += [{"result": [second]}, {"result": [truth], "ground_truth": True}]
    (tmp_path / "x.json").write_text(json.dumps([several]))
    reading = read(tmp_path, "LabelStudio")
    assert items(reading.lists["all"]) == [("a.jpg", (10, 20, 60, 60), "truth")]
    assert "annotations by others, or cancelled: 2" in reading.findings[0].message
    several["annotations"].pop()
    (tmp_path / "x.json").write_text(json.dumps([several]))
    assert items(read(tmp_path, "LabelStudio").lists["all"]) == [("a.jpg", (10, 20, 60, 60), "second")]


def test_what_is_wrong_is_a_finding_and_the_rest_is_read(studio):
    bad = [rectangle("cat", 90, 5, 20, 10), rectangle("cat", 1, 1, 0, 5), rectangle("cat", None, 1, 9, 9),
           rectangle("cat", 1, 1, 9, 9, rectanglelabels=["a", "b"]),
           rectangle("cat", 1, 1, 9, 9, rotation=float("inf")),
           {"type": "choices", "value": {"choices": ["x"]}}]  # fmt: skip
    nameless = rectangle("ok", 50, 50, 25, 25)
    nameless.pop("original_width")  # the size comes from the header
    tasks = [
        task("photos/c.jpg", *bad, nameless),
        task("gone.jpg", bad[0]),
        task("d.jpg"),
        {"data": 5, "annotations": 3},
        7,
    ]
    (studio / "project-1-at-2024-01-01.json").write_text(json.dumps(tasks))
    reading = read(studio, "LabelStudio")
    at = "project-1-at-2024-01-01.json[{}]".format
    result = (at(0) + ".result[{}]").format
    assert codes(reading) == [
        ("box-clipped", result(0)), ("box-without-area", result(1)),
        *[("annotation-unusable", result(i)) for i in (2, 3, 4)],
        ("annotated-image-missing", at(1)), ("annotation-unusable", at(3)), ("annotation-unusable", at(4)),
        ("annotations-left-out", str(studio)),
    ]  # fmt: skip
    assert items(reading.lists["all"])[-1] == ("photos/c.jpg", (90, 4, 100, 12), "cat")
    assert items(reading.lists["all"])[0] == ("photos/c.jpg", (50, 40, 75, 60), "ok")


@pytest.mark.parametrize(
    "content",
    [
        [],
        [task("a.jpg", {"type": "choices", "value": {"choices": ["cat"]}})],
        [{"image": "a.jpg", "label": "cat"}],
        {"image": "a.jpg", "label": [rectangle("cat", 1, 1, 9, 9)]},
        [1, 2],
    ],
)
def test_other_files_are_not_claimed(tmp_path, content):
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert LABEL_STUDIO.count_lists(tmp_path, NAMES) == 0


def test_fuzzed(studio):
    assert fuzz(studio, list(studio.glob("*.json")), "LabelStudio") > 5
