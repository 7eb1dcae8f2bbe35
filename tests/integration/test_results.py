"""How results are printed, named and saved, and what mode predict leaves behind."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import pickle
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import ROOT, run_here

pytest.importorskip("paddle")

import paddlex_feat
from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, DependencyError, ImageError, OutputError
from paddlex_feat.fileio.atomic_folder import atomic_folder
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.inference import writers
from paddlex_feat.inference.results import FeatureResult, OutputNames
from paddlex_feat.modes import predict as predict_mode
from paddlex_feat.modes.predictor import inputs_of
from paddlex_feat.runtime.distributed import ProcessGroup

NAME = "PP-ShiTuV2_rec"
FORMS = ("jsonl", "npz", "parquet")


def made(number: int, path: str | None = None, page: int | None = None) -> FeatureResult:
    """A result without a model."""
    feature = np.random.default_rng(number).normal(size=512).astype(np.float32)
    return FeatureResult(path, feature, f"r{number}", number, page)


def read_back(path: Path) -> tuple[list[str], list[int], np.ndarray]:
    """Paths ("" for none), page indices (-1 for none) and features of any form."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            assert content["features"].dtype == np.float32
            return content["input_paths"].tolist(), content["page_indices"].tolist(), content["features"]
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
        rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    features = np.array([row["feature"] for row in rows], np.float32)
    return [row.get("input_path") or "" for row in rows], [row.get("page_index", -1) for row in rows], features


def test_a_result_is_a_dict_of_plain_values_with_its_feature_beside_it():
    result = made(1, "a.jpg", 3)
    assert list(result) == ["input_path", "page_index", "feature"]
    assert result.feature is result.feature and result.feature.tolist() == result["feature"]
    assert result.json == result.str == {"res": dict(result)}
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert other == result and (other.feature == result.feature).all() and type(other) is FeatureResult


def test_print(capsys):
    result = made(1, "ü\udcff.jpg")

    def printed(*args, **options) -> str:
        result.print(*args, **options)
        return capsys.readouterr().out

    assert json.loads(printed())["res"]["feature"] == result["feature"]
    assert "\n    " in printed() and "ü" in printed() and "\\u00fc" in printed(ensure_ascii=True)
    assert printed(True, 2, True) == printed(format_json=True, indent=2, ensure_ascii=True)
    for plain in (printed(False), printed(format_json=False), printed(json_format=False)):
        assert plain.startswith("{'res': {'input_path': '") and plain.count("\n") == 1


def test_saved_results_never_overwrite_one_another(model, faces, tmp_path):
    same_stems = [str(faces / f"images/s{p:02d}/01.pgm") for p in range(1, 31)]
    results = list(model.predict(same_stems, batch_size=8))
    paths = {r.save_to_json(tmp_path / "folder") for r in results}
    assert len(paths) == len(list((tmp_path / "folder").iterdir())) == 30
    assert (tmp_path / "folder" / "01_res.json").is_file() and (tmp_path / "folder" / "01_30_res.json").is_file()
    paths = {r.save_all(str(tmp_path / "one.json")) for r in results[:3]}
    assert sorted(p.name for p in paths) == ["one.json", "one_2.json", "one_3.json"]
    assert json.loads((tmp_path / "one_2.json").read_text()) == dict(results[1])
    results[0].save_to_json(tmp_path / "flat.json", 0, True)
    assert json.loads((tmp_path / "flat.json").read_text()) == dict(results[0])


