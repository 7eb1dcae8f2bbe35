"""LabelMe's annotations as its users leave them: attributes, other layouts, pictures inside, files of other tools."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import run_here

from paddlex_feat.data.converters import labelme
from paddlex_feat.errors import DatasetError


def picture(seed: int, suffix: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def annotate(path: Path, image_path: object, flags: dict | None = None, shapes=(), data: bytes | None = None) -> Path:
    inside = None if data is None else base64.b64encode(data).decode()
    content = {
        "version": "5.5.0",
        "flags": flags or {},
        "shapes": list(shapes),
        "imagePath": image_path,
        "imageData": inside,
    }
    return put(path, json.dumps(content).encode())


def shape(label: str | None, *flags: str, **more: object) -> dict:
    return {"label": label, "points": [[1, 1], [9, 9]], "flags": dict.fromkeys(flags, True), **more}


def converted(root: Path) -> dict[str, str]:
    """Image -> class, as far as it can be used; nothing may have been written."""
    before = sorted(root.rglob("*"))
    result = labelme.convert(root)
    assert sorted(root.rglob("*")) == before
    return {path: result.names[label] for path, label in zip(result.paths, result.labels, strict=True)}


def codes(root: Path) -> dict[str, str]:
    return {f.code: f"{f.where}: {f.message} {f.fix}" for f in labelme.convert(root).findings}


@pytest.fixture
def root(tmp_path) -> Path:
    """annotations/ and images/ with two images."""
    for name in ("a", "b"):
        put(tmp_path / f"set/images/{name}.jpg", picture(ord(name)))
    (tmp_path / "set/annotations").mkdir()
    return tmp_path / "set"


# Which names are classes


@pytest.mark.parametrize("names", [None, "cat\ndog\n"])
@pytest.mark.parametrize(
    "shapes",
    [
        [shape("cat", "occluded")],
        [shape("cat", "truncated", "difficult")],
        [shape("cat"), shape("cat", "iscrowd"), shape("cat", "ignore")],
        [shape("cat", difficult=True, attributes={"pose": "left"}, occluded=True)],
        [shape("cat", "blurred"), shape("cat")],
        [shape("cat", "occluded"), shape("__ignore__")],
    ],
)
def test_attributes_of_shapes_are_not_classes(root, names, shapes):
    if names:
        (root / "label.txt").write_text(names)
    annotate(root / "annotations/a.json", "../images/a.jpg", shapes=shapes)
    annotate(root / "annotations/b.json", "../images/b.jpg", shapes=[shape("dog", "occluded")])
    assert converted(root) == {"images/a.jpg": "cat", "images/b.jpg": "dog"}
    assert "labelme-unknown-class" not in codes(root) and "occluded" not in str(codes(root))


@pytest.mark.parametrize("file", ["label.txt", "flags.txt"])
@pytest.mark.parametrize(
    ("flags", "shapes", "expected"),
    [
        ({}, [shape("cat"), shape("tree")], "cat"),  # the one label that is a class
        ({}, [shape("thing", "dog")], "dog"),  # a flag of a shape, where no label is a class
        ({}, [shape("cat", "dog")], "cat"),  # labels come first
        ({}, [shape("thing", "dog", "occluded")], "dog"),
        ({"cat": True, "night": True}, [], "cat"),  # flags of the image
        ({"night": True}, [shape("dog")], "dog"),
        ({"cat": True}, [shape("dog")], "cat"),
        ({" cat ": True}, [], "cat"),
        ({}, [shape(None, "dog")], "dog"),
    ],
)
def test_class_names_decide(root, file, flags, shapes, expected):
    (root / file).write_text("cat\ndog\n")
    annotate(root / "annotations/a.json", "a.jpg", flags, shapes)
    assert converted(root) == {"images/a.jpg": expected}


@pytest.mark.parametrize(
    ("flags", "shapes", "code"),
    [
        ({}, [shape("cat"), shape("dog")], "labelme-several-classes"),
        ({"cat": True, "dog": True}, [], "labelme-several-classes"),
        ({}, [shape(None, "occluded")], "labelme-no-class"),
        ({}, [shape("__ignore__")], "labelme-no-class"),
        ({}, [shape("Cat", "occluded")], "labelme-unknown-class"),
    ],
)
def test_what_names_no_class(root, code, flags, shapes):
    (root / "label.txt").write_text("cat\ndog\n")
    annotate(root / "annotations/a.json", "a.jpg", flags, shapes)
    assert converted(root) == {} and code in codes(root)
    if code == "labelme-unknown-class":
        assert "'cat' is" in codes(root)[code] and "If it is a class, add it to label.txt" in codes(root)[code]


def test_labels_that_were_passed_over_are_counted_in_one_note(root):
    (root / "label.txt").write_text("cat\n")
    for name in "ab":
        annotate(root / f"annotations/{name}.json", f"{name}.jpg", shapes=[shape("cat"), shape("tree"), shape("tree")])
    assert len(converted(root)) == 2 and "tree: 2" in codes(root)["labelme-label-unused"]


# What systems and other tools leave


def test_hidden_copies_of_annotations_and_images_are_not_read(root, caplog):
    caplog.set_level(logging.INFO)
    (root / "label.txt").write_text("cat\ndog\n")
    annotate(root / "annotations/a.json", "../images/a.jpg", {"cat": True})
    for name in (".ipynb_checkpoints/a-checkpoint.json", "._a.json", "@eaDir/a.json", "__MACOSX/a.json"):
        annotate(root / "annotations" / name, "../images/a.jpg", {"dog": True})
    for name in (".thumbnails/a.jpg", "._b.jpg", "@eaDir/b.jpg/THUMB.jpg"):
        put(root / "images" / name, picture(1))
    (root / "images/b.jpg").unlink()
    assert converted(root) == {"images/a.jpg": "cat"} and codes(root) == {}
    assert "hidden folders: 2" in caplog.records[0].message and len(caplog.records) == 2  # two conversions


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".jpe", ".jpg_large", ""])
def test_images_of_any_suffix(root, suffix):
    put(root / f"images/c{suffix}", picture(3, ".gif" if suffix == ".gif" else ".jpg"))
    annotate(root / "annotations/c.json", f"../images/c{suffix}", {"cat": True})
    assert converted(root) == {f"images/c{suffix}": "cat"}


COCO = {"images": [], "annotations": [], "categories": []}


@pytest.mark.parametrize("folder", ["annotations", "."])
def test_files_of_other_tools_are_notes(root, folder):
    annotate(root / folder / "a.json", "a.jpg" if folder != "." else "images/a.jpg", {"cat": True})
    put(root / folder / "coco.json", json.dumps(COCO).encode())
    put(root / folder / "dataset.json", json.dumps({"name": "x"}).encode())
    put(root / folder / "a.xml", b"<annotation/>")
    assert converted(root) == {"images/a.jpg": "cat"}
    findings = {f.code: f for f in labelme.convert(root).findings}
    assert "2 (" in findings["labelme-other-format"].message and "coco.json" in findings["labelme-other-format"].message
    notes = ("labelme-other-format", "labelme-other-file")
    assert all(findings[code].severity == "note" for code in notes) and len(findings) == 4  # and no names, b.jpg


@pytest.mark.parametrize("image_path", ["../images/A.JPG", "a.jpeg", "..\\images\\A.jpg"])
def test_an_image_under_nearly_the_same_name_is_named(root, image_path):
    annotate(root / "annotations/a.json", image_path, {"cat": True})
    assert converted(root) == {} and "Did you mean images/a.jpg" in codes(root)["labelme-image-missing"]


# Annotations beside their images


def test_annotations_beside_their_images(tmp_path):
    for i, folder in enumerate(("", "sub/", "sub/deep/")):
        put(tmp_path / f"{folder}{i}.jpg", picture(i))
        annotate(tmp_path / f"{folder}{i}.json", f"{i}.jpg", {"dog": i != 1, "cat": i == 1})
    put(tmp_path / "coco.json", b"[]")
    (tmp_path / "flags.txt").write_text("dog\ncat\n")
    assert labelme.find_root(str(tmp_path)) == tmp_path
    assert converted(tmp_path) == {"0.jpg": "dog", "sub/1.jpg": "cat", "sub/deep/2.jpg": "dog"}
    for name in ("train.txt", "train.txt.bak", "gallery.txt", "query.txt"):  # of an earlier conversion
        put(tmp_path / name, b"0.jpg 0\n")
    assert set(codes(tmp_path)) == {"labelme-other-format"}


def test_the_names_beside_annotations_in_a_folder_below(tmp_path):
    put(tmp_path / "photos/0.jpg", picture(0))
    annotate(tmp_path / "photos/0.json", "0.jpg", {"dog": True})
    (tmp_path / "photos/label.txt").write_text("cat\ndog\n")
    assert labelme.convert(tmp_path).labels == [1]


def test_an_empty_folder_annotations_is_not_in_the_way(root):
    annotate(root / "images/a.json", "a.jpg", {"dog": True})
    assert converted(root) == {"images/a.jpg": "dog"}


def test_the_folder_with_the_annotations_is_found_or_named(root, tmp_path):
    annotate(root / "annotations/a.json", "../images/a.jpg", {"cat": True})
    put(tmp_path / ".old/annotations/a.json", b"{}")
    assert labelme.find_root(str(tmp_path)) == root
    with pytest.raises(DatasetError, match=f"(?s)annotations/ itself.*Give {root}"):
        labelme.find_root(str(root / "annotations"))
    with pytest.raises(DatasetError, match=r"(?s)No folder with LabelMe.*beside their images"):
        labelme.find_root(str(root / "images"))
    with pytest.raises(DatasetError, match=r"Did you mean .*/set"):
        labelme.find_root(str(tmp_path / "sett"))


# Pictures inside annotations


def write(root: Path) -> dict[str, str]:
    """As mode check_dataset does it: convert, write the pictures, and convert again, which gives the same."""
    before, result = converted(root), labelme.convert(root)
    result.write_images()
    assert all((root / path).is_file() for path in before)
    assert converted(root) == before and not any(
        f.code == "labelme-image-inside" for f in labelme.convert(root).findings
    )
    return before


@pytest.mark.parametrize(
    ("image_path", "expected"),
    [
        ("../images/c.jpg", "images/c.jpg"),
        ("images/c.jpg", "images/c.jpg"),
        ("c.jpg", "images/c.jpg"),
        ("..\\images\\sub\\c.jpg", "images/sub/c.jpg"),
        ("/home/me/cat/c.jpg", "images/cat/c.jpg"),
        ("C:\\c.jpg", "images/c.jpg"),
        ("../../../etc/c.jpg", "images/etc/c.jpg"),
        ("../.hidden/c.jpg", "images/c.jpg"),
        ("c.heic", "images/c.heic.jpg"),
        ("c\n5.jpg", "images/note.jpg"),
        ("x" * 300 + ".jpg", "images/note.jpg"),
        ("..", "images/note.jpg"),
        ("", "images/note.jpg"),
        (None, "images/note.jpg"),
    ],
)
def test_a_picture_inside_an_annotation_becomes_a_file_below_images(root, image_path, expected):
    annotate(root / "annotations/note.json", image_path, {"cat": True}, data=picture(7))
    assert write(root) == {expected: "cat"} and (root / expected).read_bytes() == picture(7)


def test_such_a_picture_is_told_and_one_at_hand_is_not_written(root):
    annotate(root / "annotations/a.json", "../images/a.jpg", {"cat": True}, data=picture(99))  # as LabelMe saves it
    assert write(root) == {"images/a.jpg": "cat"} and len(list(root.rglob("*.jpg"))) == 2
    annotate(root / "annotations/c.json", "../images/c.jpg", {"cat": True}, data=picture(7))
    assert "becomes images/c.jpg" in codes(root)["labelme-image-inside"]


def test_no_file_is_overwritten_and_each_annotation_keeps_its_picture(root):
    put(root / "images/c.jpg", b"mine, and no image")
    (root / "images/c.jpg").rename(root / "images/c.png")
    for i in range(3):
        annotate(root / f"annotations/{i}.json", "/elsewhere/c.png", {"cat": i > 0, "dog": i == 0}, data=picture(i))
    put(root / "images/x/c.png", b"mine too")  # so that the name alone does not tell
    found = write(root)
    assert (root / "images/c.png").read_bytes() == b"mine, and no image"
    assert found == {
        "images/elsewhere/c.png": "dog",
        "images/elsewhere/c_2.png": "cat",
        "images/elsewhere/c_3.png": "cat",
    }
    assert [(root / name).read_bytes() for name in found] == [picture(i) for i in range(3)]


def test_images_elsewhere_are_still_found_when_images_was_made(tmp_path):
    put(tmp_path / "photos/a.jpg", picture(1))
    annotate(tmp_path / "annotations/a.json", "C:/x/a.jpg", {"cat": True})
    annotate(tmp_path / "annotations/b.json", "C:/x/b.jpg", {"cat": True}, data=picture(2))
    assert write(tmp_path) == {"photos/a.jpg": "cat", "images/x/b.jpg": "cat"}


def test_beside_the_images_too(tmp_path):
    put(tmp_path / "s/a.jpg", picture(1))
    annotate(tmp_path / "s/a.json", "a.jpg", {"cat": True}, data=picture(9))
    annotate(tmp_path / "s/b.json", "b.jpg", {"cat": True}, data=picture(2))
    assert write(tmp_path) == {"s/a.jpg": "cat", "images/s/b.jpg": "cat"}


@pytest.mark.parametrize("data", ["AAAA", "no base64 at all!", base64.b64encode(picture(3)[:40]).decode(), "A" * 10**6])
def test_image_data_that_cannot_be_decoded_are_named(root, data):
    content = {"flags": {"cat": True}, "imagePath": "../images/c.jpg", "imageData": data}
    put(root / "annotations/c.json", json.dumps(content).encode())
    assert converted(root) == {} and "imageData cannot be used" in codes(root)["labelme-image-data"]
    assert len(codes(root)["labelme-image-data"]) < 300


def test_no_picture_leaves_images_by_a_link(root, tmp_path):
    (tmp_path / "other").mkdir()
    (root / "images/sub").symlink_to(tmp_path / "other")
    annotate(root / "annotations/c.json", "../images/sub/c.jpg", {"cat": True}, data=picture(7))
    assert converted(root) == {} and "link" in codes(root)["labelme-image-data"]


def test_a_picture_of_an_unknown_class_is_not_written(root):
    (root / "label.txt").write_text("cat\n")
    annotate(root / "annotations/c.json", "../images/c.jpg", {"dog": True}, data=picture(7))
    assert write(root) == {} and not (root / "images/c.jpg").exists()


# The command


def check(data: Path, output: Path):
    settings = (
        "Global.mode=check_dataset",
        f"Global.dataset_dir={data}",
        f"Global.output={output}",
        "CheckDataset.convert.enable=True",
        "CheckDataset.convert.src_dataset_type=LabelMe",
        *("Train.input_size=16", "Train.batch_size=4", "Train.samples_per_class=2"),
    )
    done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)))
    return done, json.loads((output / "check_dataset_result.json").read_text())


@pytest.mark.parametrize("layout", ["beside", "inside"])
def test_the_command_converts(tmp_path, layout):
    root = tmp_path / "set"
    for i in range(20):
        name, flags = f"{i:02d}", {"cat": i % 2 == 0, "dog": i % 2 == 1}
        if layout == "beside":
            put(root / f"{name}.jpg", picture(i))
            annotate(root / f"{name}.json", f"{name}.jpg", flags)
        else:
            annotate(root / f"annotations/{name}.json", f"../images/{name}.jpg", flags, data=picture(i))
    (root / "label.txt").write_text("cat\ndog\n")
    done, result = check(root, tmp_path / "out")
    assert done.returncode == 0 and result["check_pass"], done.stderr
    lines = [line for name in ("train", "gallery", "query") for line in (root / f"{name}.txt").read_text().splitlines()]
    prefix = "" if layout == "beside" else "images/"
    assert sorted(lines) == [f"{prefix}{i:02d}.jpg {i % 2}" for i in range(20)]
    assert [f["code"] for f in result["findings"]] == ["labelme-image-inside"] * 20 * (layout == "inside")


def test_too_few_annotated_images_are_an_error_of_the_conversion(root, tmp_path):
    annotate(root / "annotations/a.json", "c.jpg", {"cat": True}, data=picture(7))
    done, result = check(root, tmp_path / "out")
    assert done.returncode == 1 and "CheckDataset.convert" in done.stderr and not (root / "images/c.jpg").exists()
    assert "labelme-image-inside" in [f["code"] for f in result["findings"]]
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "images"]
