"""An evaluation in shards: jobs that compute features, and one that ranks them as one run would have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import run_here

from paddlex_feat.fileio.npz import NpzWriter

COUNT = 3


def run(data: Path, output: Path, model: Path, *settings: str) -> dict:
    """The command; its exit code, what it said, and its result."""
    every = (
        "Global.mode=evaluate",
        "Global.device=cpu",
        f"Global.dataset_dir={data}",
        f"Global.output={output}",
        f"Evaluate.weight_path={model}",
        "Evaluate.batch_size=8",
    )
    done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in (*every, *settings) for w in ("-o", s)))
    shards = [s.partition("=")[2] for s in settings if s.startswith("Evaluate.shard=")]
    name = "".join(f"_{int(s.split('/')[0]):05d}-of-{int(s.split('/')[1]):05d}" for s in shards)
    result = output / f"evaluate{name}_result.json"
    told = json.loads(result.read_text()) if result.is_file() else {}
    return {"code": done.returncode, "said": done.stderr, **told}


@pytest.fixture(scope="module")
def weights(run_folder) -> Path:
    return run_folder / "best_model/best_model.pdparams"


@pytest.fixture(scope="module")
def shards(small_faces, weights, tmp_path_factory) -> Path:
    """Global.output of three jobs."""
    output = tmp_path_factory.mktemp("shards")
    for number in reversed(range(COUNT)):
        done = run(small_faces, output, weights, f"Evaluate.shard={number}/{COUNT}")
        assert done["code"] == 0 and done["skipped"] is False and done["images"] > 0, done["said"]
    return output


def test_the_last_job_gives_what_one_run_gives_without_an_image(small_faces, weights, shards, tmp_path):
    asked = ("Evaluate.save_features=True", "Evaluate.query_sample=12")
    for number in range(COUNT):  # a sample of the queries is another job
        assert run(small_faces, tmp_path / "jobs", weights, asked[1], f"Evaluate.shard={number}/{COUNT}")["code"] == 0
    one = run(small_faces, tmp_path / "one", weights, *asked, "Evaluate.baseline=False")
    bare = tmp_path / "bare"  # the lists alone
    bare.mkdir()
    for name in ("gallery.txt", "query.txt"):
        shutil.copy(small_faces / name, bare)
    (one_whole, last_whole) = (
        run(small_faces, tmp_path / "whole", weights, "Evaluate.baseline=False"),
        run(small_faces, tmp_path / "last whole", weights, f"Evaluate.embedded={shards}"),
    )
    last = run(small_faces, tmp_path / "last", weights, *asked, f"Evaluate.embedded={tmp_path / 'jobs'}")
    for mine, others in ((last, one), (last_whole, one_whole)):
        assert mine["code"] == others["code"] == 0, mine["said"]
        assert {k: v for k, v in mine.items() if k != "said"} == {k: v for k, v in others.items() if k != "said"}
    one_file, last_file = (np.load(tmp_path / f"{name}/evaluate/features.npz") for name in ("one", "last"))
    assert all((one_file[key] == last_file[key]).all() for key in one_file.files)
    refused = run(bare, tmp_path / "out", weights, f"Evaluate.embedded={shards}")
    assert refused["err_code"] == "shard-mixed"  # these are images of another folder


def test_the_images_need_not_be_there(small_faces, run_folder, tmp_path):
    data, graph = tmp_path / "data", run_folder / "best_model/inference"
    shutil.copytree(small_faces, data)
    one = run(data, tmp_path / "one", graph, "Evaluate.baseline=False")
    for number in range(2):
        assert run(data, tmp_path / "jobs", graph, f"Evaluate.shard={number}/2")["code"] == 0
    shutil.rmtree(data / "images")
    last = run(data, tmp_path / "last", graph, f"Evaluate.embedded={tmp_path / 'jobs/evaluate'}")
    assert last["code"] == 0 and last["metrics"] == one["metrics"], last["said"]


def test_a_repeated_job_computes_nothing_and_other_weights_are_refused(small_faces, weights, shards, tmp_path):
    again = run(small_faces, shards, weights, f"Evaluate.shard=1/{COUNT}")
    assert again["code"] == 0 and again["skipped"] is True
    other = tmp_path / "other" / "best_model.pdparams"
    shutil.copytree(weights.parent, other.parent)
    epochs = weights.parent.parent.glob("epoch_*/epoch_*.pdparams")
    shutil.copy(next(path for path in epochs if path.read_bytes() != weights.read_bytes()), other)
    shutil.copy(weights.parent.parent / "config.yaml", other.parent)
    for settings, said in (
        ((f"Evaluate.shard=1/{COUNT}",), "another model"),
        ((f"Evaluate.embedded={shards}", "Evaluate.mirror=True"), "another model"),
        ((f"Evaluate.embedded={shards}", "Evaluate.batch_size=9"), "another Evaluate.batch_size"),
        ((f"Evaluate.embedded={shards}", "Evaluate.query_sample=9"), "images, and this job has"),
    ):
        model = other if settings == (f"Evaluate.shard=1/{COUNT}",) else weights
        output = shards if model == other else tmp_path / "out"
        refused = run(small_faces, output, model, *settings)
        assert (refused["code"], refused["err_code"]) == (1, "shard-mixed") and said in refused["said"]


def rewritten(path: Path, **arrays: np.ndarray) -> None:
    """The file with other arrays."""
    content = dict(np.load(path))
    with NpzWriter(path) as writer:
        for name, array in {**content, **arrays}.items():
            writer.write_array(name, array)


CHANGES = {
    "missing": ("shard-missing", lambda one, folder: one.unlink()),
    "twice": ("shard-unusable", lambda one, folder: shutil.copy(one, folder / "features-00002-of-00003.npz")),
    "cut": ("shard-unusable", lambda one, folder: one.write_bytes(one.read_bytes()[:-9])),
    "not finite": (
        "shard-unusable",
        lambda one, folder: rewritten(one, features=np.full_like(np.load(one)["features"], np.nan)),
    ),
    "narrow": ("shard-unusable", lambda one, folder: rewritten(one, features=np.load(one)["features"][:, :7])),
    "few": ("shard-unusable", lambda one, folder: rewritten(one, features=np.load(one)["features"][1:])),
    "long": (
        "features-not-unit",
        lambda one, folder: rewritten(one, features=np.load(one)["features"] * np.float32(2)),
    ),
    "none": ("shard-missing", lambda one, folder: shutil.rmtree(folder)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_shards_that_are_missing_or_damaged_are_refused(small_faces, weights, shards, tmp_path, name):
    code, change = CHANGES[name]
    folder = shutil.copytree(shards, tmp_path / "shards") / "evaluate"
    change(folder / "features-00001-of-00003.npz", folder)
    refused = run(small_faces, tmp_path / "out", weights, f"Evaluate.embedded={folder.parent}")
    assert (refused["code"], refused["err_code"]) == (1, code), refused["said"]


def test_more_shards_than_batches_and_contradicting_settings(small_faces, weights, tmp_path):
    for number in range(40):
        if number in (0, 39):
            done = run(small_faces, tmp_path / "jobs", weights, f"Evaluate.shard={number}/40")
            assert done["code"] == 0 and (done["images"] == 0) == (number == 39), done["said"]
    refused = run(small_faces, tmp_path / "out", weights, "Evaluate.shard=0/2", "Evaluate.save_features=True")
    assert refused["code"] == 1 and "for the last job" in refused["said"]


@pytest.mark.slow
def test_several_processes_share_a_shard_and_the_ranking(small_faces, weights, shards, tmp_path):
    for number in range(COUNT):
        done = run(small_faces, tmp_path / "jobs", weights, f"Evaluate.shard={number}/{COUNT}", "Global.device=cpu:0,1")
        assert done["code"] == 0, done["said"]
        name = f"evaluate/features-{number:05d}-of-{COUNT:05d}.npz"
        assert (tmp_path / "jobs" / name).read_bytes() == (shards / name).read_bytes()
    words = (f"Evaluate.embedded={tmp_path / 'jobs'}",)
    two = run(small_faces, tmp_path / "two", weights, *words, "Global.device=cpu:0,1")
    one = run(small_faces, tmp_path / "one", weights, *words)
    assert two["code"] == 0 and two["metrics"] == one["metrics"], two["said"]
