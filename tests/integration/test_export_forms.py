"""Export to other forms: ONNX, OpenVINO, any size, Paddle's older form."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.networks import SPECS, TINY_CLIP
from support.runs import run_here, train, train_here

paddle = pytest.importorskip("paddle")
for package in ("onnxruntime", "openvino", "paddle2onnx"):
    pytest.importorskip(package)

from paddlex_feat.config import load
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError, DependencyError, WeightsError
from paddlex_feat.inference.export import convert
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.export.install import install_export
from paddlex_feat.inference.export.pdmodel import pdmodel_format
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes import export as mode
from paddlex_feat.modes.trained_model import load_trained_network
from paddlex_feat.training.run_logger import peak_memory_mib

NAME = "PP-ShiTuV2_rec"
FORMS = ("paddle", "onnx", "openvino")
OF_PADDLE = ["inference.json", "inference.pdiparams", "inference.yml"]
OF_ALL = sorted([*OF_PADDLE, "inference.onnx", "inference.xml", "inference.bin"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))


def configured(run_folder: Path, data: Path, **keys) -> object:
    keys = {
        "Global.mode": "export",
        "Global.device": "cpu",
        "Global.dataset_dir": str(data),
        "Export.weight_path": f"{run_folder}/best_model/best_model.pdparams",
        **keys,
    }
    return load.load(NAME, list(keys.items()))[0]


def test_mode_export_writes_and_compares_every_form(run_folder, small_faces, tmp_path):
    words = [
        "Global.mode=export",
        f"Global.output={tmp_path / 'out'}",
        "Global.device=cpu",
        f"Global.dataset_dir={small_faces}",
        f"Export.weight_path={run_folder}/best_model/best_model.pdparams",
        "Export.format=[onnx, openvino]",
    ]
    done = run_here("-c", NAME, *(w for word in words for w in ("-o", word)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and all(f"{form}: largest difference" in done.stderr for form in FORMS)
    result = json.loads((tmp_path / "out/export_result.json").read_text())
    assert result["files"] == OF_ALL and set(result["differences"]) == set(FORMS)
    assert result["largest_difference"] == max(result["differences"].values()) <= 1e-4
    assert all((tmp_path / "out" / name).is_file() for name in OF_ALL)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features = [FeatureExtractor(tmp_path / "out", engine=form)(images) for form in FORMS]
    assert max(np.abs(f - features[0]).max() for f in features) <= 1e-4
    assert not (tmp_path / "cache").exists()  # what is there is not converted again


@pytest.mark.slow
def test_a_form_that_differs_leaves_nothing(run_folder, small_faces, tmp_path, monkeypatch):
    config = configured(run_folder, small_faces, **{"Export.format": ["onnx"]})
    honest = convert.to_onnx

    def wrong(graph, parameters, target):
        """Other weights under the same graph."""
        other = tmp_path / "other.pdiparams"
        data = bytearray(parameters.read_bytes())
        data[-4000:] = b"\0" * 4000
        other.write_bytes(data)
        honest(graph, other, target)

    monkeypatch.setattr(convert, "to_onnx", wrong)
    (tmp_path / "out").mkdir()
    with pytest.raises(WeightsError, match=r"\(onnx\) differs"):
        mode.run(config, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_graphs_of_an_earlier_export_do_not_stay_beside_new_weights(run_folder, small_faces, tmp_path):
    mode.run(configured(run_folder, small_faces, **{"Export.format": list(FORMS)}), tmp_path)
    mode.run(configured(run_folder, small_faces, **{"Global.export_with_pir": False}), tmp_path)
    kept = sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".bak" and p.is_file())
    assert kept == ["inference.pdiparams", "inference.pdmodel", "inference.yml"]
    assert (tmp_path / "inference.onnx.bak").is_file() and (tmp_path / "inference.json.bak").is_file()


@pytest.mark.parametrize("saved", ["pdparams", "safetensors"])
def test_the_weights_that_are_exported_are_never_touched(saved, run_folder, small_faces, tmp_path):
    own = tmp_path / "weights.pdparams"
    shutil.copy(run_folder / "best_model/best_model.pdparams", own)
    shutil.copy(run_folder / "config.yaml", tmp_path)
    before = own.read_bytes()
    keys = {"Export.weight_path": str(own), "Export.save_weights": saved}
    result = mode.run(configured(run_folder, small_faces, **keys), tmp_path)
    assert own.read_bytes() == before and not list(tmp_path.glob("*.bak*"))
    assert ("weights.safetensors" in result["files"]) == (saved == "safetensors")


def test_copies_of_one_export_have_one_number(tmp_path):
    def export(text: str, *names: str) -> None:
        staged = tmp_path / "staged"
        staged.mkdir()
        for name in names:
            (staged / name).write_text(text)
        assert install_export(staged, tmp_path) == sorted(names)
        staged.rmdir()

    plain = ("inference.yml", "inference.pdiparams", "inference.json")
    (tmp_path / "weights.safetensors").write_text("mine")
    export("first", *plain)
    export("second", *plain, "inference.onnx")
    export("third", *plain, "weights.pdparams")
    export("fourth", *plain, "weights.safetensors")
    for text, suffix in (("first", ".bak"), ("second", ".bak.1"), ("third", ".bak.2")):
        kept = {path.read_text() for path in tmp_path.glob(f"inference.*{suffix}")}
        assert kept == {text}
    assert (tmp_path / "inference.onnx.bak.1").is_file() and not list(tmp_path.glob("inference.onnx.bak"))
    assert (tmp_path / "weights.safetensors.bak.2").read_text() == "mine"
    assert (tmp_path / "weights.pdparams").read_text() == "third"  # nothing new has its name


def test_a_missing_package_is_said_before_anything_is_read(run_folder, small_faces, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    config = configured(run_folder, small_faces, **{"Export.format": "onnx", "Export.weight_path": "absent.pdparams"})
    with pytest.raises(DependencyError) as caught:
        mode.run(config, tmp_path)
    assert "paddlex_feat[onnx]" in caught.value.fix


def test_a_graph_of_any_size(run_folder, small_faces, tmp_path):
    keys = {"Export.input_size": "dynamic", "Export.format": list(FORMS)}
    result = mode.run(configured(run_folder, small_faces, **keys), tmp_path)
    assert result["compared_on"] == "8 gallery images at 32 and 64 px" and len(result["differences"]) == 3
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
    features = [FeatureExtractor(tmp_path, engine=form)(images) for form in FORMS]
    assert max(np.abs(f - features[0]).max() for f in features) <= 1e-4


def test_a_clip_network_takes_no_other_size(tmp_path):
    from paddlex_feat.modes.build import exporter_of

    config = load.load("PP-ShiTuV2_rec_CLIP_vit_base", [("Export.input_size", "dynamic")])[0]
    with pytest.raises(ConfigError, match="images of one size"):
        exporter_of(config, config, recognizer.build(TINY_CLIP, 2))


@pytest.mark.slow
def test_training_completes_the_best_model_with_the_forms_asked_for(small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, "Export.format=[onnx, openvino]", "Train.epochs_iters=1")
    assert done.returncode == 0, done.stderr
    assert all(f"best epoch ({form})" in done.stderr for form in FORMS)
    assert sorted(p.name for p in (tmp_path / "best_model/inference").iterdir()) == OF_ALL
    assert sorted(p.name for p in (tmp_path / "latest/inference").iterdir()) == OF_PADDLE
    assert [p.name for p in tmp_path.glob(".*")] == [".train.lock"]


@pytest.mark.parametrize(
    "claim",
    [
        {"backbone": "CLIP_vit", "width": 16384, "depth": 256, "heads": 16},
        {"neck": "linear", "embedding_size": 65536},
    ],
)
def test_a_configuration_that_claims_a_giant_network_takes_no_memory(claim, run_folder, small_faces, tmp_path):
    shutil.copy(run_folder / "best_model/best_model.pdparams", tmp_path)
    content = yaml.safe_load((run_folder / "config.yaml").read_text())
    content["Model"].update(claim)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    config = configured(tmp_path, small_faces)
    before = peak_memory_mib()
    with pytest.raises(WeightsError, match="numbers, more than a file of"):
        load_trained_network(config, tmp_path / "best_model.pdparams")
    assert peak_memory_mib() - before < 500


def test_a_small_file_of_a_clip_network_at_a_larger_size_is_in_proportion(tmp_path):
    """Half precision, no head, and positions that were learnt for a fiftieth of the patches."""
    keys = {"patch_size": 2, "width": 64, "depth": 1, "heads": 2, "embedding_size": 8}
    spec = NetworkSpec(backbone="CLIP_vit", neck="linear", input_size=32, **keys)
    state = {n: t.numpy().astype(np.float16) for n, t in recognizer.build(spec, None).state_dict().items()}
    weights.write(tmp_path / "w.pdparams", state)
    overrides = [("Train.input_size", 224), *((f"Model.{k}", v) for k, v in keys.items())]
    config = load.load("PP-ShiTuV2_rec_CLIP_vit_base", overrides)[0]
    assert load_trained_network(config, tmp_path / "w.pdparams").network.backbone.grid == 112


def programs(folder: Path) -> Path:
    """Modules that a converter run there would import; returns the file that they write."""
    marker = folder.parent / "it_ran"
    for name in ("paddle2onnx", "numpy", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')")
    return marker


@pytest.mark.parametrize("python_path", [None, ":", "."])
def test_a_program_beside_a_graph_never_runs(python_path, run_folder, tmp_path, monkeypatch):
    folder = tmp_path / "inference"
    shutil.copytree(run_folder / "best_model/inference", folder)
    marker = programs(folder)
    monkeypatch.chdir(folder)
    if python_path is not None:
        monkeypatch.setenv("PYTHONPATH", python_path)
    convert.write_forms(folder, ["onnx"])
    assert (folder / "inference.onnx").stat().st_size and not marker.exists()


@pytest.mark.slow
def test_a_program_in_a_run_that_is_resumed_never_runs_and_is_not_copied(run_folder, small_faces, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run_folder, out)
    marker = programs(out / "best_model/inference")
    done = train(small_faces, out, "Train.resume=auto", "Export.format=[onnx]")
    assert done.returncode == 0 and not marker.exists(), done.stderr
    assert (out / "best_model/inference/inference.onnx").is_file()
    assert (out / "best_model/inference/paddle2onnx.py").is_file()  # the user's perhaps


# The older form


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SPECS[NAME], TINY_CLIP], ids=["PPLCNetV2", "CLIP"])
def test_the_older_form_answers_as_the_weights_do(spec, tmp_path):
    paddle.seed(0)
    network = recognizer.build(spec, 2)
    exporter = Exporter(network, NAME, Preprocess(32), pir=False)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    functions = (paddle.matmul, paddle.nn.functional.sigmoid, paddle.nn.functional.gelu)
    for seed in (0, 1):  # the graph is captured once, the weights are exchanged
        paddle.seed(seed)
        state = {name: tensor.numpy() for name, tensor in recognizer.build(spec, 2).state_dict().items()}
        exporter.write(state, tmp_path)
        names = sorted(p.name for p in tmp_path.iterdir())
        assert names == ["inference.pdiparams", "inference.pdmodel", "inference.yml"]
        assert exporter.largest_difference(state, tmp_path, images, "cpu") <= 1e-5
    assert functions == (paddle.matmul, paddle.nn.functional.sigmoid, paddle.nn.functional.gelu)
    if spec is TINY_CLIP:  # paddle2onnx 2.1 crashes on it, in a process of its own
        with pytest.raises(WeightsError, match="paddle2onnx cannot convert"):
            FeatureExtractor(tmp_path, engine="onnx")
        return
    expected = FeatureExtractor(tmp_path)(images)
    for engine in ("onnx", "openvino"):
        assert np.abs(FeatureExtractor(tmp_path, engine=engine)(images) - expected).max() <= 1e-4


@pytest.mark.slow
def test_training_can_write_the_older_form(small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, "Global.export_with_pir=False", "Train.epochs_iters=2")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "train_result.json").read_text())
    assert result["models"]["best"]["pdmodel"] == "best_model/inference/inference.pdmodel"
    assert not (tmp_path / "best_model/inference/inference.json").exists()


def test_a_network_that_paddle_cannot_write_in_the_older_form_says_so():
    class Other(paddle.nn.Layer):
        def forward(self, x):
            return paddle._C_ops.erf(x)  # which, like many, takes the current form alone

    with pytest.raises(WeightsError, match=rf"Paddle {paddle.__version__} cannot write") as caught, pdmodel_format():
        spec = [paddle.static.InputSpec([None, 3], "float32", "x")]
        network = Other()
        paddle.jit.to_static(network, input_spec=spec, full_graph=True).forward.concrete_program  # noqa: B018
    assert "export_with_pir" in caught.value.where and "erf" in caught.value.what
    assert paddle.matmul.__module__.startswith("paddle")


def test_memory_that_runs_out_is_not_taken_for_a_fault_of_the_older_form():
    text = "ResourceExhaustedError: Out of memory error on CPU."
    with pytest.raises(RuntimeError, match="Out of memory"), pdmodel_format():
        raise RuntimeError(text)
    assert paddle.matmul.__module__.startswith("paddle")
