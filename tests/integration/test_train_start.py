"""What a training starts from: classes that differ, null, a learning rate that destroys it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import train_here

pytest.importorskip("paddle")

from paddlex_feat.config.load import load
from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.errors import ConfigError, EvaluationError, WeightsError
from paddlex_feat.evaluation.evaluator import Evaluation
from paddlex_feat.modes import train as modes_train
from paddlex_feat.modes import train_classes, train_rate
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.checkpoint import Progress


def require(before: list[int], now: list[int], widths: tuple[int, int], start: Path) -> str:
    progress = Progress(classes=before, num_classes=widths[0])
    with pytest.raises(ConfigError) as caught:
        train_classes.require_same_classes(progress, now, widths[1], start, "Train.resume")
    return str(caught.value)


@pytest.mark.parametrize(
    ("before", "now", "widths", "said"),
    [
        ([0, 1], [0, 1, 2], (2, 3), "3 classes, the run has 2; added: 2."),
        ([0, 1, 2], [0, 2], (3, 2), "2 classes, the run has 3; removed: 1."),
        ([0, 1], [5, 6], (2, 2), "2 classes, the run has 2; added: 5, 6; removed: 0, 1."),
        (list(range(20)), [], (20, 0), "removed: 0, 1, 2, 3, 4, …."),
        ([0, 1], [0, 1], (2, 9), "would have 9 classes, that of the run that is resumed has 2."),
    ],
)
def test_a_resume_with_other_classes_speaks_of_classes(before, now, widths, said, tmp_path):
    (tmp_path / "best_model").mkdir()
    best = tmp_path / "best_model/best_model.pdparams"
    start = tmp_path / "latest/latest.pdparams"
    assert f"Train.pretrain_weight_path={start}" in require(before, now, widths, start)
    best.touch()
    text = require(before, now, widths, start)
    assert said in text and f"-o Train.resume=null -o Train.pretrain_weight_path={best}" in text
    train_classes.require_same_classes(Progress(classes=before), before, 5, start, "Train.resume")  # width not recorded


@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        ("removed", "resume_path"),
        ("removed", "auto"),
        ("one", "resume_path"),  # a single class cannot be trained on either
    ],
)
def test_removed_classes_are_reported_before_the_batches_they_break(kept, asked, run_folder, small_faces, tmp_path):
    data, output = tmp_path / "data", tmp_path / "output"
    data.mkdir()
    for entry in small_faces.iterdir():
        (data / entry.name).symlink_to(entry.resolve())
    lines = (small_faces / "train.txt").read_text().splitlines()
    labels = sorted({int(line.split()[-1]) for line in lines})
    gone = labels[1:] if kept == "one" else labels[:1]
    (data / "train.txt").unlink()
    (data / "train.txt").write_text("\n".join(line for line in lines if int(line.split()[-1]) not in gone))
    start = run_folder / "latest/latest.pdparams"
    if asked == "auto":
        shutil.copytree(run_folder / "latest", output / "latest")
        start = output / "latest/latest.pdparams"
    resume = "Train.resume=auto" if asked == "auto" else f"Train.resume_path={start}"
    pairs = [("Global.mode", "train"), ("Global.dataset_dir", str(data)), ("Global.device", "cpu")]
    pairs += [("Train.batch_size", 16), ("Train.samples_per_class", 2), tuple(resume.split("=", 1))]
    config = load("PP-ShiTuV2_rec", pairs)[0]
    with pytest.raises(ConfigError, match=f"other classes than the run that is resumed.*removed: {gone[0]}") as caught:
        modes_train.run(config, output, ProcessGroup())
    assert caught.value.where == str(start) and f"-o {resume.split('=')[0]}=null" in caught.value.fix


def test_an_unreadable_checkpoint_is_left_to_its_reader(tmp_path):
    for content in (b"", b"\x80\x04]."):
        (tmp_path / "a.pdstates").write_bytes(content)
        train_classes.require_classes_of(tmp_path / "a.pdparams", [1], "Train.resume")
    train_classes.require_classes_of(tmp_path / "none.pdparams", [1], "Train.resume")


def test_the_classes_of_weights_are_those_of_the_run_beside_them(tmp_path):
    weights = tmp_path / "best_model/best_model.pdparams"
    weights.parent.mkdir()
    assert train_classes.has_other_classes(weights, [1, 2]) is None
    (tmp_path / "class_map.json").write_text('{"0": 1, "1": 2}')
    assert [train_classes.has_other_classes(weights, c) for c in ([1, 2], [1, 2, 3], [1], [2, 3])] == [
        False,
        False,
        True,
        True,
    ]


def relabelled(small_faces: Path, folder: Path, change: dict[str, str]) -> Path:
    shutil.copytree(small_faces, folder, symlinks=True)
    lines = [line.split() for line in (folder / "train.txt").read_text().splitlines()]
    (folder / "train.txt").write_text("".join(f"{path} {change.get(label, label)}\n" for path, label in lines))
    return folder


def test_a_run_with_classes_added_is_not_resumed(small_faces, run_folder, tmp_path):
    data = relabelled(small_faces, tmp_path / "data", {})
    with (data / "train.txt").open("a") as stream:
        stream.writelines(f"images/s09/{n:02}.pgm 90\n" for n in range(1, 5))
    shutil.copytree(run_folder, tmp_path / "run", symlinks=True)
    done = train_here(data, tmp_path / "run", "Train.resume=auto", "Train.epochs_iters=4")
    assert done.returncode == 1 and "9 classes, the run has 8; added: 90." in done.stderr
    assert f"Train.pretrain_weight_path={tmp_path}/run/best_model/best_model.pdparams" in done.stderr
    assert "head.fc.weight" not in done.stderr


@pytest.mark.slow
def test_weights_of_other_classes_lend_no_classifier(small_faces, run_folder, tmp_path):
    start = f"Train.pretrain_weight_path={run_folder}/best_model/best_model.pdparams"
    data = relabelled(small_faces, tmp_path / "data", {"10": "11"})
    done = train_here(data, tmp_path / "out", start, "Train.epochs_iters=1")
    assert done.returncode == 0 and "trained with other classes than train.txt has" in done.stderr
    assert "newly initialised: head.fc.weight" in done.stderr and "a new run in" in done.stderr


@pytest.mark.parametrize(
    ("other", "loaded", "said"),
    [
        (True, False, "the classifier is re-initialised"),
        (None, True, "The classifier is taken over too, as its width fits"),
        (False, True, "with the classes of train.txt"),
        (None, False, ""),
    ],
)
def test_one_line_says_whose_classifier_it_is(other, loaded, said, caplog):
    caplog.set_level("INFO")
    train_classes.log_classifier(other, loaded)
    assert len(caplog.messages) == bool(said) and said in caplog.text


def test_null_is_logged_at_the_start_of_a_run(run_folder):
    log = (run_folder / "train.log").read_text()
    assert "Train.pretrain_weight_path is null: training starts from random weights." in log
    assert f"Train.resume and Train.resume_path are null: a new run in {run_folder}." in log


@pytest.mark.slow
def test_a_learning_rate_that_destroys_the_run_is_named(small_faces, tmp_path):
    harsh = ("Train.warmup_steps=0", "Train.batch_size=32", "Train.epochs_iters=1")
    done = train_here(small_faces, tmp_path, "Train.learning_rate=1e6", *harsh)
    error = json.loads((tmp_path / "train_result.json").read_text())["err_msg"]
    assert done.returncode == 1 and "RuntimeWarning" not in done.stderr
    # Where the loss is the first to be no number, its error says what to do; else that of the evaluation.
    assert "Train.learning_rate" in error and "Train.warmup_steps" in error
    assert "not finite" in error or ("Train.learning_rate is 1e+06" in error and "probable cause" in error)


@pytest.mark.slow
def test_features_that_collapse_are_a_warning_and_their_export_an_error_that_name_the_rate(small_faces, tmp_path):
    harsh = ("Train.warmup_steps=0", "Train.batch_size=32", "Train.epochs_iters=1")
    done = train_here(small_faces, tmp_path, "Train.learning_rate=30", *harsh)
    warning, _, error = done.stderr.partition("ERROR: ")
    assert "WARNING: Nearly all images have the same features" in warning and "Train.learning_rate is 30" in warning
    assert not error or "Train.learning_rate is 30" in error


class State:
    """As much of a TrainingState as `train_rate` looks at."""

    def __init__(self, weights: dict[str, np.ndarray], step: int = 3):
        self.progress = Progress(step=step)
        self._weights = weights

    def weights(self) -> dict[str, np.ndarray]:
        return {name: type("Tensor", (), {"numpy": lambda self, a=array: a})() for name, array in self._weights.items()}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, float("nan")], "1 of 2 tensors of the network are not finite after step 3; a probable cause"),
        ([1.0, -2e7], "is 2e+07, in b, after step 3; a probable cause"),
        ([1.0, 2.0], "is 2 after step 3; a possible cause"),
    ],
)
def test_the_cause_depends_on_what_the_weights_look_like(weights, said):
    state = State({"a": np.ones(3), "b": np.array(weights)})
    error = EvaluationError("The features are not finite numbers.", where="g.txt:1")
    explained = train_rate.explain_failure(error, TrainSection(learning_rate=0.5), state)
    assert said in explained.what and "Train.learning_rate is 0.5" in explained.what
    assert explained.where == "g.txt:1" and "Train.learning_rate=0.01" in explained.fix
    assert said in train_rate.explain_collapse(TrainSection(learning_rate=0.5), state)


def test_other_failures_and_those_before_the_first_step_stay_as_they_are():
    error, other = EvaluationError("not finite"), EvaluationError("another shape")
    assert train_rate.explain_failure(error, TrainSection(), State({"a": np.ones(1)}, step=0)) is error
    assert train_rate.explain_failure(other, TrainSection(), State({"a": np.ones(1)})) is other


def test_an_export_of_ruined_weights_does_not_differ_for_paddles_sake():
    error = WeightsError("The exported model differs.", where="w", fix="Report it.")
    ruined = State({"a": np.array([1e9])})
    assert (
        "Train.learning_rate is 7" in train_rate.explain_disagreement(error, TrainSection(learning_rate=7), ruined).what
    )
    assert train_rate.explain_disagreement(error, TrainSection(), State({"a": np.ones(1)})) is error


@pytest.mark.parametrize(
    ("rows", "distinct", "collapsed"), [(5, 1, True), (5, 2, False), (24, 2, True), (24, 3, False)]
)
def test_features_that_are_nearly_all_the_same_have_collapsed(rows, distinct, collapsed):
    features = np.full((rows, 4), 0.5, np.float32)
    features[:distinct, 0] += np.arange(distinct) * 1e-3
    features[0, 1] += 1e-8
    assert Evaluation(None, None, features[:2], features[2:]).collapsed is collapsed
