"""Mode evaluate: what it takes, what it refuses before it computes, memory, several processes."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.networks import SPECS
from support.runs import ROOT, run_here

paddle = pytest.importorskip("paddle")

from paddlex_feat.config import base
from paddlex_feat.config.load import load
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.loading.loader import evaluation_batches
from paddlex_feat.data.readers import require_lists
from paddlex_feat.errors import (
    ConfigError,
    DatasetError,
    DeviceError,
    DownloadError,
    EvaluationError,
    FeatError,
    ImageError,
    OutputError,
    WeightsError,
)
from paddlex_feat.evaluation import embed as embedding
from paddlex_feat.evaluation.evaluator import Evaluator
from paddlex_feat.evaluation.features_file import write_features
from paddlex_feat.evaluation.matches import find_self_pairs, match_counts, require_matches
from paddlex_feat.fileio.npz import NpzWriter
from paddlex_feat.hub import download
from paddlex_feat.inference.extractor import FeatureExtractor, unit_rows
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.models import recognizer, weights
from paddlex_feat.modes import evaluate, trained_model
from paddlex_feat.reports import evaluation_report
from paddlex_feat.runtime.distributed import ProcessGroup

MODEL = "PP-ShiTuV2_rec"


def words(data: Path, output: Path, weight: object, **settings: object) -> list[tuple[str, object]]:
    """Overrides of an evaluation; Evaluate's keys by their own names."""
    return [
        ("Global.mode", "evaluate"),
        ("Global.dataset_dir", str(data)),
        ("Global.output", str(output)),
        ("Global.device", "cpu"),
        ("Evaluate.weight_path", None if weight is None else str(weight)),
        *((f"Evaluate.{key}" if "." not in key else key, value) for key, value in settings.items()),
    ]


def run(data: Path, output: Path, weight: object, **settings: object) -> dict:
    """The mode in this process."""
    return evaluate.run(load(MODEL, words(data, output, weight, **settings))[0], output, ProcessGroup())


def run_process(
    data: Path, output: Path, weight: object, *overrides: str
) -> tuple[subprocess.CompletedProcess[str], dict]:
    """The command; also its result file."""
    settings = [f"{key}={value}" for key, value in words(data, output, weight)]
    done = run_here("-c", MODEL, *(w for s in (*settings, *overrides) for w in ("-o", s)))
    return done, json.loads((output / "evaluate_result.json").read_text())


@pytest.fixture(scope="module")
def inference(run_folder) -> Path:
    return run_folder / "best_model/inference"


@pytest.fixture
def data(small_faces, tmp_path) -> Path:
    """Gallery and query alone, to be changed."""
    folder = tmp_path / "data"
    shutil.copytree(small_faces, folder, symlinks=True)
    (folder / "train.txt").unlink()
    return folder


def append(data: Path, name: str, line: str) -> None:
    with (data / f"{name}.txt").open("a") as stream:
        stream.write(f"{line}\n")


# What Evaluate.weight_path takes


def test_an_inference_directory_gives_the_figures_of_its_weights(run_folder, inference, data, tmp_path, caplog):
    first = run(data, tmp_path / "a", inference)
    assert "Train.input_size is 32 in" in caplog.text and "in -c: using 32" in caplog.text
    second = run(data, tmp_path / "b", run_folder / "best_model/best_model.pdparams")
    assert first["metrics"] == second["metrics"] and first["weight_path"] == str(inference)
    assert first["queries"] == 12 and first["gallery"] == 12 and list(first)[:2] == ["metrics", "weight_path"]


def test_another_model_name_in_an_inference_directory_is_said(inference, data, tmp_path, caplog):
    other = tmp_path / "other"
    shutil.copytree(inference, other)
    text = (other / "inference.yml").read_text().replace(f"model_name: {MODEL}", "model_name: Mine")
    (other / "inference.yml").write_text(text.replace("bilinear", "bicubic"))
    run(data, tmp_path / "out", other)
    assert f"Global.model is Mine in {other}/inference.yml and {MODEL} in -c" in caplog.text
    assert "Train.interpolation is bicubic" in caplog.text


