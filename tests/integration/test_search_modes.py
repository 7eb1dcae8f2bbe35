"""Modes index and search from the command: build, change, ask, and go on after a kill."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import ROOT, run_here

from paddlex_feat.errors import GalleryError
from paddlex_feat.search.gallery import Gallery

CONFIG = "PP-ShiTuV2_rec"


@pytest.fixture(scope="module")
def model(run_folder) -> str:
    return str(run_folder / "best_model/inference")


@pytest.fixture
def people(faces, tmp_path) -> Path:
    """A folder a person, of eight people with four photographs each."""
    for person in range(21, 29):
        folder = tmp_path / "people" / f"person {person}"
        folder.mkdir(parents=True)
        for i in range(1, 5):
            shutil.copy(faces / "images" / f"s{person}" / f"{i:02d}.pgm", folder / f"{i}.pgm")
    return tmp_path / "people"


def run(mode: str, output: Path, model: str, *words: str, code: str | None = None) -> dict:
    settings = (f"Global.mode={mode}", f"Global.output={output}", "Global.device=cpu", f"Predict.model_dir={model}")
    done = run_here("-c", CONFIG, *(word for setting in (*settings, *words) for word in ("-o", setting)))
    result = json.loads((output / f"{mode}_result.json").read_text(encoding="utf-8"))
    assert result.get("err_code") == code and bool(done.returncode) == bool(code), done.stderr[-3000:]
    result["stdout"] = done.stdout
    return result


def test_from_photographs_to_answers(people, model, faces, tmp_path):
    out = tmp_path / "out"
    result = run("index", out, model, f"Index.input={people}")
    assert result["added"] == result["images"] == 32 and Path(result["path"]) == out / "images.gallery"
    known = [str(faces / "images" / f"s{person}" / "05.pgm") for person in (21, 22)]
    result = run("search", out, model, f"Search.input=[{', '.join(known)}]", "Search.topk=3", "Search.threshold=none")
    assert result["queries"] == result["known"] == 2 and result["threshold"] is None
    rows = [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]
    assert [row["query"] for row in rows] == known and all(len(row["hits"]) == 3 for row in rows)
    for row in rows:
        assert row["label"] == row["hits"][0]["label"] and row["hits"][0]["score"] >= row["hits"][1]["score"]
        assert f"{row['query']}: {row['label']} ({row['hits'][0]['score']:.4f}" in result["stdout"]
    with (out / "search.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 6 and table[0]["key"] == rows[0]["hits"][0]["key"]
    page = (out / "search.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8 and "person 2" in page and 'src="http' not in page

    result = run("search", out, model, f"Search.input={known[0]}")
    assert 0 < result["threshold"] < 1.01 and result["known"] + result["unknown"] == 1
    run("search", out, model, f"Search.input={known[0]}", "Search.threshold=1.0")
    assert "unknown" in (out / "search.html").read_text()


def test_a_gallery_is_changed_by_the_command(people, model, tmp_path):
    out = tmp_path / "out"
    run("index", out, model, f"Index.input={people}")
    assert run("index", out, model, f"Index.input={people}")["unchanged"] == 32  # nothing is left to do
    other = f"Index.input={people / 'person 21'}"
    assert "already" in run("index", out, model, other, code="gallery-exists")["err_msg"]
    assert run("index", out, model, "Index.action=add", f"Index.input={people}")["unchanged"] == 32

    cv2.imwrite(str(people / "person 21/1.pgm"), np.full((112, 92), 90, np.uint8))
    (people / "person 22/2.pgm").unlink()
    shutil.copytree(people / "person 23", people / "someone new")
    result = run("index", out, model, "Index.action=update", f"Index.input={people}")
    counts = [result[name] for name in ("added", "replaced", "unchanged", "removed", "images")]
    assert counts == [4, 1, 30, 1, 35]

    result = run("index", out, model, "Index.action=list", "Index.labels=someone new")
    with (out / result["file"]).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert result["images"] == len(rows) == 4 and {row["label"] for row in rows} == {"someone new"}
    assert run("index", out, model, "Index.action=remove", f"Index.keys=[{rows[0]['key']}]")["removed"] == 1
    assert run("index", out, model, "Index.action=remove", "Index.labels=[someone new]")["images"] == 31
    run("index", out, model, "Index.action=remove", code="remove-nothing")

    stats = run("index", out, model, "Index.action=stats")
    assert stats["images"] == 31 and stats["labels"] == 8 and stats["model"]["name"] == CONFIG
    assert stats["threshold"]["classes"] == 8 and stats["threshold"]["confidence"] == 0
    before = run("index", out, model, "Index.action=compact")
    assert before["bytes"] <= before["bytes_before"]
    assert run("index", out, model, "Index.action=rebuild")["images"] == 31


def test_lists_of_paths_and_labels_and_lists_of_a_data_set(people, model, tmp_path):
    lines = ["person 21/1.pgm 21", "person 22/1.pgm\ttwenty two", "person 23/1.pgm"]
    (people / "gallery_label.txt").write_text("\n".join([*lines, ""]))
    run("index", tmp_path / "a", model, f"Index.input={people / 'gallery_label.txt'}")
    with Gallery(tmp_path / "a/images.gallery") as gallery:
        assert [(i.key, i.label) for i in gallery.items()] == [
            (str(people / "person 21/1.pgm"), "21"),
            (str(people / "person 22/1.pgm"), "twenty two"),
            (str(people / "person 23/1.pgm"), None),
        ]
    (people / "gallery_label.txt").unlink()
    result = run("index", tmp_path / "b", model, f"Global.dataset_dir={people}", "Index.lists=[gallery, query]",
                 code=None)  # fmt: skip
    assert result["images"] == 32  # a data set that is not divided is taken whole
    run("index", tmp_path / "c", model, "Global.dataset_dir=/nowhere", code="dataset-folder-missing")
    run("index", tmp_path / "c", model, f"Global.dataset_dir={people}", "Index.lists=[all]", code="list-unknown")


def test_inputs_of_the_same_names_do_not_replace_each_other(people, model, tmp_path):
    other = shutil.copytree(people, tmp_path / "other")
    relative = os.path.relpath(people, ROOT)
    run("index", tmp_path / "out", model, f"Index.input={relative}")
    assert run("index", tmp_path / "out", model, f"Index.input={relative}/")["unchanged"] == 32
    result = run("index", tmp_path / "out", model, "Index.action=add", f"Index.input={other}")
    assert (result["added"], result["replaced"], result["images"]) == (32, 0, 64)
    with Gallery(tmp_path / "out/images.gallery") as gallery:
        assert all(Path(str(item.path)).is_absolute() for item in gallery.items())  # found from anywhere, as by rebuild
    assert run("index", tmp_path / "out", model, "Index.action=rebuild")["images"] == 64


def test_an_input_without_images_removes_nothing(people, model, tmp_path):
    run("index", tmp_path / "out", model, f"Index.input={people}")
    (tmp_path / "empty.txt").write_text("")
    wrong = f"Index.input={tmp_path / 'empty.txt'}"
    run("index", tmp_path / "out", model, "Index.action=update", wrong, code="input-without-images")
    run("index", tmp_path / "out", model, "Index.action=update", "Index.lists=[]", code="invalid-config")
    assert run("index", tmp_path / "out", model, "Index.action=list")["images"] == 32


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_cannot_be_kept_and_images_that_come_twice(people, model, tmp_path):
    odd = people / os.fsdecode(b"person 21/\xff.pgm")
    shutil.copy(people / "person 21/1.pgm", odd)
    words = (f"Index.input={people}", "Predict.on_error=skip")
    result = run("index", tmp_path / "a", model, *words, code="inputs-failed")
    assert result["added"] == 32 and len(result["failed"]) == 1
    odd.unlink()
    (people / "labels.txt").write_text("person 21/1.pgm one\nperson 21/1.pgm two\nperson 22/1.pgm two\n")
    for added in (2, 0):  # the first line counts each time
        assert run("index", tmp_path / "b", model, f"Index.input={people / 'labels.txt'}")["added"] == added
        with Gallery(tmp_path / "b/images.gallery") as gallery:
            assert [item.label for item in gallery.items()] == ["one", "two"]


def test_shards_are_not_embedded_twice(people, model, tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for number, file in enumerate(sorted(people.rglob("*.pgm"))):
            for suffix, data in (("pgm", file.read_bytes()), ("cls", str(number // 4).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    shutil.rmtree(people)
    words = (f"Index.input={tmp_path}", f"Index.path={tmp_path}/own/a.gallery")
    assert run("index", tmp_path / "own", model, *words)["added"] == 32
    assert run("index", tmp_path / "own", model, *words)["unchanged"] == 32
    run("index", tmp_path / "own", model, *words, "Index.action=rebuild", code="rebuild-without-file")


def test_inputs_that_fail_are_named_and_the_others_are_kept(people, model, tmp_path):
    (people / "person 21/9.jpg").write_bytes(b"\xff\xd8\xff nothing")
    result = run("index", tmp_path / "out", model, f"Index.input={people}", code="inputs-failed")
    assert "9.jpg" in result["err_msg"] and result["added"] == 32
    (people / "person 21/9.jpg").unlink()
    assert run("index", tmp_path / "out", model, f"Index.input={people}")["unchanged"] == 32  # it goes on
    good = str(people / "person 22/1.pgm")
    result = run("search", tmp_path / "out", model, f"Search.input=[{good}, /nowhere.jpg]", code="inputs-failed")
    assert result["queries"] == 1 and result["failed"][0]["input"] == "/nowhere.jpg"
    run("search", tmp_path / "none", model, f"Search.input={good}", code="gallery-missing")
    run("search", tmp_path / "out", model, code="input-missing")


@pytest.mark.slow
def test_galleries_are_written_and_read_in_other_forms(people, model, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("faiss")
    run("index", tmp_path / "a", model, f"Index.input={people}")
    with Gallery(tmp_path / "a/images.gallery") as gallery:
        expected = {item.key: item.label for item in gallery.items()}
        rows = np.concatenate([rows for _, rows in gallery.rows()])
    for form, source in (("npz", "features.npz"), ("parquet", "features.parquet"), ("paddlex", ".")):
        run("index", tmp_path / "a", model, "Index.action=export", f"Index.format={form}")
        out = tmp_path / form
        result = run("index", out, model, "Index.action=import", f"Index.input={tmp_path / 'a' / source}")
        assert result["added"] == 32
        with Gallery(out / "images.gallery") as gallery:
            found = {item.key: item.label for item in gallery.items()}
            assert (np.concatenate([r for _, r in gallery.rows()]) == rows).all()
        assert list(found.values()) == list(expected.values()) and (form == "paddlex" or found == expected)
    (tmp_path / "a/vector.index").write_bytes(b"IxMp" + bytes(range(200)))
    run("index", tmp_path / "x", model, "Index.action=import", f"Index.input={tmp_path / 'a'}", code="import-unusable")
    file = tmp_path / "a/features.npz"
    for keys, rows, data in ((["a"], [["text"]], [""]), (["a"], [[1.0]], ["{"])):
        np.savez(file, keys=np.array(keys), features=np.array(rows), data=np.array(data))
        run("index", tmp_path / "x", model, "Index.action=import", f"Index.input={file}", code="import-unusable")
    file.write_bytes(b"PK\x03\x04 nothing")
    run("index", tmp_path / "x", model, "Index.action=import", f"Index.input={file}", code="import-unusable")


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_and_loses_nothing_that_was_acknowledged(faces, model, tmp_path):
    out, source = tmp_path / "out", faces / "images"
    settings = ("Global.mode=index", f"Global.output={out}", "Global.device=cpu", f"Predict.model_dir={model}")
    words = [w for s in (*settings, f"Index.input={source}", "Global.threads=1") for w in ("-o", s)]
    command, seen = [sys.executable, str(ROOT / "main.py"), "-c", CONFIG, *words], 0
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.3)
            if (out / "images.gallery").is_file():
                try:
                    with Gallery(out / "images.gallery") as gallery:
                        now = len(gallery)
                except GalleryError:  # it is being made
                    continue
                if now > seen:
                    seen = now
                    process.send_signal(signal.SIGKILL)
        process.wait()
        with Gallery(out / "images.gallery") as gallery:
            assert len(gallery) >= seen
            seen = len(gallery)
        if process.returncode == 0:
            break
    assert process.returncode == 0 and seen == 400
    result = json.loads((out / "index_result.json").read_text())
    assert result["images"] == 400 and result["unchanged"] > 0
