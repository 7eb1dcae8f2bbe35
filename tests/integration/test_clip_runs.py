"""Runs of the CLIP recipe with a tiny network, and PaddleX's own YAML files, unmodified."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import oracles
from support.runs import run_here, run_main, train

paddle = pytest.importorskip("paddle")

import paddlex_feat
from paddlex_feat.config.load import load
from paddlex_feat.models import recognizer, weights
from paddlex_feat.modes.parts import network_spec

BASE = "PP-ShiTuV2_rec_CLIP_vit_base"
MODELS = ("PP-ShiTuV2_rec", BASE, "PP-ShiTuV2_rec_CLIP_vit_large")
TINY = ("Model.depth=2", "Model.width=48", "Model.heads=4", "Model.patch_size=8", "Train.input_size=32")


def words(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("-o", setting)]


@pytest.fixture(scope="module")
def clip_run(small_faces, tmp_path_factory):
    """Two epochs of the base recipe at a tiny size, from a backbone's weights saved on a finer grid of patches."""
    folder = tmp_path_factory.mktemp("clip")
    config, _ = load(BASE, [(k, int(v)) for k, v in (s.split("=") for s in TINY)] + [("Train.input_size", 48)])
    paddle.seed(9)
    backbone = recognizer.build(network_spec(config), 2).backbone
    weights.write(folder / "backbone.pdparams", backbone.state_dict())
    settings = (
        "Global.mode=train",
        f"Global.dataset_dir={small_faces}",
        f"Global.output={folder}/out",
        "Global.device=cpu",
        f"Train.pretrain_weight_path={folder}/backbone.pdparams",
        "Train.epochs_iters=2",
        "Train.warmup_steps=1",
        "Train.batch_size=16",
        *TINY,
    )
    done = run_here("-c", BASE, *words(*settings))
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stderr


def test_a_clip_run_trains_evaluates_and_exports(clip_run, small_faces, tmp_path):
    output, said = clip_run
    assert "newly initialised: neck.fc.weight, neck.fc.bias, head.weight" in said
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["kind"] == "train"]
    assert len(steps) == 10 and "TripletAngularMarginLoss" not in steps[0]
    assert steps[0]["CELoss"] == pytest.approx(steps[0]["loss"]) and steps[0]["CELoss"] > np.log(8)  # 30 cos(t + m)
    best = f"Evaluate.weight_path={output}/best_model/best_model.pdparams"
    place = (f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path}")
    done = run_here("-c", BASE, *words("Global.mode=evaluate", best, *place))
    assert done.returncode == 0, done.stderr
    score = json.loads((output / "train_result.json").read_text())["models"]["best"]["score"]
    assert json.loads((tmp_path / "evaluate_result.json").read_text())["metrics"]["recall1"] == score


def test_its_export_predicts_with_bicubic_resizing(clip_run, faces):
    output, _ = clip_run
    content = yaml.safe_load((output / "best_model/inference/inference.yml").read_text())
    assert content["PreProcess"]["transform_ops"][0]["ResizeImage"]["interpolation"] == "bicubic"
    model = paddlex_feat.create_model(BASE, output / "best_model/inference", device="cpu", batch_size=4)
    features = [r.feature for r in model.predict(str(faces / "images/s30"))]
    assert len(features) == 10 and all(np.linalg.norm(f) == pytest.approx(1, abs=1e-5) for f in features)


def paddlex_yaml(name: str) -> Path:
    """The file that comes with PaddleX 3.7.2, out of the oracle's environment."""
    python = oracles.environment("paddlex")
    found = list(
        python.parent.parent.glob(f"lib/python3*/site-packages/paddlex/configs/modules/image_feature/{name}.yaml")
    )
    assert len(found) == 1
    return found[0]


