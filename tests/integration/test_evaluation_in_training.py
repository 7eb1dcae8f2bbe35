"""Evaluation during a training: by the network itself on a GPU, votes on ending, one inference model a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.ranks import run_ranks
from support.runs import QUICK

paddle = pytest.importorskip("paddle")

from paddlex_feat.config import load
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import Interrupted
from paddlex_feat.evaluation.embed import embed
from paddlex_feat.inference.engines import paddle_engine
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.models import recognizer
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes import train, train_build
from paddlex_feat.modes.build import evaluator_of
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training import votes as votes_of
from paddlex_feat.training.checkpoint import read_progress
from paddlex_feat.training.trainer import Trainer
from paddlex_feat.training.votes import Votes

PPLCNET = NetworkSpec(backbone="PPLCNetV2_base_ShiTu", input_size=32)
SMALLEST = ("Model.depth=1", "Model.width=32", "Model.heads=2", "Model.patch_size=16")


class Ended(Exception):
    """Training is done; what mode train does next is not looked at."""


class Job:
    """A training in this process whose place says "gpu:0"; Paddle computes on the CPU."""

    def __init__(self, data: Path, output: Path, monkeypatch, *settings: str):
        self.predictors, self.exports, self.trainer, self.calls = 0, 0, None, []
        words = (
            "Global.mode=train",
            f"Global.dataset_dir={data}",
            f"Global.output={output}",
            *QUICK,
            *SMALLEST,
            *settings,
        )
        self.config = load.load("PP-ShiTuV2_rec_CLIP_vit_base", [load.split_override(word) for word in words])[0]
        self.output = output
        monkeypatch.undo()  # of an earlier job
        monkeypatch.setattr(train, "init_worker", lambda *_: Worker("gpu:0", 2, 2, ProcessGroup()))
        monkeypatch.setattr(train_build, "build_trainer", self._catch(train_build.build_trainer))
        monkeypatch.setattr(Exporter, "write", self._count("exports", Exporter.write))
        monkeypatch.setattr(
            paddle_engine, "_create_predictor", self._count("predictors", paddle_engine._create_predictor)
        )
        monkeypatch.setattr(train, "_finish", lambda *_: {})

    def _count(self, name, function):
        def counted(*words):
            setattr(self, name, getattr(self, name) + 1)
            return function(*words)

        return counted

    def _catch(self, build):
        def built(config, state, frozen_bn_layers, exporter, folder, data, *rest) -> Trainer:
            self.exporter, self.data = exporter, data
            self.trainer = build(config, state, frozen_bn_layers, exporter, folder, data, *rest)
            self.evaluate, self.trainer.evaluate = self.trainer.evaluate, self._evaluate
            return self.trainer

        return built

    def _evaluate(self, network):
        """As the trainer would, but every later score is lower."""
        self.calls.append(self.evaluate(network))
        return {**self.calls[-1], "recall1": 1 - len(self.calls) / 10}

    def run(self) -> None:
        self.output.mkdir()
        train.run(self.config, self.output, ProcessGroup())


@pytest.fixture
def job(small_faces, tmp_path, monkeypatch) -> Job:
    settings = ("Train.epochs_iters=4", "Train.save_interval=9", "Train.ema_decay=0.5")
    return Job(small_faces, tmp_path / "out", monkeypatch, *settings)


def test_on_a_gpu_no_predictor_is_built_and_only_checkpoints_are_exported(job):
    job.run()
    assert len(job.calls) == 4 and job.predictors == 0
    assert job.exports == 2  # the best of epoch 1 and the last epoch
    assert (job.output / "best_model/inference/inference.json").is_file()
    assert read_progress(job.output / "best_model/best_model.pdstates").epoch == 1
    # What was exported after the evaluation are the weights that were evaluated.
    own, group = job.trainer, ProcessGroup()
    exported = FeatureExtractor(job.output / "latest/inference", "cpu", 2)
    found = evaluator_of(job.config, job.data.lists, job.data.own, Worker("cpu", 2, 2, group), job.output)(exported)
    assert {n: v for n, v in found.main_metrics().items() if n != "mAP"} == {
        n: v for n, v in job.calls[-1].items() if n != "mAP"
    }
    assert found.main_metrics()["mAP"] == pytest.approx(job.calls[-1]["mAP"], abs=1e-4)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    before = {n: t.numpy() for n, t in own.state.raw_weights().items()}
    with own._candidate() as network:
        extract = train_build._extractors(job.config, job.exporter, Worker("gpu:0", 2, 2, group))(network)
        assert np.abs(extract(images) - exported(images)).max() < 1e-5  # the moving average
        # Nothing of the training's own tensors is shared or changed.
        assert all(np.array_equal(before[n], t.numpy()) for n, t in own.state.raw_weights().items())
    assert own.state.model.training


@pytest.mark.slow
def test_weights_are_loaded_on_their_device_and_branches_fused_again(tmp_path):
    """The extractor shares its network with an exporter, which captures the network's forward."""
    own, exporter = recognizer.build(PPLCNET, 3), Exporter(recognizer.build(PPLCNET, None), "x", Preprocess(32))
    extract, images = NetworkExtractor(exporter.network, Preprocess(32)), np.zeros((2, 32, 32, 3), np.uint8)
    images[:, 8:24] = 200
    seen = []
    for scale in (1.0, 2.0):
        for name, tensor in own.state_dict().items():
            if name.endswith("_variance"):
                tensor.set_value(tensor * scale + 0.5)
        folder = tmp_path / str(scale)
        folder.mkdir()
        exporter.write({n: t.numpy() for n, t in own.state_dict().items()}, folder)
        exported = FeatureExtractor(folder, "cpu", 2)(images)
        for tensor in exporter.network.state_dict().values():
            tensor.set_value(paddle.zeros_like(tensor))
        extract.load(own.state_dict())
        seen.append(extract(images))
        assert np.abs(seen[-1] - exported).max() < 1e-5
    assert np.abs(seen[0] - seen[1]).max() > 1e-3


