"""List files, checks, and what check_dataset writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.runs import run_here

from paddlex_feat.checks import runner as checks
from paddlex_feat.checks.context import CheckSettings
from paddlex_feat.data.readers import find_root, require_lists
from paddlex_feat.data.readers.list_text import mixture
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import DatasetError

SETTINGS = CheckSettings(batch_size=16, samples_per_class=4, num_classes=None, workers=2, input_size=64)
PX_KEYS = ["done_flag", "check_pass", "attributes", "analysis", "dataset_path", "show_type", "dataset_type"]


@pytest.fixture
def copy(small_faces, tmp_path) -> Path:
    """A data set that a test may damage."""
    (tmp_path / "images").symlink_to(small_faces / "images")
    for name in ("train", "gallery", "query"):
        (tmp_path / f"{name}.txt").write_bytes((small_faces / f"{name}.txt").read_bytes())
    return tmp_path


def append(file: Path, text: str | bytes) -> None:
    with file.open("ab") as stream:
        stream.write(text if isinstance(text, bytes) else text.encode())


def codes(root: Path, settings: CheckSettings = SETTINGS) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in checks.check(root, replace(settings, input_size=64))[1]:
        if finding.severity != "note":
            found.setdefault(finding.code, []).append(finding.where)
    return found


def test_records_remember_file_and_line(tmp_path):
    (tmp_path / "train.txt").write_bytes("\ufeffa b.jpg 3\r\n\r\nc.jpg\t14\nd.jpg  5 ".encode())
    records, findings = read_list(tmp_path, "train")
    assert records.paths == ["a b.jpg", "c.jpg", "d.jpg"] and records.labels == [3, 14, 5]
    assert [records.where(i) for i in range(3)] == ["train.txt:1", "train.txt:3", "train.txt:4"] and not findings


@pytest.mark.parametrize(
    ("line", "code"),
    [("only_a_path.jpg", "line-format"), ("a.jpg x", "label-not-integer"), ("a.jpg -1", "label-not-integer"),
     ("a.jpg 1.5", "label-not-integer"), ("a.jpg ²", "label-not-integer"), ("17", "line-format")],
)  # fmt: skip
def test_a_malformed_line_is_a_finding_with_its_line(tmp_path, line, code):
    (tmp_path / "query.txt").write_text(f"ok.jpg 1\n{line}\nok.jpg 2\n")
    records, findings = read_list(tmp_path, "query")
    assert len(records) == 2 and [(f.code, f.where) for f in findings] == [(code, "query.txt:2")]


def test_missing_empty_and_undecodable_lists(tmp_path):
    assert read_list(tmp_path, "train")[1][0].code == "list-missing"
    (tmp_path / "train.txt").write_text("\n\n")
    assert read_list(tmp_path, "train")[1][0].code == "list-empty"
    (tmp_path / "train.txt").write_bytes(b"a.jpg 1\n\xff\xff.jpg 2\n")
    finding = read_list(tmp_path, "train")[1][0]
    assert (finding.code, finding.where) == ("list-encoding", "train.txt:2")


def test_a_gbk_list_is_read_and_said_so(tmp_path):
    (tmp_path / "train.txt").write_bytes("图像/一.jpg 3\n".encode("gbk"))
    records, findings = read_list(tmp_path, "train")
    assert records.paths == ["图像/一.jpg"] and records.labels == [3]
    assert [(f.code, f.severity) for f in findings] == [("list-gbk", "warning")]


def test_the_root_is_found_below_the_given_folder(faces, tmp_path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "set").symlink_to(faces)
    assert find_root(str(tmp_path)) == deep / "set"  # through a link
    (deep / "set").unlink()
    (deep / "loop").symlink_to(tmp_path)
    with pytest.raises(DatasetError) as caught:
        find_root(str(tmp_path))
    assert caught.value.code == "no-dataset"
    for name in ("train", "gallery", "query"):
        (deep / f"{name}.txt").write_text("x.jpg 0\n")
    assert find_root(str(tmp_path)) == deep == find_root(str(deep))


def test_several_roots_are_listed(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("train", "gallery", "query"):
            (tmp_path / folder / f"{name}.txt").write_text("x.jpg 0\n")
    with pytest.raises(DatasetError, match=r"one.*two"):
        find_root(str(tmp_path))


def test_a_good_data_set_has_no_findings(copy):
    assert codes(copy) == {}


def test_every_fault_is_found_in_one_run(copy):
    (copy / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    (copy / "empty.png").write_bytes(b"")
    (copy / "folder.jpg").mkdir()
    append(copy / "train.txt", "broken.jpg 1\nempty.png 1\nfolder.jpg 1\nabsent.jpg 1\nbad line x\n")
    append(copy / "query.txt", "absent.jpg 5\n")
    found = codes(copy)
    assert found["image-undecodable"] == ["train.txt:81"] and found["image-empty"] == ["train.txt:82"]
    assert found["image-is-folder"] == ["train.txt:83"]
    assert found["image-missing"] == ["train.txt:84", "query.txt:13"]
    assert found["label-not-integer"] == ["train.txt:85"]
    assert found["query-unmatched"] == ["query.txt:13"]


def test_a_truncated_image_is_found(copy, faces):
    import cv2

    from paddlex_feat.data.images.decode import read_rgb

    data = cv2.imencode(".png", read_rgb(faces / "images/s01/01.pgm"))[1].tobytes()
    (copy / "cut.png").write_bytes(data[: len(data) // 3])
    append(copy / "train.txt", "cut.png 1\n")
    assert codes(copy)["image-truncated"] == ["train.txt:81"]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (CheckSettings(18, 4, None, 2), "sampler-batch"),  # not a multiple
        (CheckSettings(40, 4, None, 2), "sampler-batch"),  # more than 8 classes
        (CheckSettings(16, 4, 7, 2), "num-classes-too-small"),
        (CheckSettings(22, 11, None, 2), "class-small"),
    ],
)
def test_the_lists_must_fit_the_training_settings(copy, settings, code):
    assert code in codes(copy, settings)


def test_settings_that_fit(copy):
    assert codes(copy, CheckSettings(40, None, 8, 2)) == {}


def test_one_class_is_an_error(copy):
    lines = (copy / "train.txt").read_text().splitlines()
    (copy / "train.txt").write_text("\n".join(f"{line.split()[0]} 7" for line in lines) + "\n")
    assert codes(copy, CheckSettings(4, 4, None, 2)) == {"train-one-class": ["train.txt"]}


def test_no_query_with_a_match_is_an_error(copy):
    (copy / "gallery.txt").write_text("images/s30/01.pgm 999\n")
    assert list(codes(copy)) == ["query-none-matched"]


def test_modes_that_need_lists_name_the_bad_lines(copy):
    append(copy / "query.txt", "x\n")
    with pytest.raises(DatasetError, match=r"query\.txt:13"):
        require_lists(str(copy), ("gallery", "query"))
    assert len(require_lists(str(copy), ("train",))["train"]) == 80


def check_mode(data: Path, output: Path, *overrides: str) -> tuple[int, dict, str]:
    settings = (f"Global.dataset_dir={data}", f"Global.output={output}", "Train.batch_size=16", *overrides)
    done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)))
    return done.returncode, json.loads((output / "check_dataset_result.json").read_text()), done.stderr


def test_the_result_has_the_manuals_schema_and_files(copy, tmp_path):
    code, result, text = check_mode(copy, tmp_path / "out")
    assert code == 0 and "Check dataset passed !" in text
    assert list(result) == [*PX_KEYS, "findings"]
    attributes = result["attributes"]
    assert list(attributes) == [
        f"{name}_{what}" for name in ("train", "gallery", "query") for what in ("samples", "sample_paths")
    ]
    assert (attributes["train_samples"], attributes["gallery_samples"], attributes["query_samples"]) == (80, 12, 12)
    assert result["dataset_path"] == str(copy) and result["show_type"] == "image"
    for name in ("train", "gallery", "query"):
        paths = attributes[f"{name}_sample_paths"]
        assert len(paths) == len(set(paths)) == 10
        assert all((tmp_path / "out" / p).stat().st_size > 0 for p in paths)
    assert (tmp_path / "out" / "check_dataset" / "histogram.png").read_bytes()[:4] == b"\x89PNG"


def test_a_data_set_that_fails_exits_with_1_and_keeps_its_findings(copy, tmp_path):
    append(copy / "train.txt", "../../etc/passwd 3\n")
    code, result, text = check_mode(copy, tmp_path / "out")
    assert code == 1 and result["done_flag"] is False and result["check_pass"] is False
    assert result["findings"][0]["where"] == "train.txt:81" and "train.txt:81" in text
    assert result["attributes"]["train_samples"] == 81


def test_samples_depend_on_the_lists_alone(copy, tmp_path):
    first, second = check_mode(copy, tmp_path / "a")[1], check_mode(copy, tmp_path / "b")[1]
    assert first == second


def test_samples_stay_in_their_folder(tmp_path, faces):
    inside = tmp_path / "set" / "deep"
    inside.mkdir(parents=True)
    (tmp_path / "set" / "up.pgm").write_bytes((faces / "images/s01/01.pgm").read_bytes())
    for name in ("train", "gallery", "query"):
        (inside / f"{name}.txt").write_text("../up.pgm 0\n")
    _, result, _ = check_mode(inside, tmp_path / "out", "Train.batch_size=4")
    assert result["attributes"]["train_sample_paths"] == ["check_dataset/demo_img/up.pgm.png"]


@pytest.mark.parametrize("wide", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("first", "line"),
    [
        ("红/一.jpg 1\nb.jpg 2\n".encode(), 3),
        ("红/一.jpg 1\r\nb.jpg 22\r\n".encode("gbk"), 3),
        (b"a.jpg 1\nb.jpg 2", 2),  # the last line had no end
    ],
)
def test_a_list_that_turns_into_utf16_names_the_line(wide, mark, first, line, tmp_path):
    (tmp_path / "train.txt").write_bytes(first + (mark + "照片/c.jpg 3\r\nd.jpg 4\r\n").encode(wide))
    findings = read_list(tmp_path, "train")[1]
    assert [(f.code, f.where) for f in findings] == [("list-encoding", f"train.txt:{line}")]
    assert f"UTF-16 from line {line} on" in findings[0].message
    assert findings[0].fix.startswith(f"Write line {line} and those after it again as UTF-8")


@pytest.mark.parametrize("wide", ["utf-16-le", "utf-16-be"])
def test_utf8_appended_to_a_list_of_utf16_names_the_line(wide, tmp_path):
    (tmp_path / "train.txt").write_bytes("\ufeff红.jpg 1\r\nb.jpg 2\r\n".encode(wide) + "照片/c.jpg 3\n".encode())
    findings = read_list(tmp_path, "train")[1]
    assert [f.where for f in findings] == ["train.txt:3"] and "UTF-16 before line 3" in findings[0].message
    assert findings[0].fix.startswith("Write the lines before line 3 again as UTF-8")


@pytest.mark.parametrize("wide", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_of_one_encoding_is_not_a_mixture(wide, mark):
    for text in ("照片/一.jpg 1\r\nb.jpg 2\r\n" * 500, "上海/1.jpg 2\n上/2.jpg 3\n"):  # 上 holds the byte of \\n
        assert mixture((mark + text).encode(wide)) is None
        assert mixture(text.encode()) is None
    assert mixture(b"a.jpg 1\nb\0.jpg 2\n") is None