@pytest.mark.slow
def test_the_older_form_of_a_graph_is_evaluated(inference, data, tmp_path):
    """A small network, because Paddle 3.3 itself cannot write the real one in the older form any more."""
    code = """
import sys, paddle
paddle.seed(1)
layers = paddle.nn.Conv2D(3, 16, 8, 8), paddle.nn.ReLU(), paddle.nn.Flatten(), paddle.nn.Linear(256, 32)
spec = paddle.static.InputSpec([None, 3, 32, 32], "float32", "x")
paddle.jit.save(paddle.nn.Sequential(*layers), sys.argv[1], [spec])
"""
    metrics = []
    for pir, suffix in (("0", "pdmodel"), ("1", "json")):
        folder = tmp_path / suffix
        environment = {"FLAGS_enable_pir_api": pir, "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-c", code, str(folder / "inference")]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        shutil.copy(inference / "inference.yml", folder)
        assert (folder / f"inference.{suffix}").is_file()
        metrics.append(run(data, tmp_path / "out", folder)["metrics"])
    assert metrics[0] == metrics[1]


def as_paddleclas_writes(run_folder: Path, file: Path) -> None:
    """Another class count, (name, array) pairs, a table of names, tensors that only training has."""
    state = weights.read(run_folder / "best_model/best_model.pdparams")
    state["head.fc.weight"] = np.zeros((512, 99), np.float32)
    pairs = {name: (f"parameter_{i}", value) for i, (name, value) in enumerate(state.items())}
    extra = {"StructuredToParameterName@@": {"a": "b"}, "loss.centers": ("c", np.zeros(3, np.float32))}
    file.write_bytes(pickle.dumps({**pairs, **extra}, protocol=2))


def test_a_paddleclas_file_with_another_head_loads(run_folder, inference, data, tmp_path, caplog):
    file = tmp_path / "theirs.pdparams"
    as_paddleclas_writes(run_folder, file)
    caplog.set_level("INFO")
    result = run(data, tmp_path / "out", file, **{"Train.input_size": 32})
    assert result["metrics"] == run(data, tmp_path / "b", inference)["metrics"]
    assert "No config.yaml beside" in caplog.text and "1 in the file not used: loss.centers" in caplog.text


@pytest.mark.slow
def test_null_is_the_official_weights_of_the_model(run_folder, inference, data, tmp_path, monkeypatch):
    (tmp_path / "www").mkdir()
    shutil.copy(run_folder / "best_model/best_model.pdparams", tmp_path / "www" / f"{MODEL}_pretrained.pdparams")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(base, "PRETRAINED", f"http://127.0.0.1:{server.server_port}/")
        first = run(data, tmp_path / "a", None, **{"Train.input_size": 32})
        server.shutdown()
    assert Path(first["weight_path"]).is_relative_to(tmp_path / "cache")
    assert first["metrics"] == run(data, tmp_path / "b", inference)["metrics"]
    address = words(data, tmp_path, base.official_weights(MODEL))
    assert str(trained_model.resolve_weights(load(MODEL, address)[0])) == first["weight_path"]  # from the cache


def test_official_weights_without_a_network_are_a_clear_error(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setattr(base, "PRETRAINED", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError, match=r"-o Evaluate\.weight_path=FILE"):
        run(data, tmp_path / "out", None)


def test_a_folder_that_is_no_inference_directory_names_what_was_meant(run_folder, inference, data, tmp_path):
    best = run_folder / "best_model"
    for folder in (best, run_folder):
        with pytest.raises(WeightsError) as caught:
            run(data, tmp_path / "out", folder)
        assert "lacks inference.yml, inference.pdiparams, inference.json or inference.pdmodel" in str(caught.value)
        assert f"{best}/best_model.pdparams or {best}/inference." in str(caught.value)
    broken = tmp_path / "broken"
    shutil.copytree(inference, broken)
    (broken / "inference.pdiparams").unlink()
    with pytest.raises(WeightsError, match=r"lacks inference\.pdiparams\."):
        run(data, tmp_path / "out", broken)
    with pytest.raises(WeightsError, match="does not exist"):
        run(data, tmp_path / "out", tmp_path / "absent.pdparams")


def test_the_network_itself_answers_as_the_engine_does(run_folder, inference):
    network = recognizer.build(SPECS[MODEL], 8)
    weights.load(network, run_folder / "best_model/best_model.pdparams")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    features = NetworkExtractor(network, Preprocess(32))(images)
    assert features.dtype == np.float32 and np.abs(np.linalg.norm(features, axis=1) - 1).max() < 1e-6
    assert np.abs(features - FeatureExtractor(inference)(images)).max() <= 1e-5


def test_mixed_precision_is_for_networks_on_a_gpu(run_folder, inference, data, tmp_path):
    with pytest.raises(DeviceError, match="needs a GPU"):
        run(data, tmp_path / "out", run_folder / "best_model/best_model.pdparams", amp="O1")
    with pytest.raises(ConfigError, match="own precision"):
        run(data, tmp_path / "out", inference, amp="O1")


# What is refused before anything is computed


def refused(monkeypatch, data: Path, output: Path, weight: Path, **settings: object) -> str:
    """The error's text; nothing may be embedded."""
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: pytest.fail("something was embedded"))
    with pytest.raises(FeatError) as caught:
        run(data, output, weight, **settings)
    assert not isinstance(caught.value, ImageError)
    return str(caught.value)


