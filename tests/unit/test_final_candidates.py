"""Averages of weights after the last epoch: which are measured, and what becomes best_model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_trainer import metrics, trainer

paddle = pytest.importorskip("paddle")

from paddlex_feat.errors import Interrupted
from paddlex_feat.models import weights
from paddlex_feat.training import checkpoint
from paddlex_feat.training.final_candidates import FinalCandidates, mean_of, mix

EPOCHS = 4
NAME = "backbone.proj"


class Scores:
    """recall1 of the epochs, then of the averages in the order in which they are measured; notes the weights."""

    def __init__(self, *scores: float):
        self.scores, self.seen = list(scores), []

    def __call__(self, network) -> dict[str, float]:
        self.seen.append(network.weights[NAME].numpy())
        return metrics(self.scores.pop(0))


def run(root: Path, evaluate, last: int = 4, start=None, **plan):
    own = trainer(root, evaluate, epochs=EPOCHS, save_interval=1, **plan)
    own.conclude = FinalCandidates(own, last, None if start is None else lambda: start)
    own.fit()
    return own


def read(root: Path, name: str, suffix: str = "pdparams") -> np.ndarray:
    return weights.read(root / name / f"{name}.{suffix}")[NAME]


def epochs_of(root: Path, *numbers: int) -> np.ndarray:
    rows = [read(root, f"epoch_{n}").astype(np.float64) for n in numbers]
    return np.mean(rows, axis=0).astype(np.float32)


def test_mixtures_are_linear_and_leave_the_head():
    start, end = {"a": np.float32([0, 2])}, {"a": np.float32([4, 4]), "head.w": np.float32([1])}
    assert np.array_equal(mix(start, end, 0.25)["a"], np.float32([3, 3.5])) and mix(start, end, 0.25)["head.w"] == 1
    assert np.array_equal(mean_of([start, end | {"a": np.float32([1, 4])}])["a"], np.float32([0.5, 3]))


def test_the_best_average_becomes_best_model_and_the_run_stays_resumable(tmp_path):
    evaluate = Scores(0.1, 0.5, 0.2, 0.3, 0.4, 0.6)  # of four epochs, of the last four and of the last two
    own = run(tmp_path, evaluate)
    assert np.array_equal(evaluate.seen[4], epochs_of(tmp_path, 1, 2, 3, 4))
    assert np.array_equal(read(tmp_path, "best_model"), epochs_of(tmp_path, 3, 4))
    assert np.array_equal(
        read(tmp_path, "best_model", "pdema"), read(tmp_path, "epoch_4")
    )  # what training goes on from
    assert np.array_equal(read(tmp_path, "latest"), read(tmp_path, "epoch_4")) and own.state.ema is None
    progress = checkpoint.read_progress(tmp_path / "latest/latest.pdstates")
    assert (progress.best, progress.best_epoch, progress.last_recall1) == (0.6, 4, 0.3)
    assert (tmp_path / "latest/inference/inference.json").is_file()
    assert not evaluate.scores


def test_an_average_that_is_no_better_changes_nothing(tmp_path):
    evaluate = Scores(0.1, 0.5, 0.2, 0.3, 0.5, 0.4)
    run(tmp_path, evaluate)
    assert np.array_equal(read(tmp_path, "best_model"), read(tmp_path, "epoch_2"))
    assert not (tmp_path / "best_model/best_model.pdema").exists() and not evaluate.scores


def test_the_start_is_mixed_with_the_best_end(tmp_path):
    start = {n: t.numpy() for n, t in trainer(tmp_path / "x", None).state.raw_weights().items()}
    evaluate = Scores(0.1, 0.1, 0.1, 0.3, 0.35, 0.2, 0.3, 0.9, 0.4)  # the mean of four is better than the end
    run(tmp_path / "run", evaluate, start=start)
    expected = 0.5 * start[NAME].astype(np.float64) + 0.5 * epochs_of(tmp_path / "run", 1, 2, 3, 4)
    assert np.allclose(read(tmp_path / "run", "best_model"), expected, atol=1e-7)
    assert not evaluate.scores


def test_an_interrupted_choice_is_made_again_and_gives_the_same(tmp_path):
    scores = (0.1, 0.5, 0.2, 0.3, 0.55, 0.6)
    run(tmp_path / "whole", Scores(*scores))

    def told(network):
        if len(evaluate.seen) == EPOCHS + 1:
            raise Interrupted("Interrupted during an evaluation.", where="train")
        return evaluate(network)

    evaluate = Scores(*scores)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", told)
    path = tmp_path / "run/latest/latest.pdparams"
    progress = checkpoint.read_progress(path.with_suffix(".pdstates"))
    resumed = trainer(tmp_path / "run", Scores(*scores[EPOCHS:]), progress, epochs=EPOCHS, save_interval=1)
    checkpoint.resume(path, resumed.state)
    resumed.folder.resume_from(path, resumed.state.progress)
    resumed.conclude = FinalCandidates(resumed, 4, None)
    resumed.fit()
    for name in ("best_model", "latest"):
        assert np.array_equal(read(tmp_path / "run", name), read(tmp_path / "whole", name)), name
    assert checkpoint.read_progress(path.with_suffix(".pdstates")).best == 0.6


def test_a_map_is_fitted_to_the_best_of_the_others_and_measured(tmp_path):
    evaluate = Scores(0.1, 0.1, 0.1, 0.3, 0.35, 0.2, 0.9)  # the mean of four is better than the end
    fitted = []

    def adapt(values):
        fitted.append(values[NAME])
        return "half", {n: np.float32(0.5) * value for n, value in values.items()}

    own = trainer(tmp_path, evaluate, epochs=EPOCHS, save_interval=1)
    own.conclude = FinalCandidates(own, 4, None, adapt)
    own.fit()
    assert np.array_equal(fitted[0], epochs_of(tmp_path, 1, 2, 3, 4)) and not evaluate.scores
    assert np.array_equal(read(tmp_path, "best_model"), np.float32(0.5) * fitted[0])
    assert np.array_equal(read(tmp_path, "latest"), read(tmp_path, "epoch_4"))


def test_no_map_is_measured_where_none_is_fitted(tmp_path):
    evaluate = Scores(0.1, 0.1, 0.1, 0.3)
    own = trainer(tmp_path, evaluate, epochs=EPOCHS, save_interval=1)
    own.conclude = FinalCandidates(own, 0, None, lambda values: None)
    own.fit()
    assert not evaluate.scores and np.array_equal(read(tmp_path, "best_model"), read(tmp_path, "epoch_4"))
