"""Weights and models under paths that are something else: each says what it is and what to give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paddlex_feat.config.load import load
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError, WeightsError
from paddlex_feat.modes import export, train, trained_model, weight_paths
from paddlex_feat.runtime.distributed import ProcessGroup

MODEL = "PP-ShiTuV2_rec"
KEYS = {
    "Evaluate.weight_path": "evaluate",
    "Export.weight_path": "export",
    "Train.pretrain_weight_path": "train",
    "Train.resume_path": "train",
}
INFERENCE_YML = f"""Global: {{model_name: {MODEL}}}
PreProcess: {{transform_ops: {Preprocess(32).to_ops()!r}}}
PostProcess: {{NormalizeFeatures: null}}
""".replace("None", "null").replace("False", "false")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The files of a run by name alone, and others."""
    top = tmp_path_factory.mktemp("weights")
    for name in ("best_model", "latest", "epoch_1"):
        folder = top / "run" / name
        (folder / "inference").mkdir(parents=True)
        for suffix in ("pdparams", "pdopt", "pdstates"):
            (folder / f"{name}.{suffix}").write_bytes(b"\x80\x04}.")
        (folder / f"{name}.info.json").write_text("{}")
        for file, data in (
            ("inference.json", b"{}"),
            ("inference.pdiparams", b"x"),
            ("inference.yml", INFERENCE_YML.encode()),
        ):
            (folder / "inference" / file).write_bytes(data)
    (top / "run/config.yaml").write_text("Global: {}\n")
    others = top / "others"
    others.mkdir()
    for name, data in {
        "tar.pth": b"././@LongLink",
        "inference.bin": b"\0\0\x80\x3f",
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\n",
        "arrays.npz": b"PK\x03\x04",
        "page.pdparams": b"<!DOCTYPE html>",
        "empty.pdparams": b"",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
        "graph.onnx": b"\x08\x07",
        "model.safetensors.index.json": b"{}",
        "all.tar.gz": b"\x1f\x8b",
        "all.zip": b"PK\x03\x04",
        "keras.h5": b"\x89HDF",
        "notes.txt": b"x",
    }.items():
        (others / name).write_bytes(data)
    return top


def error_of(key: str, path: Path, tmp_path: Path) -> WeightsError:
    mode = KEYS[key]
    pairs = [("Global.mode", mode), ("Global.output", str(tmp_path)), (key, str(path)), ("Global.device", "cpu")]
    config = load(MODEL, pairs)[0]
    call = {
        "evaluate": lambda: trained_model.resolve_weights(config),
        "export": lambda: export.run(config, tmp_path),
        "train": lambda: train.run(config, tmp_path, ProcessGroup()),
    }[mode]
    with pytest.raises(WeightsError) as caught:
        call()
    assert caught.value.where == f"{key}={path}"
    return caught.value