def test_faults_of_the_lists_are_found_first(inference, data, tmp_path, monkeypatch):
    say = functools.partial(refused, monkeypatch, data, tmp_path / "out", inference)
    query = (data / "query.txt").read_text()
    append(data, "query", "images/gone.pgm 210")
    assert "1 images of query.txt do not exist" in say() and "query.txt:13 (images/gone.pgm)" in say()
    (data / "query.txt").write_text("images/s21/03.pgm 7\n")
    assert "No query has a gallery image of its label" in say()
    (data / "query.txt").write_text((data / "gallery.txt").read_text().splitlines()[0] + "\n")
    append(data, "query", "images/s21/03.pgm 999")
    first = (data / "gallery.txt").read_text().splitlines()
    (data / "gallery.txt").write_text("\n".join(line for line in first if "s21/02" not in line) + "\n")
    assert "besides its own file" in say(exclude_self=True)
    (data / "query.txt").write_text("")
    assert "query.txt: The list holds no image" in say()
    (data / "query.txt").unlink()
    assert "query.txt" in say() and "cannot be read" in say()
    (data / "query.txt").write_text(query)
    (data / "gallery.txt").unlink()
    assert "gallery.txt" in say()


def test_an_output_that_cannot_be_written_is_found_first(inference, data, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/evaluate").write_text("a file where the folder should be")
    assert "Cannot write" in refused(monkeypatch, data, tmp_path / "out", inference)


def test_no_match_leaves_no_metrics(inference, data, tmp_path):
    (data / "query.txt").write_text("images/s21/03.pgm 7\n")
    done, result = run_process(data, tmp_path / "out", inference)
    assert done.returncode == 1 and result["done_flag"] is False and "metrics" not in result


def test_an_image_that_cannot_be_decoded_is_named(inference, data, tmp_path):
    (data / "bad.jpg").write_bytes(b"no image")
    append(data, "query", "bad.jpg 210")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        run(data, tmp_path / "out", inference)


def test_lists_below_the_folder_need_no_train_list(data, tmp_path):
    lists = require_lists(str(data.parent), ("gallery", "query"))
    assert lists["gallery"].root == data and len(lists["query"]) == 12
    with pytest.raises(DatasetError, match=r"No folder with gallery\.txt and query\.txt, or"):
        require_lists(str(ROOT / "docs"), ("gallery", "query"))


# Keys


def test_faulty_keys_are_named():
    for value in ([0], [3, 3], ["5"]):
        with pytest.raises(ConfigError, match=r"Evaluate\.recall_ks"):
            load(MODEL, [("Evaluate.recall_ks", value)])
    with pytest.raises(ConfigError, match=r"Evaluate\.amp"):
        load(MODEL, [("Evaluate.amp", "O2")])
    config, _ = load(MODEL, [("Evaluate.recall_ks", [20, 2]), ("Evaluate.amp", False)])
    assert config.Evaluate.recall_ks == [2, 20] and config.Evaluate.amp == "OFF"


def test_recall_ks_exclude_self_and_features(inference, data, tmp_path):
    gallery, query = ((data / f"{name}.txt").read_text() for name in ("gallery", "query"))
    (data / "gallery.txt").write_text(gallery + query.replace("images/", "./images/"))  # query is part of it
    plain = run(data, tmp_path / "a", inference, recall_ks=[2, 10], save_features=True)
    assert list(plain["metrics"]) == ["recall1", "recall5", "mAP"]
    assert list(plain["recall"]) == ["1", "2", "5", "10"]
    assert plain["metrics"]["recall1"] == 1 and plain["features"] == "evaluate/features.npz"
    own = run(data, tmp_path / "b", inference, exclude_self=True, save_features=True)
    assert own["metrics"]["recall1"] < 1 and list(own["metrics"]) == ["recall1", "recall5", "mAP"]
    files = [tmp_path / f"{name}/evaluate/features.npz" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = np.load(files[0], allow_pickle=False)
    assert loaded["features"].shape == (36, 512) and loaded["features"].dtype == np.float32
    assert loaded["labels"].dtype == np.int64 and loaded["labels"].tolist() == [
        int(line.split()[1]) for line in (gallery + query + query).splitlines()
    ]
    assert loaded["paths"][24:].tolist() == [line.split()[0] for line in query.splitlines()]
    assert loaded["lists"].tolist() == ["gallery"] * 24 + ["query"] * 12


@pytest.mark.parametrize("fault", [OutputError("Cannot write"), MemoryError("none left"), RuntimeError("a fault")])
def test_what_fails_after_the_metrics_costs_no_figures(inference, data, tmp_path, monkeypatch, fault):
    def fails(*_):
        raise fault

    monkeypatch.setattr(evaluate, "write_features", fails)
    with pytest.raises(FeatError, match=str(fault)) as caught:
        run(data, tmp_path / "out", inference, save_features=True)
    assert "mAP" in caught.value.result["metrics"] and "features" not in caught.value.result


def test_nothing_of_an_earlier_evaluation_is_left(inference, data, tmp_path):
    folder = tmp_path / "out/evaluate"
    run(data, tmp_path / "out", inference, save_features=True)
    (folder / "mine.txt").write_text("kept")
    assert {*evaluation_report.FILES, "features.npz"} < {f.name for f in folder.iterdir()}
    append(data, "query", "nowhere.png 210")
    with pytest.raises(DatasetError, match=r"images of query.txt do not exist"):
        run(data, tmp_path / "out", inference)
    assert [f.name for f in folder.iterdir()] == ["mine.txt"]
    (folder / "report.html").mkdir()
    with pytest.raises(OutputError, match="directory"):
        run(data, tmp_path / "out", inference)


# Lists and features made here


class Means:
    """An extractor that needs no network: features from the mean of each channel; some can be spoilt."""

    preprocess = Preprocess(8)

    def __init__(self, spoilt: int = -1):
        self.spoilt = spoilt

    def __call__(self, images: np.ndarray) -> np.ndarray:
        means = images.reshape(len(images), -1, 3).mean(1).astype(np.float32)
        rows = np.concatenate([np.sin(means), np.cos(3 * means)], 1)
        rows[means[:, 0].round() == self.spoilt] = np.nan
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made_lists(folder: Path, gallery: int, query: int) -> dict[str, ImageList]:
    """Images of one colour; the red of each is its number. The first query is the first gallery image."""
    for number in range(gallery + query):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), (number * 7 % 256, number * 3, number), np.uint8))
    parts = {"gallery": range(gallery), "query": [0, *range(gallery + 1, gallery + query)]}
    return {
        name: ImageList(name, folder, [f"{i}.png" for i in own], [i % 3 for i in own], [i + 1 for i in range(len(own))])
        for name, own in parts.items()
    }


