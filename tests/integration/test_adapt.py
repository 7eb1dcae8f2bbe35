"""Train.method adapt: weight files and inference directories, the files it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.runs import run_here, run_main

paddle = pytest.importorskip("paddle")

from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes import train_adapt
from paddlex_feat.training.adaptation import record
from paddlex_feat.training.adaptation.choose import Choice, choose
from paddlex_feat.training.adaptation.maps import AffineMap, evened

MODEL, SIZE = "PP-ShiTuV2_rec", 32


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """Random weights, which look at pixels well enough to tell faces apart."""
    paddle.seed(5)
    network = recognizer.build(NetworkSpec(input_size=SIZE), None)
    path = tmp_path_factory.mktemp("start") / "start.pdparams"
    weights.write(path, network.state_dict())
    return path


def run(data: Path, output: Path, mode: str, *settings: str, command=run_here):
    words = (f"Global.mode={mode}", f"Global.dataset_dir={data}", f"Global.output={output}", "Global.device=cpu")
    given = (*words, f"Train.input_size={SIZE}", *settings)
    done = command("-c", MODEL, *(word for setting in given for word in ("-o", setting)))
    return done, json.loads((output / f"{mode}_result.json").read_text())


def adapt(data: Path, output: Path, start: Path, *settings: str, command=run_here):
    given = ("Train.method=adapt", f"Train.pretrain_weight_path={start}", *settings)
    return run(data, output, "train", *given, command=command)


@pytest.fixture(scope="module")
def adapted(small_faces, start, tmp_path_factory):
    """The folder and the result of an adaptation."""
    output = tmp_path_factory.mktemp("adapted")
    done, result = adapt(small_faces, output, start)
    assert done.returncode == 0, done.stderr
    return output, result


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)


def outputs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_and_result_are_those_of_a_training(adapted):
    output, result = adapted
    names = {"config.yaml", "run.json", "class_map.json", "train.log", "best_model/best_model.pdparams"}
    assert all((output / name).is_file() for name in names | {"best_model/inference/inference.yml"})
    told = result["adaptation"]
    assert result["models"]["best"]["score"] == told["metrics"]["recall1"] >= told["start"]["recall1"]
    assert told["applied"] == (told["chosen"]["kind"] != "identity")
    assert [c["kind"] for c in told["candidates"]][:1] == ["identity"]
    assert set(json.loads((output / "run.json").read_text())["outputs"]) >= {"best_model/adaptation.npz"}


def test_an_adapted_model_is_the_map_of_its_start(adapted, start, small_faces, tmp_path):
    output, result = adapted
    assert result["adaptation"]["applied"]
    assert run(small_faces, tmp_path, "export", f"Export.weight_path={start}")[0].returncode == 0
    found = record.read(output / "best_model" / "adaptation.npz")
    expected = found.map(FeatureExtractor(tmp_path).raw(images()))
    got = FeatureExtractor(output / "best_model" / "inference").raw(images())
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    before, after = weights.read(start), weights.read(output / "best_model" / "best_model.pdparams")
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}


def test_evaluate_measures_the_adapted_weights_as_train_did(adapted, small_faces, tmp_path):
    output, result = adapted
    best = output / "best_model" / "best_model.pdparams"
    done, evaluated = run(small_faces, tmp_path, "evaluate", f"Evaluate.weight_path={best}")
    assert done.returncode == 0, done.stderr
    assert evaluated["metrics"] == pytest.approx(result["adaptation"]["metrics"])


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes(small_faces, start, tmp_path):
    """Both with the environment of this test: the number of threads decides the last digits."""
    _, result = adapt(small_faces, tmp_path / "one", start, command=run_main)
    _, again = adapt(small_faces, tmp_path / "two", start, command=run_main)
    own, other = (outputs(tmp_path / name / "best_model") for name in ("one", "two"))
    assert own == other
    assert again["adaptation"] == result["adaptation"]


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True], ids=["json", "pdmodel"])
def test_an_inference_directory_is_adapted_like_its_weights(adapted, small_faces, start, tmp_path, older):
    output, result = adapted
    settings = (f"Export.weight_path={start}", f"Global.export_with_pir={not older}")
    assert run(small_faces, tmp_path / "graph", "export", *settings)[0].returncode == 0
    done, told = adapt(small_faces, tmp_path / "run", tmp_path / "graph")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.pdparams"))
    assert told["adaptation"]["chosen"]["kind"] == result["adaptation"]["chosen"]["kind"]
    assert (tmp_path / "run/best_model/inference/inference.pdmodel").is_file() == older
    # Cosines: the last outputs are rotated otherwise, for their variances differ by rounding alone.
    got, expected = (FeatureExtractor(f / "best_model/inference")(images()) for f in (tmp_path / "run", output))
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=1e-4)


@pytest.mark.slow
def test_an_inference_directory_is_cut_and_adapted_again(adapted, small_faces, tmp_path):
    output, _ = adapted
    first, second = tmp_path / "first", tmp_path / "second"
    for target, source in ((first, output), (second, first)):
        graph = source / "best_model" / "inference"
        done, told = adapt(small_faces, target, graph, f"Export.dimension={64 if target == first else 16}")
        assert done.returncode == 0, done.stderr
    assert told["adaptation"]["dimension"] == 16
    assert "feature_dimension: 16" in (second / "best_model/inference/inference.yml").read_text()
    assert FeatureExtractor(second / "best_model" / "inference").raw(images()).shape == (4, 16)


@pytest.mark.slow
def test_export_cuts_features_to_the_leading_directions(adapted, small_faces, tmp_path):
    output, _ = adapted
    best = output / "best_model" / "best_model.pdparams"
    settings = (f"Export.weight_path={best}", "Export.dimension=16", "Global.dataset_dir=none")
    done, _ = run(small_faces, tmp_path, "export", *settings)
    assert done.returncode == 0, done.stderr
    assert "feature_dimension: 16" in (tmp_path / "inference.yml").read_text()
    got = FeatureExtractor(tmp_path).raw(images())
    whole = FeatureExtractor(output / "best_model" / "inference").raw(images())
    scale = evened(record.read(best.with_name("adaptation.npz")).variance, 16)
    np.testing.assert_allclose(got, scale * whole[:, :16], atol=1e-4 * np.abs(scale * whole[:, :16]).max())


@pytest.mark.slow
def test_export_of_other_weights_is_cut_by_the_training_images(small_faces, start, tmp_path):
    settings = (f"Export.weight_path={start}", "Export.dimension=300")
    done, _ = run(small_faces, tmp_path / "cut", "export", *settings)
    assert done.returncode == 0, done.stderr
    assert run(small_faces, tmp_path, "export", settings[0])[0].returncode == 0
    cut, whole = (FeatureExtractor(folder)(images()) for folder in (tmp_path / "cut", tmp_path))
    assert cut.shape == (4, 300)
    np.testing.assert_allclose(cut @ cut.T, whole @ whole.T, atol=0.05)


@pytest.mark.slow
def test_a_map_that_the_queries_contradict_is_not_applied(small_faces, start, tmp_path, monkeypatch):
    def misled(views, classes, seed, dimension):
        found = choose(*views[0], classes, seed, dimension)
        matrix = np.zeros((512, 512))
        matrix[0, 0] = 1  # one number says nothing but its sign
        return 0, Choice(AffineMap(np.zeros(512), matrix), np.eye(512)[0], found.candidates[1], found.candidates, "")

    monkeypatch.setattr(train_adapt, "choose_among", misled)
    done, result = adapt(small_faces, tmp_path, start)
    assert done.returncode == 0, done.stderr
    told = result["adaptation"]
    assert not told["applied"]
    assert told["metrics"] == told["start"]
    assert "not applied" in told["reason"]
    own = weights.read(tmp_path / "best_model" / "best_model.pdparams")
    assert all(np.array_equal(own[name], value) for name, value in weights.read(start).items())
    unchanged = record.read(tmp_path / "best_model" / "adaptation.npz")
    assert not unchanged.folded
    np.testing.assert_allclose(unchanged.map.matrix @ unchanged.map.matrix.T, np.eye(512), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (("Train.pretrain_weight_path=null",), "adapt-needs-start"),
        (("Export.dimension=513",), "dimension-too-large"),
        (("Model.backbone=EfficientNet_Lite0",), "adapt-no-linear-layer"),
    ],
)
def test_what_cannot_be_adapted_is_an_error(small_faces, start, tmp_path, settings, code):
    done, result = adapt(small_faces, tmp_path, start, *settings)
    assert done.returncode == 1
    assert result["err_code"] == code
    assert not (tmp_path / "best_model").exists()


@pytest.mark.parametrize(("most", "views"), [(3, 2), (2, 1)])
def test_mirror_images_of_many_images_are_left_out(most, views, monkeypatch):
    images = np.random.default_rng(0).integers(0, 255, (3, 2, 2, 3), np.uint8)

    class Pixels:
        preprocess = None

        def raw(self, batch: np.ndarray) -> np.ndarray:
            return batch.reshape(len(batch), -1).astype(np.float32)

    monkeypatch.setattr(train_adapt, "MIRRORED", most)
    monkeypatch.setattr(train_adapt, "embed", lambda extract, *_: extract(images))
    worker = type("Worker", (), {"decoding_threads": 1})()
    plain, mirrored = train_adapt.training_features(Pixels(), ["a", "b", "c"], 8, worker)
    assert (plain == images.reshape(3, -1)).all() and (mirrored is None) == (views == 1)
    assert mirrored is None or (mirrored == images[:, :, ::-1].reshape(3, -1)).all()