FORMATS = ".pdparams, .safetensors or PyTorch (.pth) file"
WRONG = {
    "run": ("folder", "{best}/best_model.pdparams"),
    "run/best_model": ("folder", "Give {best}/best_model.pdparams"),
    "run/best_model/best_model": ("Did you mean {best}/best_model.pdparams?", ""),
    "run/best_modle/best_model.pdparams": ("Did you mean {best}/best_model.pdparams?", ""),
    "run/best_model/best_modl.pdparams": ("Did you mean {best}/best_model.pdparams?", ""),
    "run/best_model/best_modl.pdopt": ("Did you mean {best}/best_model.pdopt?", ""),
    "run/best_model/inference/inference": ("holds an inference model", "Give {best}/best_model.pdparams"),
    "run/best_model/inference/inference.pdparams": ("holds an inference model", "Give {best}/best_model.pdparams"),
    "run/best_model/inference/inferense": ("holds an inference model", "Give {best}/best_model.pdparams"),
    "run/BEST_MODEL/best_model.pdparams": (
        "Did you mean {best}/best_model.pdparams (upper and lower case differ)?",
        "",
    ),
    "run/best_model/best_model.pdopt": ("best_model.pdopt is the optimizer's state", "{best}/best_model.pdparams"),
    "run/best_model/best_model.pdstates": ("best_model.pdstates is the progress", "{best}/best_model.pdparams"),
    "run/best_model/best_model.info.json": ("is a note about a checkpoint", "{best}/best_model.pdparams"),
    "run/best_model/inference/inference.pdiparams": ("is part of an inference directory", "{best}/best_model.pdparams"),
    "run/best_model/inference/inference.json": ("is part of an inference directory", "{best}/best_model.pdparams"),
    "run/config.yaml": ("is a text file, not weights", ".pdparams"),
    "others/tar.pth": ("tar.pth is a file that torch.save did not write, not weights", FORMATS),
    "others/inference.bin": ("inference.bin is a file that torch.save did not write", FORMATS),
    "others/pointer.pt": ("is a pointer of Git LFS", "git lfs pull"),
    "others/arrays.npz": ("is a file of NumPy", FORMATS),
    "others/page.pdparams": ("is a web page", "Download the weights again"),
    "others/empty.pdparams": ("is an empty file", ".safetensors"),
    "others/pointer.safetensors": ("is a pointer of Git LFS", "git lfs pull"),
    "others/graph.onnx": ("is an ONNX graph", FORMATS),
    "others/model.safetensors.index.json": ("is an index of weights in several parts", "one .safetensors file"),
    "others/all.tar.gz": ("is an archive", "Unpack it first"),
    "others/all.zip": ("is an archive", "Unpack it first"),
    "others/keras.h5": ("is a file of TensorFlow", ".pdparams"),
    "others/notes.txt": ("is a text file", ".pdparams"),
    "others": ("folder", ".pdparams"),
    "others/none.pdparams": ("does not exist.", "train first"),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("path", WRONG)
def test_what_is_no_weight_file_is_explained_in_every_key(place, path, key, tmp_path):
    what, fix = WRONG[path]
    error = error_of(key, place / path, tmp_path)
    best = "latest" if key == "Train.resume_path" and path == "run" else "best_model"
    assert what.format(best=place / "run/best_model") in error.what
    fix = fix.format(best=place / "run" / best).replace("latest/best_model", "latest/latest")
    if key == "Train.resume_path" and fix in (".safetensors", FORMATS):
        fix = "the .pdparams file of a checkpoint, with its .pdopt and .pdstates beside it"
    assert fix in error.fix


def test_an_inference_directory_is_what_evaluation_takes_and_no_weight_file(place, tmp_path):
    inference = place / "run/best_model/inference"
    pairs = [("Global.mode", "evaluate"), ("Evaluate.weight_path", str(inference))]
    assert trained_model.resolve_weights(load(MODEL, pairs)[0]) == inference
    error = error_of("Evaluate.weight_path", inference / "inference.pdiparams", tmp_path)
    assert error.fix.endswith(f"or {inference}, the inference directory.")
    for key in list(KEYS)[1:]:
        error = error_of(key, inference, tmp_path)
        assert "is an inference directory" in error.what and f"{place}/run/best_model/best_model.pdparams" in error.fix


def test_a_prefix_of_paddle_names_the_inference_directory_too(place, tmp_path):
    inference = place / "run/best_model/inference"
    error = error_of("Evaluate.weight_path", inference / "inference", tmp_path)
    assert error.fix.endswith(f"best_model.pdparams or {inference}, the inference directory.")
    alone = shutil.copytree(inference, tmp_path / "a/b/model")
    error = error_of("Evaluate.weight_path", alone / "inference", tmp_path)
    assert error.fix == f"Give {alone}, the inference directory."


def test_resume_suggests_whole_checkpoints_only(tmp_path):
    for name in ("a.npz", "e.pdparams"):
        (tmp_path / name).write_bytes(b"PK\x03\x04" if name == "a.npz" else b"\x80\x04}.")
    for given in (tmp_path / "a.npz", tmp_path):
        with pytest.raises(WeightsError) as caught:
            weight_paths.require_checkpoint("Train.resume_path", given)
        assert "e.pdparams" not in caught.value.fix and "with its .pdopt and .pdstates" in caught.value.fix
    with pytest.raises(WeightsError, match=r"Give \S+/e.pdparams"):
        weight_paths.require_weights("Train.pretrain_weight_path", tmp_path / "a.npz")
    (tmp_path / "epoch_2").mkdir()
    for suffix in ("pdparams", "pdopt", "pdstates"):
        (tmp_path / f"epoch_2/epoch_2.{suffix}").write_bytes(b"\x80\x04}.")
    for given in (tmp_path / "a.npz", tmp_path):
        with pytest.raises(WeightsError, match=r"Give \S+/epoch_2/epoch_2.pdparams"):
            weight_paths.require_checkpoint("Train.resume_path", given)


@pytest.mark.parametrize(
    ("gone", "said"), [(("pdopt",), "e.pdopt is not"), (("pdopt", "pdstates"), "e.pdopt and e.pdstates are")]
)
def test_a_checkpoint_without_its_other_files_is_no_resume(gone, said, tmp_path):
    for suffix in {"pdparams", "pdopt", "pdstates"} - set(gone):
        (tmp_path / f"e.{suffix}").write_bytes(b"\x80\x04}.")
    with pytest.raises(WeightsError) as caught:
        weight_paths.require_checkpoint("Train.resume_path", tmp_path / "e.pdparams")
    assert said in caught.value.what and f"Train.pretrain_weight_path={tmp_path}/e.pdparams" in caught.value.fix


@pytest.mark.parametrize("name", ["a.pth", "weights", "a.ema.bin", "a.pdema", "a.pdparams"])
@pytest.mark.parametrize("start", [b"\x80\x04}.", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."])
def test_weights_under_any_name_are_still_read(name, start, tmp_path):
    (tmp_path / name).write_bytes(start)
    weight_paths.require_weights("Evaluate.weight_path", tmp_path / name)


def test_null_for_export_means_the_official_weights(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(weight_paths, "fetch_weights", lambda url, fix: Path(url))
    caplog.set_level("INFO")
    assert weight_paths.weight_file("Export.weight_path", None, MODEL).name == f"{MODEL}_pretrained.pdparams"
    assert f"Export.weight_path is null: the official weights of {MODEL}, https://" in caplog.text


@pytest.mark.parametrize(
    ("path", "what", "fix"),
    [
        ("run/best_model/inference/inference.yml", "is a file, not a folder", "run/best_model/inference."),
        ("run/best_model/inference/inference", "does not exist", "Give {place}/run/best_model/inference."),
        ("run/best_model/inference/inference.pdiparams", "is a file", "run/best_model/inference."),
        ("run/best_model/best_model.pdparams", "is a file", "Give {place}/run/best_model/inference."),
        ("run", "inference.yml cannot be read", "Give {place}/run/best_model/inference."),
        ("run/best_model", "inference.yml cannot be read", "Give {place}/run/best_model/inference."),
        ("run/best_model/Inference", "Did you mean {place}/run/best_model/inference (upper", "inference.yml"),
        ("others/all.zip", "is an archive; unpack it first", "mode export"),
        ("others", "inference.yml cannot be read", "mode export makes one"),
    ],
)  # fmt: skip
def test_a_model_directory_that_is_something_else(place, path, what, fix):
    from paddlex_feat import create_model

    with pytest.raises(WeightsError) as caught:
        create_model(MODEL, place / path, device="cpu")
    assert what.format(place=place) in caught.value.what and fix.format(place=place) in caught.value.fix
    assert "give the folder that holds it" not in caught.value.what  # one folder is named, the one in the advice


def test_a_model_directory_in_the_home_folder_and_an_empty_one(place, tmp_path, monkeypatch):
    from paddlex_feat import create_model

    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="model_dir is empty"):
        create_model(MODEL, "")
    shutil.copytree(place / "run/best_model/inference", tmp_path / "model")
    with pytest.raises(WeightsError, match=f"holds {MODEL}, not {MODEL}_CLIP_vit_base"):
        create_model(f"{MODEL}_CLIP_vit_base", "~/model")