@pytest.mark.parametrize("name", ["gallery", "query"])
def test_features_that_are_not_finite_name_the_image(tmp_path, name):
    lists = made_lists(tmp_path, 9, 5)
    red, line = {"gallery": (7, 8), "query": (11, 3)}[name]
    with pytest.raises(EvaluationError, match=rf"{name}\.txt:{line}: .*/{red}\.png") as caught:
        Evaluator(lists, 4, 2)(Means(red))
    assert "1 of 4 images" in caught.value.what or name == "query"


def test_two_lists_of_the_same_images_are_embedded_once(tmp_path):
    made = made_lists(tmp_path, 9, 5)
    twin = ImageList("query", tmp_path, [f"./{path}" for path in made["gallery"].paths], made["gallery"].labels)

    class Counted(Means):
        images = 0

        def __call__(self, images):
            Counted.images += len(images)
            return super().__call__(images)

    found = [
        Evaluator(
            {"gallery": made["gallery"], "query": query}, 4, 2, self_pairs=find_self_pairs(query, made["gallery"])
        )
        for query in (made["gallery"], twin)
    ]
    one, other = (evaluator(Counted(), baseline=True) for evaluator in found)
    assert Counted.images == 2 * 9 and one.main_metrics() == other.main_metrics()
    assert one.baseline == other.baseline and np.array_equal(one.query, other.query) and len(other.query) == 9
    Evaluator(made, 4, 2)(Counted())
    assert Counted.images == 2 * 9 + 9 + 5


