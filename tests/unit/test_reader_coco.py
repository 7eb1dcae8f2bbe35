"""COCO's JSON files, by https://cocodataset.org/#format-data."""

import io
import json

import pytest
from support.boxes import NAMES, codes, fuzz, items, picture, read

from paddlex_feat.data.readers import reader_of
from paddlex_feat.data.readers.coco import COCO
from paddlex_feat.data.readers.json_stream import JsonError, JsonStream


def content(images, annotations, categories=((1, "cat"), (7, "dog [large] 犬"))):
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1, "name": "x"}],
        "images": [{"id": i, "file_name": n, "width": 100, "height": 80} for i, n in images],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd, "segmentation": [[0, 0, 1, 1]]}
            for k, (i, c, box, crowd) in enumerate(annotations)
        ],
        "categories": [{"id": i, "name": n, "supercategory": "animal"} for i, n in categories],
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def official(tmp_path):
    root = tmp_path / "coco"
    for folder, name in (("train2017", "a b.jpg"), ("train2017", "ü[1].jpg"), ("val2017", "a b.jpg")):
        picture(root / folder / name)
    train = [
        (1, 1, [0, 0, 10, 20], 0),
        (1, 7, [5.5, 5, 10, 10], 0),
        (2, 1, [90, 70, 10, 10], 0),
        (2, 1, [0, 0, 9, 9], 1),
    ]
    write(root / "annotations/instances_train2017.json", content([(1, "a b.jpg"), (2, "ü[1].jpg")], train))
    write(root / "annotations/instances_val2017.json", content([(9, "a b.jpg")], [(9, 7, [1, 2, 30, 40], 0)]))
    write(root / "annotations/captions_val2017.json", {"images": [], "annotations": [{"image_id": 9, "id": 1}]})
    (root / "notes.txt").write_text("x")
    return root


def test_official_layout(official):
    reading = read(official, "COCO")
    assert items(reading.lists["train"]) == [
        ("train2017/a b.jpg", (0, 0, 10, 20), "cat"),
        ("train2017/a b.jpg", (5.5, 5, 15.5, 15), "dog [large] 犬"),
        ("train2017/ü", (90, 70, 100, 80), "cat"),
    ]
    assert items(reading.lists["query"]) == [("val2017/a b.jpg", (1, 2, 31, 42), "dog [large] 犬")]
    assert reading.lists["gallery"].paths == reading.lists["query"].paths and reading.lists["query"].leave_one_out
    assert codes(reading) == [("annotations-left-out", str(official))]
    assert "crowds: 1" in reading.findings[0].message
    assert reading.lists["train"].paths[0] == "train2017/a b.jpg[0,0,10,20]"


def test_it_is_found_once_below_the_folder_that_is_given_and_outside_is_refused(official):
    reading = read(official.parent, "COCO", refuse_outside=True)
    assert len(reading.lists["train"]) == 3
    (official / "val2017/a b.jpg").unlink()
    (official / "val2017/a b.jpg").symlink_to(picture(official.parent / "other/x.jpg"))
    reading = read(official, "COCO", refuse_outside=True)
    assert ("path-leaves", "val2017/a b.jpg[1,2,31,42]") in codes(reading) and not reading.lists["query"].paths


def test_roboflow_layout_beside_the_images(tmp_path):
    for part in ("train", "valid"):
        picture(tmp_path / f"set/{part}/x.jpg")
        write(tmp_path / f"set/{part}/_annotations.coco.json", content([(0, "x.jpg")], [(0, 1, [1, 1, 9, 9], 0)]))
    reading = read(tmp_path, "COCO")
    assert items(reading.lists["train"]) == [("train/x.jpg", (1, 1, 10, 10), "cat")]
    assert items(reading.lists["gallery"]) == [("valid/x.jpg", (1, 1, 10, 10), "cat")]


def test_one_file_is_not_divided_and_annotations_may_come_first(tmp_path):
    picture(tmp_path / "images/x.jpg")
    value = content([(0, "images\\x.jpg")], [(0, 1, [1, 1, 9, 9], 0), (0, 7, [2, 2, 9, 9], 0)])
    write(tmp_path / "result_train.json", dict(sorted(value.items())))
    assert list(value) != sorted(value)
    reading = read(tmp_path, "COCO")
    assert [name for _, _, name in items(reading.lists["all"])] == ["cat", "dog [large] 犬"]


def test_what_is_wrong_is_a_finding_and_the_rest_is_read(tmp_path):
    picture(tmp_path / "x.jpg")
    boxes = [
        [1, 1, 9, 9],
        [95, 5, 20, 10],
        [1, 1, 0, 9],
        [200, 5, 9, 9],
        [1, 1, "a", 9],
        [1, 2, 3],
        None,
        [1, 1, 1e300, 1],
    ]
    annotations = [(0, 1, box, 0) for box in boxes] + [
        (5, 1, [1, 1, 9, 9], 0),
        (0, 5, [1, 1, 9, 9], 0),
        (3, 1, [1, 1, 9, 9], 0),
    ]
    value = content([(0, "x.jpg"), (3, "gone.jpg"), (4, "y.jpg")], annotations)
    value["images"] += [{"id": 0, "file_name": "again.jpg"}, {"id": 8}, 5]
    value["categories"].append({"id": [1], "name": "list"})
    write(tmp_path / "instances.json", value)
    reading = read(tmp_path, "COCO")
    assert items(reading.lists["all"]) == [("x.jpg", (1, 1, 10, 10), "cat"), ("x.jpg", (95, 5, 100, 15), "cat")]
    at = "instances.json:annotations[{}]".format
    assert sorted(codes(reading)) == sorted([
        *[("annotation-unusable", f"instances.json:images[{i}]") for i in (3, 4, 5)],
        ("annotation-unusable", "instances.json:categories[2]"),
        *[("annotation-unusable", at(i)) for i in (4, 5, 6, 7, 8, 9)],
        ("box-clipped", at(1)), ("box-without-area", at(2)), ("box-without-area", at(3)),
        ("annotated-image-missing", at(10)), ("annotations-left-out", str(tmp_path)),
    ])  # fmt: skip


