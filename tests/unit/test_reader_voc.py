"""Pascal VOC's XML files, by the development kit of VOC 2012 (section 4 of its documentation)."""

import pytest
from support.boxes import NAMES, codes, fuzz, items, picture, read

from paddlex_feat.data.readers import reader_of
from paddlex_feat.data.readers.voc import VOC

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def annotation(filename, objects, size=(100, 80), head=""):
    inner = "".join(f"<object><name>{n}</name><pose>Left</pose>{BOX.format(*box)}</object>" for n, box in objects)
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"{head}<annotation>\n<folder>V</folder><filename>{filename}</filename>{size}{inner}</annotation>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    (root / "Annotations").mkdir(parents=True)
    for stem, objects in (
        ("a b", [("cat", (1, 1, 10, 20)), ("dog &amp; 犬", (5, 6, 100, 80))]),
        ("ü[1]", [("cat", (0, 0, 10, 10))]),
        ("c", [("dog", (11, 12, 20, 22))]),
    ):
        picture(root / f"JPEGImages/{stem}.jpg")
        picture(root / f"SegmentationClass/{stem}.png")
        (root / f"Annotations/{stem}.xml").write_text(annotation(f"{stem}.jpg", objects), encoding="utf-8")
    (root / "Annotations/notes.txt").write_text("x")
    return root


def divide(root, **lists):
    folder = root / "ImageSets/Main"
    folder.mkdir(parents=True)
    for name, stems in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")


def test_pixels_are_counted_from_one(voc):
    reading = read(voc.parent, "PascalVOC", refuse_outside=True)
    assert items(reading.lists["all"]) == [
        ("JPEGImages/a b.jpg", (0, 0, 10, 20), "cat"),
        ("JPEGImages/a b.jpg", (4, 5, 100, 80), "dog & 犬"),
        ("JPEGImages/c.jpg", (10, 11, 20, 22), "dog"),
        ("JPEGImages/ü", (0, 0, 10, 10), "cat"),
    ]
    assert codes(reading) == []


def test_lists_divide(voc):
    divide(voc, train=["a b", "", "gone"], val=["c"], trainval=["a b", "c"], cat_train=["x"])
    reading = read(voc, "PascalVOC")
    assert len(reading.lists["train"]) == 2
    assert items(reading.lists["query"]) == [("JPEGImages/c.jpg", (10, 11, 20, 22), "dog")]
    assert codes(reading) == [
        ("annotation-unusable", "ImageSets/Main/train.txt:3"),
        ("annotations-left-out", str(voc)),
    ]


def test_trainval_trains_where_there_is_no_train(voc):
    divide(voc, trainval=["a b", "ü[1]"], test=["c"])
    reading = read(voc, "PascalVOC")
    assert (len(reading.lists["train"]), len(reading.lists["query"]), codes(reading)) == (3, 1, [])


@pytest.mark.parametrize(
    "text, reason",
    [
        (annotation("c.jpg", [("&x;", (1, 1, 9, 9))], head='<!DOCTYPE a [<!ENTITY x "y">]>'), "document type"),
        (annotation("c.jpg", [], head='<!DOCTYPE a SYSTEM "http://127.0.0.1/x">'), "document type"),
        (annotation("c.jpg", [("&x;", (1, 1, 9, 9))]), "not XML"),
        ("<annotation><object>", "not XML"),
        ("<html></html>", "html, not annotation"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not XML"),
        ("<annotation>" + "<a>" * 100_000, "not XML"),
    ],
)
def test_refused_xml(voc, text, reason):
    (voc / "Annotations/c.xml").write_text(text)
    reading = read(voc, "PascalVOC")
    (finding,) = reading.findings
    assert (
        finding.code == "annotations-unreadable" and finding.where == "Annotations/c.xml" and reason in finding.message
    )
    assert len(reading.lists["all"]) == 3


def test_what_is_wrong_is_a_finding_and_the_rest_is_read(voc):
    wrong = [
        ("cat", (1, 1, 200, 20)),
        ("cat", (50, 5, 40, 9)),
        ("cat", ("x", 1, 2, 3)),
        ("", (1, 1, 9, 9)),
        ("ok", (2, 2, 9, 9)),
    ]
    (voc / "Annotations/c.xml").write_text(annotation("c.jpg", wrong))
    (voc / "Annotations/a b.xml").write_text(annotation("gone.jpg", [("cat", (1, 1, 9, 9))]))
    (voc / "Annotations/none.xml").write_text(annotation("none.jpg", [("cat", (1, 1, 9, 9))]))
    reading = read(voc, "PascalVOC")
    at = "Annotations/c.xml:object[{}]".format
    assert codes(reading) == [
        ("box-clipped", at(0)), ("box-without-area", at(1)),
        ("annotation-unusable", at(2)), ("annotation-unusable", at(3)),
        ("annotated-image-missing", "Annotations/none.xml"),
    ]  # fmt: skip
    assert [name for _, _, name in items(reading.lists["all"])] == ["cat", "cat", "ok", "cat"]


def test_other_folders_are_not_claimed(tmp_path):
    picture(tmp_path / "JPEGImages/a.jpg")
    assert VOC.count_lists(tmp_path, NAMES) == 0
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text("<project/>")
    assert VOC.count_lists(tmp_path, NAMES) == 0
    (tmp_path / "Annotations/a.xml").write_text(annotation("a.jpg", []))
    assert VOC.count_lists(tmp_path, NAMES) == 3


def test_fuzzed(voc):
    divide(voc, train=["a b", "ü[1]"], val=["c"])
    assert fuzz(voc, sorted(voc.glob("Annotations/*.xml")) + sorted(voc.glob("ImageSets/Main/*")), "PascalVOC") > 20


def test_a_stale_name_in_an_annotation_does_not_lead_to_another_picture(voc):
    (voc / "Annotations/c.xml").write_text(annotation("a b.jpg", [("dog", (11, 12, 20, 22))]))
    reading = read(voc, "PascalVOC")
    assert ("JPEGImages/c.jpg", (10, 11, 20, 22), "dog") in items(reading.lists["all"])


@pytest.mark.parametrize("folders", [("",), ("train/", "valid/", "test/")])
def test_files_beside_their_pictures(tmp_path, folders):
    for folder in folders:
        for i in range(3):
            picture(tmp_path / f"{folder}{i}.jpg")
            text = annotation(f"former name {i}.jpg", [("cat", (1, 1, 10 + i, 20))])
            (tmp_path / f"{folder}{i}.xml").write_text(text)
    assert reader_of(tmp_path).name == "PascalVOC"
    reading = read(tmp_path, "PascalVOC")
    first = "train" if len(folders) > 1 else "all"
    assert items(reading.lists[first]) == [(f"{folders[0]}{i}.jpg", (0, 0, 10 + i, 20), "cat") for i in range(3)]
    if len(folders) > 1:
        assert [path.split("/")[0] for path in reading.lists["query"].paths] == ["test"] * 3