def test_features_beyond_the_bound_lie_in_a_file_that_vanishes(tmp_path):
    (tmp_path / "scratch").mkdir()
    lists = made_lists(tmp_path, 9, 5)
    small = Evaluator(lists, 4, 2, memory=600, scratch=tmp_path / "scratch")
    within, beyond = Evaluator(lists, 4, 2, memory=2 * 14 * 6 * 4)(Means()), small(Means())
    assert isinstance(beyond.gallery, np.memmap) and not isinstance(within.gallery, np.memmap)
    assert np.array_equal(beyond.gallery, within.gallery) and np.array_equal(beyond.query, within.query)
    assert beyond.main_metrics() == within.main_metrics() and not list((tmp_path / "scratch").iterdir())
    with pytest.raises(EvaluationError):
        small(Means(11))
    assert not list((tmp_path / "scratch").iterdir())
    write_features(tmp_path / "a.npz", within.gallery, within.query, lists["gallery"], lists["query"])
    write_features(tmp_path / "b.npz", beyond.gallery, beyond.query, lists["gallery"], lists["query"])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    lists["query"].paths[0] = "caf\udce9.png"  # a name that is no UTF-8
    write_features(tmp_path / "a.npz", within.gallery, within.query, lists["gallery"], lists["query"])
    assert np.load(tmp_path / "a.npz", allow_pickle=False)["paths"][9] == "caf\udce9.png"


