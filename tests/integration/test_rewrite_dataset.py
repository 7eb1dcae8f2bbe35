"""Data sets of other formats checked, converted both ways, divided and corrected."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
from support.runs import run_here

from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.readers import find_root, reader_of, require_lists

CONFIG = "configs/modules/image_feature/PP-ShiTuV2_rec.yaml"
USUAL = ("Train.samples_per_class=null", "Evaluate.exclude_self=True")
LISTS = ("train", "gallery", "query")


def picture(seed: int) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8), (0, 0), 2)


def class_folders(root: Path) -> Path:
    """Four classes of four images, two of them in test."""
    for number, name in enumerate(("cat", "dog", "red fox", "猫")):
        for i in range(4):
            file = root / ("train" if number < 2 else "test") / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(cv2.imencode(".png", picture(10 * number + i))[1].tobytes())
    return root


def lists_of(root: Path, form: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """Path and class name of each image, by list."""
    found = require_lists(str(root), form=form)
    return {
        n: [(str(p), r.names.get(c, str(c))) for p, c in zip(r.paths, r.labels, strict=True)] for n, r in found.items()
    }


def items(lists: dict[str, list[tuple[str, str]]]) -> set[tuple[str, str]]:
    return {item for records in lists.values() for item in records}


def check(root: Path, output: Path, *words: str, code: str | None = None) -> dict:
    """The result of mode check_dataset, which ends with the error `code`, or without one."""
    settings = (f"Global.dataset_dir={root}", f"Global.output={output}", *USUAL, *words)
    options = [word for setting in ("Global.mode=check_dataset", *settings) for word in ("-o", setting)]
    done = run_here("-c", CONFIG, *options)
    result = json.loads((output / "check_dataset_result.json").read_text(encoding="utf-8"))
    assert result.get("err_code") == code and bool(done.returncode) == bool(code), done.stderr[-2000:]
    return result


def test_class_folders_become_lists_and_a_table_and_stay_the_same_items(tmp_path):
    root = class_folders(tmp_path / "set")
    before = lists_of(root)
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    check(root, tmp_path / "a", *convert)
    assert (root / "label.txt").read_text(encoding="utf-8").split("\n")[:4] == ["cat", "dog", "red fox", "猫"]
    after = lists_of(root)
    assert after == before and require_lists(str(root))["train"].where(0) == "train.txt:1"
    check(root, tmp_path / "b", *convert, "CheckDataset.convert.to=CSV")
    assert lists_of(root) == before and require_lists(str(root))["query"].leave_one_out
    assert sorted(file.name for file in root.glob("*.bak")) == ["gallery.txt.bak", "query.txt.bak", "train.txt.bak"]
    check(root, tmp_path / "c", *convert, "CheckDataset.split.enable=True", "CheckDataset.split.train_percent=50",
          "CheckDataset.split.gallery_percent=30", "CheckDataset.split.query_percent=20")  # fmt: skip
    assert (root / "train.txt").is_file() and items(lists_of(root)) == items(before)


def test_boxes_and_bytes_become_files_with_the_same_pixels(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (root / "a.png").write_bytes(cv2.imencode(".png", picture(1))[1].tobytes())
    rows = [
        ("a.png", f"c{i % 2}", part, i, i, i + 9, i + 8) for i in range(4) for part in ("train", "query", "gallery")
    ]
    with (root / "boxes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split", "x1", "y1", "x2", "y2"), *rows])
    sources = [read_bgr(file) for file in require_lists(str(root))["train"].files()]
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=Table")
    check(root, tmp_path / "a", *convert, code="convert-needs-crops")
    assert not (root / "train.txt").exists()
    check(root, tmp_path / "b", *convert, "CheckDataset.convert.crops=True")
    written = require_lists(str(root))["train"]
    assert all(np.array_equal(read_bgr(file), pixels) for file, pixels in zip(written.files(), sources, strict=True))
    assert written.paths[0].startswith("crops/")


def test_shards_are_checked_and_unpacked(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    contents = {}
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}-0000.tar", "w") as archive:
            for i in range(4):
                contents[part, i] = cv2.imencode(".jpg", picture(i + 4 * (part == "test")))[1].tobytes()
                for suffix, data in (("jpg", contents[part, i]), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    result = check(root, tmp_path / "a")
    assert result["check_pass"] and result["dataset_type"] == "TarShards" and result["attributes"]["train_samples"] == 4
    check(root, tmp_path / "b", "CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto",
          "CheckDataset.convert.crops=True")  # fmt: skip
    files = require_lists(str(root))["train"].files()
    assert [Path(file).read_bytes() for file in files] == [contents["train", i] for i in range(4)]
    assert files[0].endswith(".jpg")


def lists_with_faults(root: Path) -> Path:
    class_folders(root)
    for name, folder in zip(LISTS, ("train", "test", "test"), strict=True):
        lines = [
            f"{p.relative_to(root).as_posix()} {p.parent.name}".replace("png ", "png\t")
            for p in sorted((root / folder).rglob("?.png"))
        ]
        chosen = lines if name == "train" else lines[::2] if name == "gallery" else lines[1::2]
        (root / f"{name}.txt").write_bytes("\r\n".join([*chosen, chosen[0]]).encode())
    (root / "train/cat/3.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (root / "train/dog/3.png").unlink()
    return root


def test_faults_with_one_right_answer_are_mended(tmp_path):
    root = lists_with_faults(tmp_path / "set")
    before = {name: (root / f"{name}.txt").read_bytes() for name in LISTS}
    check(root, tmp_path / "a", code="check-failed")
    kinds = "[missing, undecodable, duplicates, line-ends, names]"
    result = check(root, tmp_path / "b", f"CheckDataset.fix={kinds}")
    codes = {finding["code"] for finding in result["findings"]}
    assert result["check_pass"] and not codes & {"image-missing", "image-undecodable", "line-repeated", "label-names"}
    text = (root / "train.txt").read_bytes()
    assert b"\r" not in text and len(text.splitlines()) == 6 and text.splitlines()[0] == b"train/cat/0.png 0"
    assert {name: (root / f"{name}.txt.bak").read_bytes() for name in LISTS} == before
    assert (root / "label.txt").read_text(encoding="utf-8").splitlines() == ["cat", "dog", "red fox", "猫"]


def test_marked_suspects_are_dropped_and_relabelled(tmp_path):
    root = class_folders(tmp_path / "set")
    check(root, tmp_path / "a", "CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    table = tmp_path / "suspects.csv"
    table.write_text(
        "action,list,path,label\ndrop,train,train/cat/0.png,0\ndog,train,train/cat/1.png,0\n"
        "drop,gallery,test/red fox/0.png,2\n,train,train/cat/2.png,0\n"
    )
    check(root, tmp_path / "b", "CheckDataset.fix=[suspects]", f"CheckDataset.suspects={table}")
    lines = (root / "train.txt").read_text().splitlines()
    assert "train/cat/0.png 0" not in lines and {"train/cat/1.png 1", "train/cat/2.png 0"} <= set(lines)
    assert (root / "gallery.txt").read_text() == (root / "query.txt").read_text()  # dropped from both
    backups = len(list(root.glob("train.txt.bak*")))
    check(root, tmp_path / "c", "CheckDataset.fix=[duplicates]")  # nothing to do
    assert len(list(root.glob("train.txt.bak*"))) == backups


def test_what_cannot_be_mended_is_said(tmp_path):
    root = class_folders(tmp_path / "set")
    check(root, tmp_path / "a", "CheckDataset.fix=[missing]", code="fix-needs-lists")
    check(root, tmp_path / "b", "CheckDataset.fix=[suspects]", code="invalid-config")
    check(root, tmp_path / "c", "Global.dataset_format=ClasFolders", code="unknown-name")


def test_tables_keep_classes_apart_and_refuse_what_they_cannot_hold(tmp_path):
    root = class_folders(tmp_path / "set")
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    check(root, tmp_path / "a", *convert)
    (root / "label.txt").write_text("crane\ncrane\nred fox\nfox\n")
    check(root, tmp_path / "b", *convert, "CheckDataset.convert.to=CSV")
    names = {name for records in lists_of(root).values() for _, name in records}
    assert names == {"crane (0)", "crane (1)", "red fox", "fox"}

    odd = class_folders(tmp_path / "odd")
    (odd / "train/cat").rename(odd / "train/c\nat")
    check(odd, tmp_path / "c", *convert, "CheckDataset.convert.to=CSV", code="path-unlistable")
    assert not (odd / "data.csv").exists()


def test_a_converted_table_counts_before_what_it_was_made_of(tmp_path):
    root = class_folders(tmp_path / "set")
    images = [{"id": i, "file_name": f"train/cat/{i}.png", "width": 32, "height": 24} for i in range(4)]
    boxes = [{"id": i, "image_id": i % 4, "category_id": i % 4, "bbox": [1, 1, 20, 10 + i]} for i in range(12)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(4)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "coco.json").write_text(json.dumps(content))
    before = lists_of(root, "COCO")
    check(root, tmp_path / "a", "CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=COCO",
          "CheckDataset.convert.to=CSV")  # fmt: skip
    assert items(lists_of(root)) == items(before) and reader_of(find_root(str(root))).name == "Table"


def test_crops_are_written_whole_and_what_cannot_be_decoded_is_named(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    rows = [("path", "label", "split", "x1", "y1", "x2", "y2")]
    for i in range(6):
        (root / f"{i}.png").write_bytes(cv2.imencode(".png", picture(i))[1].tobytes())
        rows += [(f"{i}.png", f"c{i % 2}", part, 1, 1, 12, 12) for part in ("train", "query", "gallery")]
    with (root / "boxes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    for broken in (1, 2):
        (root / f"{broken}.png").write_bytes((root / f"{broken}.png").read_bytes()[:60])
    words = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=Table",
             "CheckDataset.convert.crops=True")  # fmt: skip
    told = check(root, tmp_path / "a", *words, code="crops-undecodable")["err_msg"]
    assert "2 images" in told and "1.png" in told and "2.png" in told and not list(root.glob("crops*"))
    check(root, tmp_path / "b", *words, "CheckDataset.fix=[undecodable]")
    assert len(require_lists(str(root))["train"]) == 4 and len(list((root / "crops").iterdir())) == 4


def test_article_numbers_are_names(tmp_path):
    root = tmp_path / "set"
    for number, name in enumerate(("0012345678901", "0012345678902", "4012345678901", "9999999999999")):
        for i in range(4):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{i}.png").write_bytes(cv2.imencode(".png", picture(1000 * number + i))[1].tobytes())
    check(root, tmp_path / "a", "CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    assert (root / "label.txt").read_text().split()[0] == "0012345678901"


def test_a_table_whose_images_are_elsewhere_is_not_passed_over(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "data.csv").write_text("path,label\nphotos\\\\1.png,shoe\n")
    result = check(root, tmp_path / "a", code="several-formats")
    assert "Table" in result["err_msg"] and "ClassFolders" in result["err_msg"]
    check(root, tmp_path / "b", "Global.dataset_format=ClassFolders")
    (root / "data.csv").write_text("name,what\n1.png,shoe\n")
    check(root, tmp_path / "c")  # no table of images
    (tmp_path / "one").mkdir()
    (tmp_path / "one/data.csv").write_text("name,what\n1.png,shoe\n")
    told = check(tmp_path / "one", tmp_path / "d", code="no-dataset")["err_msg"]
    assert "data.csv has no column of paths" in told and "'name', 'what'" in told


def test_a_set_without_training_images_does_not_pass(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "train").rename(root / "gallery")
    (root / "test").rename(root / "query")
    result = check(root, tmp_path / "a", code="check-failed")
    assert "part-without-images" in {f["code"] for f in result["findings"] if f["severity"] == "error"}


def two_formats(root: Path) -> Path:
    """Boxes that both Pascal VOC and COCO describe."""
    images, marks = [], []
    for i in range(8):
        file = root / f"JPEGImages/{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", picture(i))[1].tobytes())
        box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
        text = f"<annotation><filename>{i}.png</filename><object><name>c{i % 4}</name>{box}</object></annotation>"
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{i}.xml").write_text(text)
        images.append({"id": i, "file_name": f"JPEGImages/{i}.png"})
        marks.append({"image_id": i, "category_id": i % 4, "bbox": [2, 2, 18, 18]})
    categories = [{"id": i, "name": f"c{i}"} for i in range(4)]
    content = {"images": images, "annotations": marks, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def test_the_named_format_is_converted_and_the_lists_are_used_from_then_on(tmp_path):
    root = two_formats(tmp_path / "set")
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    check(root, tmp_path / "a", *convert, "CheckDataset.convert.crops=True", code="several-formats")
    more = ("Global.dataset_format=COCO", "CheckDataset.convert.crops=True", "CheckDataset.fix=[missing]")
    result = check(root, tmp_path / "b", *convert, *more)
    assert result["dataset_type"] == "ShiTuRecDataset" and result["attributes"]["train_samples"] == 4


def test_marks_of_boxes_are_applied_before_anything_is_written(tmp_path):
    root = two_formats(tmp_path / "set")
    (root / "annotations.json").unlink()
    table, before = tmp_path / "marks.csv", sorted(root.rglob("*"))
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    words = (
        *convert,
        "CheckDataset.convert.crops=True",
        "CheckDataset.fix=[suspects]",
        f"CheckDataset.suspects={table}",
    )
    table.write_text("action,list,path,label\ndrop,train,nowhere.png,0\n")
    check(root, tmp_path / "a", *words, code="suspects-unreadable")
    assert sorted(root.rglob("*")) == before
    (name, _), *_ = lists_of(root)["train"]
    label = require_lists(str(root))["train"].labels[0]
    table.write_text(f'action,list,path,label\ndrop,train,"{name}",{label}\n')
    count = len(items(lists_of(root)))
    check(root, tmp_path / "b", *words)
    assert len(items(lists_of(root))) == count - 1


def test_a_table_is_corrected_as_lists_are(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "test/猫/9.png").write_bytes(b"no image")
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    check(root, tmp_path / "a", *convert, "CheckDataset.convert.to=CSV", "CheckDataset.fix=[undecodable]")
    assert "9.png" not in (root / "data.csv").read_text(encoding="utf-8")


def test_a_class_called_minus_one_stays_one(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "train/cat").rename(root / "train/-1")
    before = items(lists_of(root))
    convert = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=auto")
    check(root, tmp_path / "a", *convert, "CheckDataset.convert.to=CSV")
    assert items(lists_of(root)) == before


def test_names_of_lists_are_numbered_by_label_txt(tmp_path):
    root = class_folders(tmp_path / "set")
    lines = [f"train/{name}/{i}.png {name}\n" for name in ("cat", "dog") for i in range(4)]
    for name in LISTS:
        (root / f"{name}.txt").write_text("".join(lines))
    (root / "label.txt").write_text("dog\nbird\ncat\n")
    assert require_lists(str(root))["train"].labels == [2] * 4 + [0] * 4
    check(root, tmp_path / "a", "CheckDataset.fix=[names]")
    assert (root / "label.txt").read_text().splitlines() == ["dog", "bird", "cat"]
    assert (root / "train.txt").read_text().splitlines()[0] == "train/cat/0.png 2"
