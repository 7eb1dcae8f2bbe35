"""What is tested with a trained network: counts of what predict leaves out, and what an engine does to its process."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import run_here

paddle = pytest.importorskip("paddle")

from paddlex_feat.inference.engines import EngineOptions
from paddlex_feat.inference.engines.paddle_engine import PaddleEngine

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)


def encoded(suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, IMAGE)[1].tobytes()


def put(folder: Path, *names: str, data: bytes | None = None) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded() if data is None else data)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_takes_them_and_counts_what_it_left_out(run_folder, here):
    put(here / "p", *(f"a{suffix}" for suffix in (".jpg", ".jfif", ".jpe", "")))
    put(here / "p", "d.gif", data=encoded(".gif"))
    put(here / "p", "notes.txt", ".hidden.jpg", data=b"text")
    Path("l.txt").write_text("p/a.jpg 3\np/absent.jpg 3\n")
    given = "Predict.input=[p, './p/*.jpg', l.txt, \"a.jpg,b.jpg\"]"
    settings = (
        f"Predict.model_dir={run_folder}/best_model/inference",
        "Predict.save=jsonl",
        f"Global.output={here}/out",
    )
    words = [w for s in ("Global.mode=predict", "Global.device=cpu", *settings, given) for w in ("-o", s)]
    done = run_here("-c", "PP-ShiTuV2_rec", *words, cwd=here)
    result = json.loads((here / "out/predict_result.json").read_text())
    paths = [json.loads(line)["input_path"] for line in (here / "out/features.jsonl").read_text().splitlines()]
    assert paths == ["p/a", "p/a.jfif", "p/a.jpe", "p/a.jpg", "p/d.gif", "./p/a.jpg", "p/a.jpg"], done.stderr
    assert result["left_out"] == {".txt files": 1, "hidden files": 1} and done.returncode == 1
    assert [row["input"] for row in result["failed"]] == ["p/absent.jpg 3", "a.jpg,b.jpg"]
    assert "-o 'Predict.input=[a.jpg, b.jpg]'" in done.stderr and done.stderr.count("left out: ") == 1


def test_a_model_counts_for_each_call_and_keeps_no_pictures(model, here):
    put(here / "p", "a.jpg", "._a.jpg")
    assert len(list(model.predict("p"))) == 1 and model.left_out == {"hidden files": 1}
    text = base64.b64encode(encoded()).decode() * 1000
    list(model.predict([text, "p/a.jpg"], on_error="skip"))
    assert not model.left_out and len(model.failed) == 1 and len(str(model.failed)) < 500
    shutil.rmtree("p")


def test_an_evaluation_changes_no_bit_of_what_is_trained(run_folder):
    """Paddle Inference would leave the process's matrix library at one thread, which rounds otherwise."""
    a, b = (paddle.to_tensor(RNG.standard_normal(shape), "float32") for shape in ((16, 512), (512, 20)))
    paddle.base.core.set_num_threads(2)
    before = (a @ b).numpy()
    PaddleEngine(run_folder / "best_model/inference", EngineOptions(device="cpu", threads=2)).run(
        np.zeros((4, 3, 32, 32), np.float32)
    )
    assert np.array_equal((a @ b).numpy(), before)