def cached_weights(url: str, cache: Path, name: str) -> None:
    """Stand in for a download of an earlier day: generated weights at the place where the cache looks."""
    config, _ = load(name, [])
    paddle.seed(1)
    network = recognizer.build(network_spec(config), 7)
    target = cache / "weights" / hashlib.sha256(url.encode()).hexdigest()[:12]
    target.mkdir(parents=True)
    weights.write(target / url.rsplit("/", 1)[-1], network.state_dict())


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
def test_a_yaml_of_paddlex_trains_unmodified_but_for_data_and_device(name, faces, tmp_path):
    """At its full input size, batch size and number of classes, for one of its 20 epochs."""
    content = yaml.safe_load(paddlex_yaml(name).read_text())
    content["Global"]["dataset_dir"] = str(tmp_path / "data")
    content["Global"]["device"] = "cpu"
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(content))
    # The recipe of PP-ShiTuV2_rec needs 32 classes of 4 images for a batch; two images do for the others.
    people, pictures = (range(1, 33), range(1, 5)) if name == MODELS[0] else (range(1, 3), (1,))
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(faces / "images")
    for listed, own, of in (
        ("train", people, pictures),
        ("gallery", range(33, 36), (1,)),
        ("query", range(33, 36), (2,)),
    ):
        (data / f"{listed}.txt").write_text("".join(f"images/s{p:02d}/{i:02d}.pgm {p}\n" for p in own for i in of))
    cached_weights(content["Train"]["pretrain_weight_path"], tmp_path / "cache", name)
    command = ("-c", str(tmp_path / "theirs.yaml"), *words("Global.mode=train", "Train.epochs_iters=1"))
    done = run_main(*command, cwd=tmp_path, PADDLE_PDX_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "output/train_result.json").read_text())
    assert result["done_flag"] is True and result["model_name"] == name
    assert "the extra classes get no images" in done.stderr  # num_classes 159 is honoured
    head = weights.read(tmp_path / "output/best_model/best_model.pdparams")
    assert next(v.shape[1] for n, v in head.items() if n.startswith("head.")) == 159


def test_the_same_yaml_says_what_is_wrong_with_its_devices(tmp_path, small_faces):
    """gpu:0,1,2,3 on a machine without a GPU: the message lists what is there."""
    done = run_here(
        "-c",
        BASE,
        *words(
            "Global.mode=train",
            f"Global.dataset_dir={small_faces}",
            "Global.device=gpu:0,1,2,3",
            f"Global.output={tmp_path}",
        ),
    )
    assert done.returncode == 1 and "available: cpu" in done.stderr


@pytest.mark.nightly
def test_visualdls_own_reader_finds_what_metrics_jsonl_has(tmp_path, small_faces):
    python = oracles.environment("visualdl")
    (packages,) = python.parent.parent.glob("lib/python3*/site-packages")
    if f"python{sys.version_info.major}.{sys.version_info.minor}" not in str(packages):
        pytest.skip("VisualDL's environment has another Python")
    settings = ("Train.visualdl=True", "Train.epochs_iters=1")
    done = train(small_faces, tmp_path, *settings, PYTHONPATH=str(packages))
    assert done.returncode == 0, done.stderr
    log = json.loads((tmp_path / "train_result.json").read_text())["visualdl_log"]
    oracles.ask("visualdl", "visualdl_read.py", tmp_path / log, tmp_path / "values.json")
    values = json.loads((tmp_path / "values.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert values["train/loss"] == pytest.approx(losses, rel=1e-6) and len(values["eval/recall1"]) == 1


def test_visualdl_that_is_not_installed_is_said(tmp_path, small_faces):
    pytest.importorskip("paddle")
    try:
        import visualdl  # noqa: F401
    except ImportError:
        settings = (
            "Global.mode=train",
            f"Global.dataset_dir={small_faces}",
            f"Global.output={tmp_path}",
            "Train.visualdl=True",
            "Train.pretrain_weight_path=null",
            "Train.batch_size=8",
            "Global.device=cpu",
            *TINY,
        )
        done = run_here("-c", BASE, *words(*settings))
        assert done.returncode == 1 and "paddlex_feat[visualdl]" in done.stderr
