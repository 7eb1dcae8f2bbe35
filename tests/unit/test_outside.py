"""Paths that lead out of a data set, and what a check leaves in demo_img."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import run_here

from paddlex_feat.checks import image_info
from paddlex_feat.checks.context import CheckSettings
from paddlex_feat.checks.runner import check
from paddlex_feat.data.images import decode
from paddlex_feat.data.lists import outside
from paddlex_feat.data.readers import LISTS, require_lists
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import DatasetError
from paddlex_feat.reports import dataset_pictures


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """A data set of 12 images, and an image outside it."""
    folder = tmp_path / "set"
    lines: dict[str, list[str]] = {name: [] for name in LISTS}
    for i in range(12):
        draw(folder / f"images/{i}.png", i)
        lines[LISTS[0] if i < 8 else LISTS[1 + i // 2 % 2]].append(f"images/{i}.png {i % 2}")
    for name in LISTS:
        (folder / f"{name}.txt").write_text("\n".join(lines[name]) + "\n")
    draw(tmp_path / "secret/x.png", 99)
    return folder


def add(root: Path, name: str, line: str) -> None:
    with (root / f"{name}.txt").open("a") as stream:
        stream.write(f"{line} 0\n")


def linked(root: Path, kind: str) -> str:
    """A path in the data set that leads to the image outside."""
    secret = root.parent / "secret"
    if kind == "file link":
        (root / "images/l.png").symlink_to(secret / "x.png")
        return "images/l.png"
    if kind == "folder link":
        (root / "images/l").symlink_to(secret)
        return "images/l/x.png"
    if kind == "link to a link":
        (root / "first").symlink_to("images/second")
        (root / "images/second").symlink_to("../../secret")
        return "first/x.png"
    return {"absolute": str(secret / "x.png"), "leaves": "images/../../secret/x.png"}[kind]


KINDS = {
    "absolute": "path-absolute",
    **dict.fromkeys(("leaves", "file link", "folder link", "link to a link"), "path-leaves"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_refused_paths_are_errors_with_file_and_line_and_never_opened(root, kind, monkeypatch):
    path = linked(root, kind)
    add(root, "query", path)
    opened: list[str] = []
    read, content = image_info._read, decode.read_content
    monkeypatch.setattr(image_info, "_read", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr(decode, "read_content", lambda path: opened.append(str(path)) or content(path))
    settings = CheckSettings(batch_size=4, samples_per_class=2, num_classes=None, workers=1, refuse_outside=True)
    data, findings = check(root, settings)
    (finding,) = (f for f in findings if f.code.startswith("path-"))
    assert (finding.code, finding.severity, finding.where) == (KINDS[kind], "error", "query.txt:3")
    assert path in finding.message and "CheckDataset.outside=warn" in finding.fix
    dataset_pictures.write_samples(data.lists, root.parent / "demo")
    assert len(set(opened)) == 12 and not any("secret" in name or path in name for name in opened)
    with pytest.raises(DatasetError, match=r"query\.txt:3"):
        require_lists(str(root), refuse_outside=True)
    assert len(require_lists(str(root))["query"]) == 3  # warn: as ever


def test_paths_that_stay_are_not_refused(root, tmp_path):
    (root / "again").symlink_to("images")
    (root / "images/copy.png").symlink_to("0.png")
    (root / "..odd").mkdir()
    for path in ("again/1.png", "images/copy.png", "./images/../images/2.png", "..odd/absent.png", "images/absent.png"):
        add(root, "query", path)
    (tmp_path / "link").symlink_to(root)  # the folder itself may be a link
    for folder in (root, tmp_path / "link"):
        records, findings = read_list(folder, "query", refuse_outside=True)
        assert len(records) == 7 and not findings
    assert outside.by_text("..odd/absent.png") is None


@pytest.mark.parametrize("mode", ["check_dataset", "train", "evaluate"])
def test_every_mode_that_reads_the_list_refuses(root, tmp_path, mode):
    add(root, "gallery", linked(root, "file link"))
    settings = [
        f"Global.mode={mode}",
        f"Global.dataset_dir={root}",
        f"Global.output={tmp_path}/out",
        "Global.device=cpu",
    ]
    settings += ["Train.pretrain_weight_path=null", "Train.batch_size=4", "Train.samples_per_class=2"]
    if mode == "evaluate":
        pytest.importorskip("paddle")
        settings.append(f"Evaluate.weight_path={tmp_path}/none.pdparams")
    settings.append("CheckDataset.outside=refuse")
    done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)))
    assert done.returncode == 1 and "gallery.txt:3: images/l.png leaves the data set's folder by a link" in done.stderr


# demo_img


def samples(root: Path, folder: Path) -> set[str]:
    lists = {name: read_list(root, name)[0] for name in LISTS}
    return {name for names in dataset_pictures.write_samples(lists, folder).values() for name in names}


def content(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and not p.name.startswith(".")}


def test_a_users_files_in_demo_img_stay(root, tmp_path):
    demo = tmp_path / "demo_img"
    first = samples(root, demo)
    (demo / "images/mine.txt").write_text("mine")
    (demo / "notes").mkdir()
    (demo / "link").symlink_to("/nowhere")
    os.mkfifo(demo / "pipe")
    changed = demo / sorted(first)[0]
    changed.write_bytes(b"a sample that the user has painted on")
    again = samples(root, demo)
    assert changed.read_bytes() == b"a sample that the user has painted on"
    assert again == first - {changed.relative_to(demo).as_posix()} | {
        changed.relative_to(demo).as_posix()[:-4] + "_2.png"
    }
    assert content(demo) == again | {"images/mine.txt", "link", "pipe", changed.relative_to(demo).as_posix()}
    assert (demo / "notes").is_dir()


def test_samples_of_an_earlier_check_go_with_their_folders(root, tmp_path):
    demo = tmp_path / "demo_img"
    assert samples(root, demo) == content(demo) == {f"images/{i}.png" for i in range(12)}
    (root / "images").rename(root / "other")
    for name in LISTS:
        (root / f"{name}.txt").write_text((root / f"{name}.txt").read_text().replace("images/", "other/"))
    assert samples(root, demo) == content(demo) == {f"other/{i}.png" for i in range(12)}
    assert not (demo / "images").exists()


def test_a_name_that_the_user_has_taken_is_left_to_him(root, tmp_path):
    mine = draw(tmp_path / "demo_img/images/0.png", 77).read_bytes()
    assert "images/0_2.png" in samples(root, tmp_path / "demo_img")
    assert (tmp_path / "demo_img/images/0.png").read_bytes() == mine


def test_a_record_of_samples_that_names_files_elsewhere_removes_none(root, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    demo = tmp_path / "demo_img"
    samples(root, demo)
    record = demo / ".paddlex_feat.samples.json"
    digest = sha256(b"mine").hexdigest()
    record.write_text(json.dumps({"samples": {"../victim.txt": digest, str(victim): digest, "": 3, "x": None}}))
    samples(root, demo)
    assert victim.read_text() == "mine"
    record.write_text("[1, 2]")
    assert samples(root, demo) == content(demo)


def test_a_path_that_begins_with_two_slashes_writes_no_sample_outside(root, tmp_path):
    add(root, "query", f"/{tmp_path}/secret/x.png")
    before = content(tmp_path / "secret")
    assert any(name.endswith("secret/x.png") for name in samples(root, tmp_path / "demo_img"))
    assert content(tmp_path / "secret") == before
