"""The loop and its folder in this process: ends, failures, going back, early stopping."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.networks import TINY_CLIP

paddle = pytest.importorskip("paddle")

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import EvaluationError, Interrupted, OutputError
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import cpu_conv, recognizer, weights
from paddlex_feat.training import checkpoint
from paddlex_feat.training.checkpoint import Progress, TrainingState
from paddlex_feat.training.metrics_file import draw_curves, metrics_until
from paddlex_feat.training.run_folder import RunFolder
from paddlex_feat.training.run_logger import RunLogger, open_visualdl
from paddlex_feat.training.step import Step, TrainingNetwork
from paddlex_feat.training.stop import defer_signals
from paddlex_feat.training.trainer import Trainer, TrainingPlan

STEPS = 2  # an epoch


class NoExport:
    """An inference directory that nobody reads."""

    def write(self, state, folder: Path) -> None:
        (folder / "inference.json").write_text("{}")


def trainer(root: Path, evaluate, progress: Progress | None = None, **plan) -> Trainer:
    paddle.seed(1)
    model = recognizer.build(TINY_CLIP, 3)
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, model.parameters())
    state = TrainingState(model, optimizer, progress or Progress())
    loss = recipe_loss(0, 1.0, 0.0)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    folder = RunFolder(root, 9)
    settings = {"epochs": 3, "log_interval": 1, "eval_interval": 1, "save_interval": 9, "eval_start": False, **plan}
    whole = TrainingPlan(steps_per_epoch=STEPS, learning_rate=0.01, warmup_epochs=0, seed=0, **settings)
    root.mkdir(exist_ok=True)
    return Trainer(
        state=state,
        step=Step(TrainingNetwork(model, Preprocess(32)), loss, optimizer),
        batches=lambda epoch, first: [(np.arange(6), images)] * (STEPS - first),
        labels=np.arange(6) % 3,
        files=[f"{i}.jpg" for i in range(6)],
        exporter=NoExport(),
        evaluate=evaluate,
        folder=folder,
        plan=whole,
        run_logger=RunLogger(root, whole.epochs, STEPS),
    )


def metrics(recall: float) -> dict[str, float]:
    return {"recall1": recall, "recall5": 1.0, "mAP": 0.5}


def latest(root: Path) -> Progress:
    return checkpoint.read_progress(root / "latest/latest.pdstates")


@pytest.mark.parametrize("recalls", [[0.5, 0.4], [0.5, 0.6]])
def test_a_signal_during_an_evaluation_loses_nothing(tmp_path, recalls):
    """With or without a better model in that epoch, and no checkpoint due: what the message says is true."""
    left = list(recalls)

    def evaluate(_):
        if len(left) == 1:
            own.stop.received = True
        return metrics(left.pop(0))

    own = trainer(tmp_path, evaluate)
    with pytest.raises(Interrupted, match="latest"):
        own.fit()
    assert latest(tmp_path).step == 2 * STEPS and latest(tmp_path).epoch == 2
    assert latest(tmp_path).best == max(recalls)


@pytest.mark.parametrize("log_interval", [1, 1000])
def test_a_signal_is_heard_at_the_next_step_whatever_the_log_interval(tmp_path, log_interval):
    own = trainer(tmp_path, lambda _: metrics(0.5), log_interval=log_interval)
    own.stop.received = True
    with pytest.raises(Interrupted):
        own.fit()
    assert latest(tmp_path).step == 1 and latest(tmp_path).step_in_epoch == 1


def test_a_failed_evaluation_keeps_what_was_trained_and_comes_first_when_resumed(tmp_path):
    def fail(_):
        raise EvaluationError("no match")

    with pytest.raises(EvaluationError):
        trainer(tmp_path, fail).fit()
    saved = latest(tmp_path)
    assert (saved.epoch, saved.step, saved.step_in_epoch) == (0, STEPS, STEPS)
    seen = []
    again = trainer(tmp_path, lambda _: seen.append(again.state.progress.step) or metrics(0.5), saved)
    again.fit()
    assert seen == [STEPS, 2 * STEPS, 3 * STEPS]


def test_early_stopping_counts_ties_as_no_gain(tmp_path):
    own = trainer(tmp_path, lambda _: metrics(0.5), epochs=9, early_stopping=2)
    own.fit()
    assert own.state.progress.epoch == 3 and own.state.progress.best_epoch == 3  # the newest of equals is kept
    assert latest(tmp_path).evals_since_best == 2 and (tmp_path / "epoch_3").is_dir()


def state_at(epoch: int, best_epoch: int) -> TrainingState:
    layer = paddle.nn.Linear(2, 2)
    progress = Progress(
        epoch=epoch, step=10 * epoch, best=best_epoch / 10, best_epoch=best_epoch, last_recall1=epoch / 10
    )
    return TrainingState(layer, paddle.optimizer.Momentum(0.1, 0.9, layer.parameters()), progress)


def test_going_back_sets_everything_later_aside_the_best_model_too(tmp_path):
    folder = RunFolder(tmp_path, 9)
    folder.save(["best_model", "latest", "epoch_1"], state_at(1, 1), None)
    folder.save(["best_model", "latest"], state_at(3, 3), None)
    folder.finish()
    bytes_of_3 = (tmp_path / "best_model/best_model.pdparams").read_bytes()
    source = tmp_path / "epoch_1/epoch_1.pdparams"
    progress = checkpoint.read_progress(source.with_suffix(".pdstates"))
    RunFolder(tmp_path, 9).resume_from(source, progress)
    for name in ("best_model", "latest"):
        assert (tmp_path / "previous_1" / name / f"{name}.pdparams").read_bytes() == bytes_of_3
    assert checkpoint.read_progress(tmp_path / "best_model/best_model.pdstates").epoch == 1  # of epoch_1
    assert progress.best == 0.1 and not (tmp_path / "latest").exists()


def test_a_best_model_made_just_before_the_kill_is_made_again(tmp_path):
    """best_model of epoch 3 was written, latest was not: the score to beat stays that of epoch 1."""
    folder = RunFolder(tmp_path, 9)
    folder.save(["best_model", "latest"], state_at(1, 1), None)
    folder.save(["best_model"], state_at(3, 3), None)
    folder.finish()
    progress = latest(tmp_path)
    RunFolder(tmp_path, 9).resume_from(tmp_path / "latest/latest.pdparams", progress)
    assert (progress.best, progress.best_epoch) == (0.1, 1) and not (tmp_path / "previous_1").exists()


def line(kind: str, epoch: int, step: int, **others) -> str:
    values = {"train": {"lr": 0.1, "loss": 1.0}, "eval": metrics(0.5)}[kind]
    return json.dumps({"kind": kind, "epoch": epoch, "step": step, **values, **others}) + "\n"


@pytest.mark.parametrize(
    "damage",
    [
        "[" * 200_000,
        line("train", 1, 2, loss="x", CELoss=None),
        line("train", 0, 2),
        line("train", 1, 2, loss=float("inf")),
        line("train", 1, 2, lr=10**400),
        '{"kind": [], "epoch": 1, "step": 1}',
        '{"kind": "eval", "epoch": 1, "step": 1}',
        "7",
    ],
)
def test_lines_of_metrics_that_no_run_writes_are_left_out_with_one_warning(tmp_path, damage, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line("train", 1, 1) + damage.rstrip("\n") + "\n" + damage + line("eval", 1, 2))
    kept = metrics_until(path)
    assert kept[0] == line("train", 1, 1) and len(kept) == 1 + damage.endswith("\n")
    assert len(caplog.records) == 1 and "are left out" in caplog.text
    draw_curves(path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def checkpoints(folder: RunFolder, state: TrainingState, *names: str) -> None:
    """Checkpoints with an inference directory."""
    inference = folder.root.parent / "exported"
    inference.mkdir(exist_ok=True)
    NoExport().write({}, inference)
    folder.save(names, state, inference)
    folder.finish()


def test_a_users_files_in_a_checkpoint_stay_and_do_not_go_along(tmp_path, monkeypatch):
    """best_model was once copied onto itself where the output was relative, under a name taken from a file there."""
    out = tmp_path / "out"
    checkpoints(RunFolder(out, 9), state_at(1, 1), "best_model", "latest")
    theirs = {f"best_model/{name}": name for name in ("l.pdparams", "a.pdparams", "notes/n.txt", "inference/p.py")}
    for name, text in theirs.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    (out / "best_model/empty").mkdir()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.chdir(tmp_path)
    for root in (Path("out"), Path("elsewhere")):
        RunFolder(root, 9).resume_from(Path("out/latest/latest.pdparams"), latest(out))
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    copied = {p.relative_to("elsewhere").as_posix() for p in Path("elsewhere").rglob("*") if p.is_file()}
    suffixes = ("pdparams", "pdopt", "pdstates", "info.json")
    assert copied == {*(f"best_model/best_model.{s}" for s in suffixes), "best_model/inference/inference.json"}
    checkpoints(RunFolder(out, 9), state_at(2, 2), "best_model")  # a better one comes
    assert all((out / name).read_text() == text for name, text in theirs.items())
    assert (out / "best_model/empty").is_dir()
    assert checkpoint.read_progress(out / "best_model/best_model.pdstates").epoch == 2


def test_a_run_whose_latest_is_a_link_is_still_its_own(tmp_path):
    out = tmp_path / "out"
    checkpoints(RunFolder(out, 9), state_at(1, 1), "best_model", "latest", "epoch_1")
    (out / "latest").rename(tmp_path / "elsewhere")
    (out / "latest").symlink_to("../elsewhere")
    folder, progress = RunFolder(out, 9), latest(out)
    folder.resume_from(folder.latest(), progress)
    assert progress.best == 0.1 and not (out / "previous_1").exists() and (out / "epoch_1").is_dir()
    for epoch in (2, 3):  # the second one is exchanged with a folder
        checkpoints(folder, state_at(epoch, 1), "latest")
        assert latest(out).epoch == epoch and not (out / "latest").is_symlink()
    assert checkpoint.read_progress(tmp_path / "elsewhere/latest.pdstates").epoch == 1
    (out / "epoch_1").rename(tmp_path / "epoch")
    (out / "epoch_1").symlink_to("../epoch")
    folder.start_new()
    assert checkpoint.read_progress(out / "previous_1/epoch_1/epoch_1.pdstates").epoch == 1


def test_an_epoch_that_is_no_longer_kept_goes_but_for_a_users_files(tmp_path):
    out = tmp_path / "out"
    folder = RunFolder(out, 1)
    checkpoints(folder, state_at(1, 1), "epoch_1")
    (out / "epoch_1/inference/mine.txt").write_text("mine")
    (out / "epoch_9").mkdir()  # a user's too
    checkpoints(folder, state_at(2, 1), "epoch_2", "latest", "best_model")
    assert [p.name for p in (out / "epoch_1").rglob("*") if p.is_file()] == ["mine.txt"]
    progress, again = latest(out), RunFolder(out, 1)
    again.resume_from(again.latest(), progress)
    assert list(again.scores) == [2] and (out / "epoch_1/inference/mine.txt").read_text() == "mine"
    assert (out / "previous_1/epoch_9").is_dir() and not list(out.glob(".*"))


def test_a_best_model_of_links_is_brought_along_as_files(tmp_path):
    source, out = tmp_path / "source", tmp_path / "far/away"
    checkpoints(RunFolder(source, 9), state_at(1, 1), "best_model", "latest")
    file = source / "best_model/best_model.pdparams"
    content = file.read_bytes()
    file.rename(tmp_path / "blob")
    file.symlink_to("../../blob")
    out.mkdir(parents=True)
    RunFolder(out, 9).resume_from(source / "latest/latest.pdparams", latest(source))
    assert (out / "best_model/best_model.pdparams").read_bytes() == content


def test_metrics_are_cut_where_the_resumed_state_stands(tmp_path):
    rows = []
    for epoch in (1, 2, 3):
        rows += [("train", epoch, 2 * epoch - 1), ("train", epoch, 2 * epoch), ("eval", epoch, 2 * epoch)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(k, e, s) for k, e, s in rows))
    assert len(metrics_until(path, 1, 3)) == 4  # epoch 1 whole, and one step of epoch 2
    assert len(metrics_until(path, 2, 4)) == 6 and len(metrics_until(path, 1, 2)) == 3
    assert len(metrics_until(path, 1, 99)) == 5  # steps counted otherwise, before the batch size changed
    assert len(metrics_until(path)) == 9


def test_a_checkpoint_that_cannot_be_written_is_an_error_not_a_silence(tmp_path, monkeypatch):
    """The disk fills up while a thread writes: the next save, or the end of the run, says so."""
    folder = RunFolder(tmp_path, 9)

    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr("paddlex_feat.models.weights._PlainPickler.dump", full)
    folder.save(["latest"], state_at(1, 1), None)
    with pytest.raises(OutputError, match="No space left"):
        folder.finish()
    assert not (tmp_path / "latest").exists()


def test_a_checkpoint_holds_the_moment_at_which_it_was_asked_for(tmp_path):
    """Weights that change while it is written do not get into it."""
    folder, state = RunFolder(tmp_path, 9), state_at(1, 1)
    before = state.model.weight.numpy().copy()
    folder.save(["latest"], state, None)
    state.model.weight.set_value(np.full((2, 2), 7, np.float32))
    state.progress.epoch = 5
    folder.finish()
    assert np.array_equal(weights.read(tmp_path / "latest/latest.pdparams")["weight"], before)
    assert latest(tmp_path).epoch == 1


@pytest.fixture
def heard_ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also where pytest runs in the background, which ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("heard_ctrl_c")
def test_a_signal_waits_where_paddle_would_take_it_for_a_failure_of_its_own(monkeypatch):
    done = []

    def checks(*_):
        signal.raise_signal(signal.SIGINT)
        done.append("the whole of it")
        return True

    monkeypatch.setattr(cpu_conv, "_agrees", checks)
    monkeypatch.setenv("FLAGS_use_mkldnn", "1")
    monkeypatch.setattr(cpu_conv, "_attach", lambda layer: None)
    with pytest.raises(KeyboardInterrupt), defer_signals():
        assert cpu_conv.accelerate(recognizer.build(TINY_CLIP, 3))
    assert len(done) == len(cpu_conv._KINDS)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with defer_signals():  # nothing came: nothing happens
        pass
    other = threading.Thread(target=lambda: done.append(defer_signals().__enter__()))
    other.start()
    other.join()
    assert done[-1] is None  # signals are of the main thread; here there is nothing to hold back


def test_the_visualdl_log_has_a_name_that_tells_no_time(tmp_path, monkeypatch):
    """train_result.json names it, so two equal runs differed."""
    made = {}
    monkeypatch.setitem(sys.modules, "visualdl", SimpleNamespace(LogWriter=lambda **words: made.update(words)))
    open_visualdl(tmp_path)
    assert made == {"logdir": str(tmp_path), "file_name": "vdlrecords.training.log"}
    folder = RunFolder(tmp_path, 1)
    assert folder.result("x", 0.5)["visualdl_log"] == ""
    (tmp_path / made["file_name"]).write_text("x")
    assert folder.result("x", 0.5)["visualdl_log"] == made["file_name"]
    folder.start_new()
    assert (tmp_path / "previous_1" / made["file_name"]).is_file()