def test_arrays_of_several_calls_are_saved_apart(model, files, tmp_path):
    for _ in range(3):
        for result in model.predict([cv2.imread(files[0])] * 2):
            result.save_to_json(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_stems_that_look_numbered_or_are_alike_stay_apart():
    stems = OutputNames()
    paths = ("a.jpg", "b/a.jpg", "a_2.jpg", "c/A.jpg", "http://h/d/a.png?x=/b.c")
    assert [stems.next(p) for p in paths] == ["a", "a_2", "a_2_2", "A_3", "a_4"]
    assert [stems.next("a.tif", page) for page in (0, 2)] == ["a_0", "a_2_3"]
    assert stems.next("e\u0301.jpg") == "e\u0301" and stems.next("\u00e9.jpg") == "\u00e9_2"


ODD = ["x" * 255, "é" * 127 + ".jpg", "\udcff.jpg", ".hidden", ".jpg", 'a:b?*"<>|.png', "a\nb.png", "CON.jpg", "~"]
ODD += ["http://h/", "http://h", "http://h/a%20b.jpg?q=/c.d#e", "http://h/a:b\ud800.jpg", "日本.jpg", "a..", "-o"]


def test_odd_names_give_files(tmp_path):
    stems = OutputNames()
    for number, path in enumerate(ODD + ODD, 1):
        result = FeatureResult(path, np.zeros(2, np.float32), stems.next(path), number)
        saved = result.save_to_json(tmp_path)
        assert json.loads(saved.read_text())["feature"] == [0, 0] and saved.parent == tmp_path
    assert len(list(tmp_path.iterdir())) == 2 * len(ODD)
    with pytest.raises(OutputError):
        result.save_to_json(tmp_path / ("x" * 300 + ".json"))


@given(st.lists(st.one_of(st.none(), st.text("aA_2.éß/\\:", max_size=6), st.text(max_size=300)), max_size=40))
def test_no_two_names_are_alike_and_the_same_inputs_give_the_same(paths):
    stems, again = OutputNames(), OutputNames()
    given_names = [stems.next(p) for p in paths]
    assert len({name.casefold() for name in given_names}) == len(paths)
    assert all(0 < len(os.fsencode(f"{n}_res.json")) <= 255 and "/" not in n and "\0" not in n for n in given_names)
    named = [i for i, name in enumerate(given_names) if not name.startswith("array_")]
    others = [again.next(p) for p in paths]
    assert [others[i] for i in named] == [given_names[i] for i in named]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_read_back_is_the_results(model, files, tmp_path, form):
    pytest.importorskip("pyarrow") if form == "parquet" else None
    results = list(model.predict([*files[:3], cv2.imread(files[0])]))
    path = paddlex_feat.save_features(model.predict([*files[:3], cv2.imread(files[0])]), tmp_path / f"f.{form}")
    paths, pages, features = read_back(path)
    assert paths == [*files[:3], ""] and pages == [-1] * 4
    assert (features == np.stack([r.feature for r in results])).all()
    first = path.read_bytes()
    paddlex_feat.save_features([made(1, "\udcff.tif", 7)], str(path))
    assert read_back(path)[1] == [7] and (tmp_path / f"f.{form}.bak").read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("form", FORMS)
def test_row_groups_and_what_comes_before_an_error_are_kept(tmp_path, form, monkeypatch):
    pytest.importorskip("pyarrow") if form == "parquet" else None
    monkeypatch.setattr(writers, "ROWS", 4)
    results = [made(i, f"{i}.jpg") for i in range(10)]

    def failing():
        yield from results
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writers.save_features(failing(), tmp_path / f"a.{form}")
    assert (read_back(tmp_path / f"a.{form}")[2] == np.stack([r.feature for r in results])).all()
    with pytest.raises(OutputError, match="no result"):
        writers.save_features([], tmp_path / f"a.{form}")
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{form}"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_features_as_float32_whatever_they_were_made(tmp_path, form):
    """And those of another width, of another type or without numbers are refused, with what came before them kept."""
    pytest.importorskip("pyarrow") if form == "parquet" else None
    results, path = [made(i) for i in range(4)], tmp_path / f"a.{form}"
    expected = np.stack([r.feature for r in results])
    for result, kind in zip(results, (np.float32, np.float64, np.float16, list), strict=True):
        result.feature = result.feature.tolist() if kind is list else result.feature.astype(kind)
    results[0].feature *= 2  # the attribute is what every form writes
    expected[0] *= 2
    paths, _, features = read_back(writers.save_features(results, path))
    assert (
        len(paths) == 4
        and np.abs(features - expected).max() < 2e-3
        and (features[[0, 1, 3]] == expected[[0, 1, 3]]).all()
    )
    for bad, message in (
        (FeatureResult("b", np.zeros(2, np.float32), "b", 2), "has 2 numbers, the earlier ones have 512"),
        (FeatureResult("b", np.full(512, np.nan), "b", 2), "finite"),
        (FeatureResult("b", np.zeros((1, 512), np.float32), "b", 2), r"shape \(1, 512\)"),
        ({"input_path": "b", "feature": [0.0] * 512}, "type dict is not a FeatureResult"),
    ):
        path.unlink()
        with pytest.raises(OutputError, match=rf"{message}.*\n.*result 1"):
            writers.save_features([results[1], bad], path)
        assert (read_back(path)[2] == expected[1]).all() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_good_file_stays_where_nothing_could_be_written(tmp_path, form, monkeypatch):
    pytest.importorskip("pyarrow") if form == "parquet" else None
    path = writers.save_features([made(1)], tmp_path / f"a.{form}")
    good = path.read_bytes()
    with pytest.raises(OutputError, match="not a FeatureResult"):
        writers.save_features([{"feature": [1.0]}], path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.SAVERS[path.suffix], "add", full)
    with pytest.raises(OutputError, match="No space"):
        writers.save_features([made(2)], path)
    monkeypatch.setattr(writers.SAVERS[path.suffix], "__init__", full)
    with pytest.raises(OutputError, match="No space"):
        writers.save_features([made(2)], path)
    assert path.read_bytes() == good and len(list(tmp_path.iterdir())) == 1


def test_files_have_the_permissions_of_the_umask_which_is_never_changed(tmp_path, monkeypatch):
    """It belongs to all threads: what another one makes meanwhile would get the wrong permissions."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        path = made(1, "a.jpg").save_to_json(tmp_path)
        with atomic_folder(tmp_path / "folder"):
            pass
        assert [p.stat().st_mode & 0o777 for p in (path, tmp_path / "folder")] == [0o640, 0o750]
        with TemporaryFolder() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        monkeypatch.undo()
        os.umask(before)


def test_what_cannot_be_saved_is_said_before_anything_is_computed(tmp_path, monkeypatch):
    def never():
        raise AssertionError
        yield

    with pytest.raises(ConfigError, match=r"\.npz"):
        writers.save_features(never(), "a.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        writers.save_features(never(), tmp_path / "file" / "a.npz")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DependencyError, match="pip install"):
        writers.save_features(never(), tmp_path / "a.parquet")


def test_a_folder_may_end_in_json(tmp_path):
    (tmp_path / "run.json").mkdir()
    assert [made(i, f"{i}.jpg").save_to_json(tmp_path / "run.json").parent.name for i in (1, 2)] == ["run.json"] * 2


def predict(run_folder: Path, output: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    fixed = ("Global.mode=predict", "Global.device=cpu", f"Predict.model_dir={run_folder}/best_model/inference")
    words = [w for s in (*fixed, f"Global.output={output}", *settings) for w in ("-o", s)]
    return run_here("-c", NAME, *words)


def outcome(output: Path) -> dict:
    return json.loads((output / "predict_result.json").read_text())


def test_mode_predict_keeps_the_others_and_fails_where_an_input_does(run_folder, files, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    chosen = f"Predict.input=[{files[0]}, {tmp_path}/bad.jpg, {files[5]}]"
    done = predict(run_folder, tmp_path / "out", chosen)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "bad.jpg" in done.stderr
    assert "2 images, 1 failed" in done.stderr and done.stdout.count("'feature'") == 2
    result = outcome(tmp_path / "out")
    assert not result["done_flag"] and result["results"] == ["01_res.json", "01_2_res.json"]
    assert "bad.jpg" in result["err_msg"] and result["failed"][0]["input"] == f"{tmp_path}/bad.jpg"
    done = predict(run_folder, tmp_path / "raised", chosen, "Predict.on_error=raise", "Predict.save_format=npz")
    assert done.returncode == 1 and done.stdout == ""
    result = outcome(tmp_path / "raised")
    assert result["images"] == 1 and result["results"] == ["features.npz"] and result["failed"]
    assert read_back(tmp_path / "raised/features.npz")[0] == [files[0]]


def test_mode_predict_saves_all_in_one_file(run_folder, faces, model, tmp_path):
    folder = faces / "images/s21"
    expected = np.stack([r.feature for r in model(folder)])
    done = predict(run_folder, tmp_path, f"Predict.input={{img: {folder}}}", "Predict.save_format=jsonl")
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert "10 images, 0 failed" in done.stderr and "features.jsonl" in done.stderr
    assert outcome(tmp_path) == {
        "done_flag": True,
        "images": 10,
        "failed": [],
        "left_out": {},
        "results": ["features.jsonl"],
    }
    assert np.abs(read_back(tmp_path / "features.jsonl")[2] - expected).max() <= 1e-6


def test_mode_predict_without_an_image_is_an_error(run_folder, tmp_path):
    done = predict(run_folder, tmp_path, "Predict.input=[[], []]")
    assert done.returncode == 1 and "holds no image" in done.stderr


def test_names_that_look_like_numbers_are_names(run_folder, tmp_path):
    assert inputs_of("Predict.input", [123, {"img": [4, "a.jpg"]}]) == ["123", {"img": ["4", "a.jpg"]}]
    for value in (1.0, True, [["a.jpg", 2e5]], {"img": None}):
        with pytest.raises(ConfigError, match=r"YAML reads this one as.*\n.*Predict\.input\n.*quotes"):
            inputs_of("Predict.input", value)
    config = Config.model_validate({"Predict": {"input": 0, "model_dir": str(run_folder / "best_model/inference")}})
    with pytest.raises(ImageError, match="0: The input does not exist"):
        predict_mode.run(config, tmp_path, ProcessGroup())


def test_the_counts_of_images_are_said_well(run_folder, files, tmp_path):
    (tmp_path / "none").mkdir()
    done = predict(run_folder, tmp_path, f"Predict.input=[{tmp_path / 'none'}, {files[0]}]")
    assert (
        done.returncode == 1
        and "1 image, 1 failed" in done.stderr
        and "the results of the other 1 image" in done.stderr
    )
    done = predict(run_folder, tmp_path, f"Predict.input={tmp_path / 'none'}")
    assert done.returncode == 1 and "holds no images" in done.stderr and "there is no other" in done.stderr
    assert "other 0" not in done.stderr + outcome(tmp_path)["err_msg"]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_terminal_shows_results_or_a_bar(form, run_folder, files, tmp_path):
    options = ["Global.mode=predict", "Global.device=cpu", f"Predict.model_dir={run_folder}/best_model/inference"]
    options += [f"Global.output={tmp_path}", f"Predict.input={files[0]}", f"Predict.save_format={form}"]
    command = [sys.executable, ROOT / "main.py", "-c", NAME, *(word for option in options for word in ("-o", option))]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # a bar needs columns
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: the other side is closed
            while piece := os.read(ours, 2**16):
                shown += piece
        assert process.wait(timeout=60) == 0
    os.close(ours)
    assert (b"predicting" in shown) == (form == "jsonl") and (b"'feature'" in shown) == (form == "json")


def test_an_interrupted_prediction_keeps_what_is_done(run_folder, files, tmp_path):
    many = ", ".join(files * 400)
    (tmp_path / "many.yaml").write_text(
        f"Global: {{mode: predict, device: cpu, output: {tmp_path}/out}}\n"
        f"Predict: {{model_dir: {run_folder}/best_model/inference, input: [{many}], save: jsonl}}\n"
    )
    command = [sys.executable, "main.py", "-c", str(tmp_path / "many.yaml")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, CI's among them, ignore SIGINT, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline, growing = time.monotonic() + 120, "out/.paddlex_feat.tmp-*.jsonl"
        # More than one result: a Ctrl-C amidst the first one leaves none to keep.
        while not any(f.stat().st_size > 50_000 for f in tmp_path.glob(growing)) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    result = outcome(tmp_path / "out")
    assert process.returncode == 1 and "Interrupted" in result["err_type"], errors
    saved = read_back(tmp_path / "out/features.jsonl")[0]
    assert 0 < len(saved) < 6000 and abs(len(saved) - result["images"]) <= 1
    assert saved == (files * 400)[: len(saved)] and not list(tmp_path.glob("out/.paddlex_feat*"))


def test_a_reader_of_predictions_that_goes_away_is_an_error_that_says_so(run_folder, files, tmp_path):
    words = f"-o Global.output={tmp_path} -o Predict.model_dir={run_folder}/best_model/inference"
    command = (
        f"{sys.executable} main.py -c {NAME} -o Global.mode=predict {words} -o 'Predict.input={files[0]}' >/dev/full"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    result = outcome(tmp_path)
    assert done.returncode == 1 and result["done_flag"] is False and "tandard output" in result["err_msg"]
    assert "fault of paddlex_feat" not in done.stderr and (tmp_path / "01_res.json").is_file()