def test_npz_files_are_written_in_pieces_and_load(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    for name in ("a", "b"):
        with NpzWriter(tmp_path / f"{name}.npz") as writer:
            writer.write("rows", rows.dtype, rows.shape, (row.tobytes() for row in rows))
            writer.write("names", np.dtype("<U2"), (2,), [np.array(["x", "\udce9"], "<U2").tobytes()])
            writer.write("empty", np.dtype(np.int64), (0,), [])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = np.load(tmp_path / "a.npz", allow_pickle=False)
    assert found.files == ["rows", "names", "empty"]
    assert (
        np.array_equal(found["rows"], rows) and found["names"].tolist() == ["x", "\udce9"] and not found["empty"].size
    )


def test_a_disk_without_room_for_the_features_is_an_error(tmp_path):
    lists = made_lists(tmp_path, 9, 5)
    with pytest.raises(OutputError, match=r"Global\.output"):
        Evaluator(lists, 4, 2, memory=1, scratch=tmp_path / "0.png" / "below")(Means())


def test_ranking_is_told_its_share_of_the_memory_and_what_to_leave_out(tmp_path, monkeypatch):
    import paddlex_feat.evaluation.evaluator as module

    seen, plain = {}, module.rank_gallery
    monkeypatch.setattr(module, "rank_gallery", lambda *a, **k: seen.update(k, self_pairs=a[4]) or plain(*a, **k))
    made = made_lists(tmp_path, 9, 5)
    found = Evaluator(made, 4, 3, memory=2**30, self_pairs=find_self_pairs(made["query"], made["gallery"]))(Means())
    assert seen["memory_bytes"] == 2**30 - 14 * 6 * 4 and seen["threads"] == 3
    assert seen["self_pairs"].tolist() == found.self_pairs.tolist() == [[0, 0]]
    Evaluator(made_lists(tmp_path, 9, 5), 4, 3, memory=2**20)(Means())
    assert seen["memory_bytes"] == 2**26 and seen["self_pairs"] is None
    Evaluator(made_lists(tmp_path, 9, 5), 4, 3, threads=1)(Means())
    assert seen["threads"] == 1


class Together:
    """A group of threads in place of processes."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, shelf: list):
        self.rank, self.size, self._barrier, self._shelf = rank, size, barrier, shelf

    def all_gather_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        self._shelf[self.rank] = rows.copy()
        self._barrier.wait(10)
        parts = list(self._shelf)
        self._barrier.wait(10)
        return parts


@pytest.mark.parametrize(("queries", "size", "piece"), [(5, 2, 2**25), (7, 3, 1), (2, 3, 100), (1, 4, 1)])
def test_ranks_put_together_what_one_process_finds(tmp_path, monkeypatch, queries, size, piece):
    """Also where a rank has no batch, or no query; bounded pieces of one round of batches each."""
    monkeypatch.setattr(embedding, "EXCHANGED_BYTES", piece)
    lists = made_lists(tmp_path, 11, queries)
    own = find_self_pairs(lists["query"], lists["gallery"])
    whole = Evaluator(lists, 4, 1, self_pairs=own)(Means())
    barrier, shelf, found = threading.Barrier(size), [None] * size, {}

    def work(rank: int) -> None:
        group = Together(rank, size, barrier, shelf)
        found[rank] = Evaluator(lists, 4, 1, group, self_pairs=own)(Means())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for rank in range(size):
        assert np.array_equal(found[rank].gallery, whole.gallery) and np.array_equal(found[rank].query, whole.query)
        for name, column in vars(whole.ranking).items():
            assert np.array_equal(getattr(found[rank].ranking, name), column, equal_nan=True), name


def test_pieces_are_the_batches_that_were_dealt(tmp_path):
    files = [str(tmp_path / "1.png")] * 23
    cv2.imwrite(files[0], np.zeros((4, 4, 3), np.uint8))
    for batch_size, size, rows in ((4, 3, 1), (5, 2, 11), (64, 3, 9), (1, 4, 8)):
        pieces = list(embedding._pieces(len(files), batch_size, size, rows))
        for rank in range(size):
            dealt = [i for i, _ in evaluation_batches(files, Preprocess(4), batch_size, 1, rank, size)]
            assert np.concatenate([p[rank] for p in pieces]).tolist() == [int(i) for d in dealt for i in d]


def test_matches_and_self_pairs_are_those_of_the_lists(tmp_path):
    gallery = ImageList("gallery", tmp_path, ["a", "b", "./a", "c"], [1, 1, 2, 3], [1, 2, 3, 4])
    query = ImageList("query", tmp_path, ["x/../a", "c", "d"], [1, 3, 4], [1, 2, 3])
    own = find_self_pairs(query, gallery)
    assert own.tolist() == [[0, 0], [0, 2], [1, 3]]
    assert match_counts(query, gallery).tolist() == [2, 1, 0]
    assert match_counts(query, gallery, own).tolist() == [1, 0, 0]
    require_matches(query, gallery, own)
    assert find_self_pairs(ImageList("query", tmp_path, ["z"], [1], [1]), gallery).shape == (0, 2)


# Several processes


@pytest.mark.slow
def test_two_processes_leave_the_result_of_one_byte_for_byte(run_folder, small_faces, tmp_path):
    weight = run_folder / "best_model/best_model.pdparams"
    folders = []
    for device in ("cpu", "cpu:0,1"):
        folders.append(tmp_path / device.replace(":", "_"))
        more = (f"Global.device={device}", "Evaluate.batch_size=5", "Evaluate.save_features=True")
        done, _ = run_process(small_faces, folders[-1], weight, *more)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("mAP@R: ") == done.stderr.count("Report: ") == 1
    one, two = ((folder / "evaluate_result.json").read_bytes() for folder in folders)
    assert one == two
    names = [{str(f.relative_to(folder)) for f in folder.rglob("*")} for folder in folders]
    logs = {name for name in names[1] - names[0] if name.startswith("distributed_evaluate_logs")}
    assert names[1] - names[0] == logs and "distributed_evaluate_logs/rank_1.log" in logs
    assert not names[0] - names[1]


@pytest.mark.slow
def test_an_error_of_any_process_is_the_jobs_error(inference, data, tmp_path):
    (data / "bad.jpg").write_bytes(b"no image")
    append(data, "query", "bad.jpg 210")
    done, result = run_process(data, tmp_path / "out", inference, "Global.device=cpu:0,1", "Evaluate.batch_size=24")
    assert done.returncode == 1 and "worker 1" in done.stderr and "query.txt:13: " in done.stderr
    assert "bad.jpg" in done.stderr
    assert result["done_flag"] is False and "ImageError" in result["err_type"] and "metrics" not in result
    assert done.stderr.count("ERROR") == 1


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(inference, data, tmp_path):
    lines = (data / "query.txt").read_text()
    (data / "query.txt").write_text(lines * 4000)
    settings = [f"{key}={value}" for key, value in words(data, tmp_path / "out", inference)]
    options = [w for s in (*settings, "Global.device=cpu:0,1") for w in ("-o", s)]
    command = [sys.executable, "main.py", "-c", MODEL, *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out/distributed_evaluate_logs/rank_1.log"
    until = time.monotonic() + 60
    while not (log.exists() and "Inference model" in log.read_text()) and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Interrupted" in message
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert not left


def test_features_of_any_length_become_unit_rows():
    rows = np.float32([[3e38, 3e38], [1e-42, 0], [0, 0], [3, 4]])
    assert unit_rows(rows) == pytest.approx(np.float32([[0.5**0.5] * 2, [1, 0], [0, 0], [0.6, 0.8]]))


def test_a_foreign_inference_directory_is_compared_by_unit_features(inference, data, tmp_path, caplog):
    foreign = tmp_path / "foreign"
    shutil.copytree(inference, foreign)
    text = (foreign / "inference.yml").read_text()
    (foreign / "inference.yml").write_text(text[: text.index("PostProcess")])
    with caplog.at_level("WARNING", "paddlex_feat"):
        found = run(data, tmp_path / "out", foreign)
    assert found["metrics"] == run(data, tmp_path / "own", inference)["metrics"]
    assert "does not normalize features" in caplog.text
    (foreign / "inference.yml").write_text(text.replace("- ToCHWImage", "- CropImage:\n      size: 24\n  - ToCHWImage"))
    with pytest.raises(WeightsError, match="CropImage is not among"):
        run(data, tmp_path / "out", foreign)


def test_a_sample_of_the_queries_tells_how_far_all_may_be(run_folder, small_faces, tmp_path):
    words = (
        "Global.mode=evaluate",
        f"Global.dataset_dir={small_faces}",
        f"Evaluate.weight_path={run_folder}/best_model/inference",
    )
    results = {}
    for name, more in (("all", ()), ("part", ("Evaluate.query_sample=8",)), ("more", ("Evaluate.query_sample=99",))):
        settings = (*words, f"Global.output={tmp_path / name}", "Global.device=cpu", *more)
        done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)))
        assert done.returncode == 0, done.stderr
        results[name] = json.loads((tmp_path / name / "evaluate_result.json").read_text())
    sample = results["part"]["sample"]
    assert (sample["queries"], sample["of"], sample["level"]) == (8, 12, 0.95) and "sample" not in results["all"]
    assert results["more"]["metrics"] == results["all"]["metrics"] and "sample" not in results["more"]
    for name, (low, high) in sample["intervals"].items():
        assert 0 <= low <= results["part"]["metrics"][name] <= high <= 1


def test_a_sample_without_a_match_says_that_more_may_have_one(run_folder, small_faces, tmp_path):
    data = shutil.copytree(small_faces, tmp_path / "data")
    lines = (data / "query.txt").read_text().splitlines()
    strange = [f"{line.rpartition(' ')[0]} 999" for line in lines[1:]]
    (data / "query.txt").write_text("\n".join([lines[0], *strange]) + "\n")
    model = f"Evaluate.weight_path={run_folder}/best_model/inference"
    words = (
        "Global.mode=evaluate",
        f"Global.dataset_dir={data}",
        model,
        f"Global.output={tmp_path}",
        "Global.device=cpu",
    )
    done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in (*words, "Evaluate.query_sample=1") for w in ("-o", s)))
    assert done.returncode == 1 and "Raise Evaluate.query_sample" in done.stderr