def test_an_image_of_another_part_is_not_taken(official):
    (official / "val2017/a b.jpg").unlink()
    reading = read(official, "COCO")
    assert len(reading.lists["all"]) == 3
    assert ("annotated-image-missing", "annotations/instances_val2017.json:annotations[0]") in codes(reading)


def test_a_file_that_ends_early_gives_its_first_records(tmp_path):
    picture(tmp_path / "x.jpg")
    value = content([(0, "x.jpg")], [(0, 1, [1, 1, 9, 9], 0), (0, 7, [2, 2, 9, 9], 0)])
    write(tmp_path / "x.json", {key: value[key] for key in ("images", "categories", "annotations")})
    (tmp_path / "x.json").write_bytes((tmp_path / "x.json").read_bytes()[:-5])
    reading = read(tmp_path, "COCO")
    assert codes(reading) == [("annotations-unreadable", "x.json")]
    assert items(reading.lists["all"]) == [("x.jpg", (1, 1, 10, 10), "cat")]


@pytest.mark.parametrize(
    "value",
    [
        {"categories": [{"id": 0, "name": "cat"}], "info": {}},  # notes.json of Label Studio
        {"images": [{"id": 1, "file_name": "x.jpg"}], "categories": [{"id": 0, "name": "cat"}]},
        {"images": ["x.jpg"], "annotations": [1], "categories": []},
        [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],  # results of a detector
        {"x": 1},
    ],
)
def test_other_files_are_not_claimed(tmp_path, value):
    picture(tmp_path / "x.jpg")
    write(tmp_path / "x.json", value)
    assert COCO.count_lists(tmp_path, NAMES) == 0


def test_annotations_without_their_images_are_not_a_data_set(official):
    assert 0 < COCO.count_lists(official / "annotations", NAMES) < len(NAMES)


def test_large_files_are_recognized_by_their_beginning_and_end(tmp_path):
    picture(tmp_path / "x.jpg")
    value = content([(0, "x.jpg")], [(0, 1, [1, 1, 9, 9], 0)])
    for order in (("images", "annotations", "categories"), ("annotations", "images", "categories")):
        many = {key: value[key] * (3000 if key == "annotations" else 1) for key in order}
        write(tmp_path / "x.json", many)
        assert (tmp_path / "x.json").stat().st_size > 2**18
        assert COCO.count_lists(tmp_path, NAMES) >= 2
        assert len(COCO.read(tmp_path, NAMES, False).lists["all"]) == 3000


def test_fuzzed(official):
    files = sorted(official.glob("annotations/*.json"))
    assert fuzz(official, files, "COCO") > 20


def test_stream_in_small_pieces_equals_json(monkeypatch):
    monkeypatch.setattr("paddlex_feat.data.readers.json_stream._CHUNK", 1)
    value = {"skip": [1, [2]], "x": {"a": 1}, "a": [12, -3.5e2, 'ü\\"]', {"b": [None, True]}, []], "c": []}
    for text in (json.dumps(value), json.dumps(value, indent=3, ensure_ascii=False)):
        assert [r for _, r in JsonStream(io.StringIO(text)).records("a")] == value["a"]
    assert [r for _, r in JsonStream(io.StringIO(" [10, 20] ")).records()] == [10, 20]
    for bad in ("", "{", "[1,]", "[1 2]", '{"a" 1}', '{"a": 1,}', "[1]]", "5", "[1", '["a', "{1: 2}", "[tru]"):
        with pytest.raises(JsonError):
            list(JsonStream(io.StringIO(bad)).records("a"))


@pytest.mark.parametrize("order", [1, -1])
def test_boxes_of_a_missing_picture_are_not_given_to_another_of_its_name(tmp_path, order):
    names = [f"cam{camera}/{i}.jpg" for camera in (1, 2) for i in range(4)][::order]
    for name in names:
        if name.startswith("cam1"):
            picture(tmp_path / name)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": i % 2, "bbox": [2, 2, 30, 30]} for i in range(8)],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    reading = COCO.read(tmp_path, NAMES, False)
    missing = [f for f in reading.findings if f.code == "annotated-image-missing"]
    assert len(reading.lists["all"]) == 4 and len(missing) == 4 and all("cam2" in f.message for f in missing)


@pytest.mark.parametrize("keys", [("images", "annotations", "categories"), ("categories", "images", "annotations")])
@pytest.mark.parametrize("folders", [0, 2])
@pytest.mark.parametrize("count", [19, 20, 60, 2000])
def test_a_file_of_many_images_is_recognised(tmp_path, keys, folders, count):
    names = [f"cam{i % folders}/{i}.jpg" if folders else f"{i}.jpg" for i in range(count)]
    for name in names[:60]:
        picture(tmp_path / "images" / name)
    whole = content(list(enumerate(names)), [(i, 1, [0, 0, 9, 9], 0) for i in range(count)])
    write(tmp_path / "annotations/instances_all.json", {key: whole[key] for key in keys})
    assert reader_of(tmp_path).name == "COCO"