def test_a_signal_is_answered_between_two_batches_and_the_evaluation_repeated(job, small_faces, monkeypatch):
    evaluate = job._evaluate

    def signalled(network):
        if len(job.calls) == 1:
            job.trainer.stop.received = True
        return evaluate(network)

    job._evaluate = signalled
    with pytest.raises(Interrupted, match="epoch 2 of 4"):
        job.run()
    saved = read_progress(job.output / "latest/latest.pdstates")
    assert (saved.epoch, saved.step_in_epoch, len(job.calls)) == (1, saved.step // 2, 1)
    again = Job(
        small_faces, job.output, monkeypatch, "Train.epochs_iters=4", "Train.ema_decay=0.5", "Train.resume=auto"
    )
    train.run(again.config, again.output, ProcessGroup())
    assert len(again.calls) == 3 and again.trainer.state.progress.epoch == 4


class Counted(ProcessGroup):
    """One of several ranks, alone: it counts votes and hears itself in each."""

    def vote(self, flag, number):
        cast.append(number)
        return flag, number

    def all_gather_rows(self, rows):
        raise Ended


cast: list[int] = []


@pytest.mark.parametrize(("step", "fewest", "most"), [(0.01, 50, 52), (0.2, 95, 115), (10.0, 1000, 1000)])
def test_votes_go_by_time(monkeypatch, step, fewest, most):
    """A vote comes after 2 seconds, and at least every 20 steps."""
    now = 0.0
    monkeypatch.setattr(votes_of.time, "monotonic", lambda: now)
    cast.clear()
    votes, told = Votes(Counted(0, 2), lambda: now > 1e9), []
    for _ in range(1000):
        now += step
        told.append(votes.after_one())
    assert fewest <= len(cast) <= most and not any(told)
    now = 2e9
    assert votes.now()


def test_votes_slow_down_with_the_steps(monkeypatch):
    """From 10 ms to 1 s a step, between two votes: at most 20 slow steps pass once, then 2 seconds."""
    now = 0.0
    monkeypatch.setattr(votes_of.time, "monotonic", lambda: now)
    votes, at = Votes(Counted(1, 2), lambda: True), []
    for step in range(1000):
        now += 0.01 if step < 100 else 1.0
        if votes.after_one():
            at.append(now)
    assert max(np.diff(at)) <= 20 and np.diff(at)[-1] <= 2


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_looks_equally_often(files, size):
    class Fixed:
        preprocess = Preprocess(32)

        def __call__(self, images):
            return np.ones((len(images), 2), np.float32)

    looks = []
    for rank in range(size):
        looks.append(0)

        def look():
            looks[-1] += 1

        try:
            embed(Fixed(), files, 2, 1, Counted(rank, size) if size > 1 else None, after_batch=look)
        except Ended:
            assert size > 1
    assert looks == [-(-len(files) // 2) // size] * size  # 15 files, 8 batches


@pytest.mark.slow
def test_ranks_share_one_broadcast_a_dtype_and_end_an_evaluation_together(run_folder, small_faces, tmp_path):
    result = tmp_path / "result"
    run_ranks(2, "votes.py", run_folder / "best_model/inference", small_faces, result, logs=tmp_path / "logs")
    found = [dict(np.load(f"{result}.{rank}.npz")) for rank in range(2)]
    for own in found:
        assert own["looks"] == -3 and own["broadcasts"] == 2
        assert np.array_equal(own["shared0"], np.zeros((2, 3))) and own["shared0"].dtype == np.int64
        assert own["shared1"] == np.float32(0.5) and own["shared1"].shape == ()
        assert np.array_equal(own["shared2"], np.arange(4, dtype=np.float32))
