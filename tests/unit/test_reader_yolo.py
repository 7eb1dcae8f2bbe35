"""YOLO's labels, by https://docs.ultralytics.com/datasets/detect/ and /segment/."""

import pytest
from support.boxes import NAMES, codes, fuzz, items, picture, read

from paddlex_feat.data.readers.yolo import YOLO

YAML = (
    "path: ../datasets/set\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: cat\n  1: no\n  2: 犬 [large]\n"
)


def labels(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def yolo(tmp_path):
    root = tmp_path / "set"
    picture(root / "images/train/a b.jpg", 100, 80)
    picture(root / "images/train/ü[1].png", 40, 20)
    picture(root / "images/val/c.jpg", 200, 100)
    picture(root / "images/val/background.jpg")
    labels(root / "labels/train/a b.txt", "0 0.5 0.5 0.2 0.25", "2 0.1 0.1 0.2 0.2", "")
    labels(root / "labels/train/ü[1].txt", "1 0.25 0.5 0.5 0.5 0.5 0.25 0.75")  # a polygon would be of odd length
    labels(root / "labels/val/c.txt", "0 0.1 0.2 0.3 0.2 0.3 0.6")  # a triangle
    (root / "data.yaml").write_text(YAML, encoding="utf-8")
    (root / "README.txt").write_text("x")
    return root


def test_boxes_polygons_and_names(yolo):
    labels(yolo / "labels/train/ü[1].txt", "1 0.25 0.5 0.5 0.5")
    reading = read(yolo.parent, "YOLO", refuse_outside=True)
    assert items(reading.lists["train"]) == [
        ("images/train/a b.jpg", (0, 0, 20, 16), "犬 [large]"),
        ("images/train/a b.jpg", (40, 30, 60, 50), "cat"),
        ("images/train/ü", (0, 5, 20, 15), "no"),
    ]
    ((file, box, name),) = items(reading.lists["query"])
    assert (file, name) == ("images/val/c.jpg", "cat") and box == pytest.approx((20, 20, 60, 60))
    assert codes(reading) == [("annotations-left-out", str(yolo))]


def test_a_picture_turned_by_exif_has_the_size_that_is_seen(yolo):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(yolo / "images/val/c.jpg", exif=exif)
    labels(yolo / "labels/val/c.txt", "0 0.5 0.5 1 1")
    assert items(read(yolo, "YOLO").lists["query"]) == [("images/val/c.jpg", (0, 0, 50, 100), "cat")]


def test_roboflow_layout_and_lists_of_images(tmp_path):
    for part in ("train", "valid"):
        picture(tmp_path / f"{part}/images/x.jpg")
        labels(tmp_path / f"{part}/labels/x.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n")
    reading = read(tmp_path, "YOLO")
    assert (len(reading.lists["train"]), len(reading.lists["query"]), codes(reading)) == (1, 1, [])
    (tmp_path / "data.yaml").write_text("train: t.txt\nval: valid/images\nnames: ['cat']\n")
    (tmp_path / "t.txt").write_text("./train/images/x.jpg\n/elsewhere/set/train/images/gone.jpg\n")
    reading = read(tmp_path, "YOLO")
    assert (len(reading.lists["train"]), codes(reading)) == (1, [("annotated-image-missing", "t.txt:2")])


def test_classes_txt(tmp_path):
    picture(tmp_path / "images/x.jpg")
    labels(tmp_path / "labels/x.txt", "1 0.5 0.5 0.5 0.5 0.9")
    (tmp_path / "classes.txt").write_text("cat\nbig dog\n")
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    reading = read(tmp_path, "YOLO")
    assert items(reading.lists["all"]) == [("images/x.jpg", (25, 20, 75, 60), "big dog")]
    (tmp_path / "images").rename(tmp_path / "kept")
    (tmp_path / "labels").rename(tmp_path / "old")
    for part in ("train", "test"):
        picture(tmp_path / f"images/{part}/x.jpg")
        labels(tmp_path / f"labels/{part}/x.txt", "0 0.5 0.5 0.5 0.5")
    reading = read(tmp_path, "YOLO")
    assert (len(reading.lists["train"]), len(reading.lists["query"])) == (1, 1)


def test_what_is_wrong_is_a_finding_and_the_rest_is_read(yolo):
    labels(yolo / "labels/val/c.txt", "0 0.5 0.5 0.1 0.1", "9 0.5 0.5 0.1 0.1", "x 1", "0 0.5 nan 0.1 0.1",
           "0 0.5 0.5 0.1", "0 1 0.5 0.2 0.1", "0 0.5 0.5 0 0.1", "0 0.1 0.1 0.2 0.2 0.3")  # fmt: skip
    (yolo / "images/train/a b.jpg").write_bytes(b"\xff\xd8\xff")
    reading = read(yolo, "YOLO")
    at = "labels/val/c.txt:{}".format
    found = [f for f in codes(reading) if f[1].startswith("labels/val")]
    assert found == [("annotation-unusable", at(i)) for i in (2, 3, 4, 5)] + [
        ("box-clipped", at(6)),
        ("box-without-area", at(7)),
    ]
    assert ("annotated-image-missing", "labels/train/a b.txt") in codes(reading)
    assert len(reading.lists["query"]) == 3


@pytest.mark.parametrize(
    "text",
    [
        "train: /\nval: ../../..\nnames: [a]\n",
        "train: images/train\nval: !!python/object:os.system x\nnames: [a]\n",
        "train: images/train\nnames: &a [*a]\n",
        "train: [[[\nnames: [a]\n",
        "train: images/train\nnames: 5\n",
    ],
)
def test_hostile_yaml(yolo, text):
    (yolo / "data.yaml").write_text(text)
    reading = YOLO.read(yolo, NAMES, False)
    assert all(not len(records) for records in reading.lists.values())
    assert {"annotations-unreadable", "annotation-unusable"} & {code for code, _ in codes(reading)}
    assert ("boxes-none", str(yolo)) in codes(reading)


def test_other_folders_are_not_claimed(tmp_path):
    (tmp_path / "config.yaml").write_text("Global:\n  mode: train\nnames: 3\n")
    picture(tmp_path / "images/x.jpg")
    assert YOLO.count_lists(tmp_path, NAMES) == 0
    (tmp_path / "classes.txt").write_text("cat\n")
    assert YOLO.count_lists(tmp_path, NAMES) == 0  # beside folders of classes there may be one, too
    labels(tmp_path / "labels/x.txt", "some words of a text")
    assert YOLO.count_lists(tmp_path, NAMES) == 2


def test_fuzzed(yolo):
    assert fuzz(yolo, [*sorted(yolo.glob("labels/*/*.txt")), yolo / "data.yaml"], "YOLO") > 20


def test_a_part_that_was_not_exported_is_a_warning_where_another_is_there(yolo):
    (yolo / "data.yaml").write_text(YAML.replace("test:", "test: ../test/images"), encoding="utf-8")
    found = [(f.code, f.severity) for f in read(yolo, "YOLO").findings]
    assert ("annotated-part-missing", "warning") in found and "annotations-unreadable" not in dict(found)
    (yolo / "data.yaml").write_text(YAML.replace("train: images/train", "train: images/gone"), encoding="utf-8")
    assert "annotations-unreadable" in [f.code for f in read(yolo, "YOLO").findings]
