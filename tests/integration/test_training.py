"""Training runs: their files, their numbers, their ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.networks import SPECS
from support.runs import CLIP, TINY, run_here, train, train_here, train_tiny

paddle = pytest.importorskip("paddle")

from paddlex_feat import create_model
from paddlex_feat.config.load import load
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import TrainingError, WeightsError
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import recognizer, weights
from paddlex_feat.provenance.lineage import resumed_from
from paddlex_feat.training import checkpoint
from paddlex_feat.training.checkpoint import Progress, TrainingState
from paddlex_feat.training.ema import Ema
from paddlex_feat.training.resume import count_steps
from paddlex_feat.training.run_folder import RunFolder
from paddlex_feat.training.run_logger import RunLogger
from paddlex_feat.training.step import Step, TrainingNetwork
from paddlex_feat.training.trainer import Trainer, TrainingPlan

CHECKPOINT = ["pdopt", "pdparams", "pdstates"]
INFERENCE = ["inference.json", "inference.pdiparams", "inference.yml"]


def test_all_files_of_the_manual_are_there(run_folder):
    for name in ("train_result.json", "train.log", "config.yaml", "metrics.jsonl", "class_map.json"):
        assert (run_folder / name).stat().st_size > 0, name
    assert (run_folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("best_model", "latest", "epoch_1", "epoch_3"):
        for suffix in CHECKPOINT:
            assert (run_folder / name / f"{name}.{suffix}").stat().st_size > 0
        assert set(json.loads((run_folder / name / f"{name}.info.json").read_text())) == {"metric", "epoch"}
        assert sorted(p.name for p in (run_folder / name / "inference").iterdir()) == INFERENCE


def test_the_result_file_has_the_schema_and_true_paths(run_folder):
    result = json.loads((run_folder / "train_result.json").read_text())
    assert result["done_flag"] is True and result["model_name"] == "PP-ShiTuV2_rec"
    assert list(result["models"]) == ["last_1", "last_2", "last_3", "last_4", "last_5", "best"]
    assert result["models"]["last_4"] == {} and "epoch_3" in result["models"]["last_1"]["pdparams"]
    for entry in result["models"].values():
        paths = [path for key, path in entry.items() if key != "score"]
        assert all((run_folder / path).is_file() for path in paths)
    scores = [result["models"][f"last_{i}"]["score"] for i in (1, 2, 3)]
    assert result["models"]["best"]["score"] == max(scores)


def test_metrics_and_log_tell_the_same(run_folder):
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["kind"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, 16)) and steps[0]["lr"] == 0
    for row in steps:
        assert row["loss"] == pytest.approx(row["CELoss"] + row["TripletAngularMarginLoss"], rel=1e-5)
    log = (run_folder / "train.log").read_text()
    assert f"loss: {steps[-1]['loss']:.5f}" in log and "[Eval][Epoch 3][Avg]recall1:" in log


def test_config_yaml_holds_the_whole_configuration(run_folder):
    content = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert content["Train"]["input_size"] == 32 and content["Train"]["augment"]["flip_prob"] == 0.5


def test_labels_are_remapped_and_the_map_is_saved(run_folder):
    assert json.loads((run_folder / "class_map.json").read_text()) == {str(i): 10 * (i + 1) for i in range(8)}
    assert weights.read(run_folder / "latest/latest.pdparams")["head.fc.weight"].shape == (512, 8)


def test_evaluate_gives_the_score_that_training_reported(run_folder, small_faces, tmp_path):
    settings = (
        "Global.mode=evaluate",
        f"Global.dataset_dir={small_faces}",
        f"Global.output={tmp_path}",
        f"Evaluate.weight_path={run_folder}/best_model/best_model.pdparams",
    )
    done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "evaluate_result.json").read_text())
    best = json.loads((run_folder / "train_result.json").read_text())["models"]["best"]["score"]
    assert list(result)[:2] == ["done_flag", "metrics"] and list(result["metrics"]) == ["recall1", "recall5", "mAP"]
    assert result["metrics"]["recall1"] == best
    assert "Train.input_size is 32" in done.stderr  # the run's own configuration wins, and it is said
    assert (tmp_path / "evaluate" / "retrieval.png").read_bytes()[:4] == b"\x89PNG"


def parameters(folder: Path, name: str) -> bytes:
    return (folder / name / f"{name}.pdparams").read_bytes()


@pytest.mark.slow
def test_a_second_run_and_a_resumed_one_give_the_same_bytes(run_folder, small_faces, tmp_path):
    again = train(small_faces, tmp_path / "again", "Train.num_workers=1", "Train.eval_interval=2")
    assert again.returncode == 0, again.stderr
    assert parameters(tmp_path / "again", "latest") == parameters(run_folder, "latest")

    resumed = train(small_faces, tmp_path / "resumed", f"Train.resume_path={run_folder}/epoch_2/epoch_2.pdparams")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming after epoch 2" in resumed.stderr
    assert parameters(tmp_path / "resumed", "latest") == parameters(run_folder, "latest")
    assert (tmp_path / "resumed/latest/latest.pdopt").read_bytes() == (run_folder / "latest/latest.pdopt").read_bytes()
    states = [(f / "latest/latest.pdstates").read_bytes() for f in (tmp_path / "resumed", run_folder)]
    assert states[0] == states[1]  # the best score of the first part included


def test_a_new_run_sets_an_earlier_one_aside(small_faces, tmp_path):
    (tmp_path / "best_model").mkdir()
    (tmp_path / "best_model" / "best_model.pdparams").write_text("precious")
    (tmp_path / "epoch_9").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    done = train_tiny(small_faces, tmp_path, "Train.epochs_iters=1", "Train.keep_checkpoints=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "previous_1/best_model/best_model.pdparams").read_text() == "precious"
    assert (tmp_path / "previous_1/epoch_9").is_dir() and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_fine_tuning_from_the_best_model_of_the_same_folder(small_faces, tmp_path, run_folder):
    shutil.copytree(run_folder, tmp_path / "out")
    start = f"Train.pretrain_weight_path={tmp_path}/out/best_model/best_model.pdparams"
    done = train_here(small_faces, tmp_path / "out", start, "Train.epochs_iters=1", "Train.num_classes=20")
    assert done.returncode == 0, done.stderr
    assert "newly initialised: head.fc.weight" in done.stderr
    assert weights.read(tmp_path / "out/latest/latest.pdparams")["head.fc.weight"].shape == (512, 20)
    assert (tmp_path / "out/previous_1/best_model/best_model.pdparams").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Train.num_classes=3", "train.txt has 8 classes"),
        ("Train.batch_size=18", "batch_size=16"),
        ("Train.pretrain_weight_path=none.pdparams", "none.pdparams"),
        ("Train.resume_path=none.pdparams", "none.pdstates"),
        ("Train.freeze=[head.fcc]", "No parameter is called"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(small_faces, tmp_path, override, message):
    done = train_here(small_faces, tmp_path, override)
    assert done.returncode == 1 and message in done.stderr
    assert json.loads((tmp_path / "train_result.json").read_text())["done_flag"] is False
    assert not (tmp_path / "config.yaml").exists() and "[Train]" not in (tmp_path / "train.log").read_text()


def test_an_undecodable_training_image_stops_the_run_with_its_name(small_faces, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_faces, data, symlinks=True)
    (data / "bad.jpg").write_bytes(b"no image")
    lines = (data / "train.txt").read_text().splitlines()
    (data / "train.txt").write_text("\n".join(f"bad.jpg {line.split()[1]}" for line in lines) + "\n")
    done = train_here(data, tmp_path / "out")
    assert done.returncode == 1 and "bad.jpg" in done.stderr


def finished(output: Path) -> dict:
    return json.loads((output / "train_result.json").read_text())


def epochs_in(output: Path) -> list[int]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return sorted({r["epoch"] for r in rows if r["kind"] == "train"})


def test_a_second_run_leaves_the_first_whole_with_its_record_and_log(run_folder, small_faces, tmp_path):
    shutil.copytree(run_folder, tmp_path / "out")
    before = {p.relative_to(run_folder): p.read_bytes() for p in run_folder.rglob("*") if p.is_file()}
    assert train_here(small_faces, tmp_path / "out", "Train.bogus=1").returncode == 1  # a typo loses nothing
    assert train_tiny(small_faces, tmp_path / "out", "Train.epochs_iters=1").returncode == 0
    earlier = tmp_path / "out/previous_1"
    assert {p.relative_to(earlier) for p in earlier.rglob("*") if p.is_file()} == set(before) - {Path(".train.lock")}
    for name, data in before.items():
        if name.suffix not in (".log", ".lock"):
            assert (earlier / name).read_bytes() == data, name
    assert (earlier / "train.log").read_bytes().startswith(before[Path("train.log")])  # and the typo's lines
    assert "Epoch 3/3" not in (tmp_path / "out/train.log").read_text()


def test_a_users_own_files_in_the_folder_are_kept(small_faces, tmp_path):
    mine = tmp_path / "config.yaml"
    mine.write_text(f"# my comments\nGlobal: {{mode: train, model: {CLIP}}}\n")
    done = train_here(small_faces, tmp_path, *TINY, "Train.epochs_iters=1", config=str(mine))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "previous_1/config.yaml").read_text().startswith("# my comments")


@pytest.mark.slow
def test_going_back_to_an_earlier_epoch_sets_the_later_ones_aside(run_folder, small_faces, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run_folder, out)
    done = train(small_faces, out, f"Train.resume_path={out}/epoch_1/epoch_1.pdparams", "Train.keep_checkpoints=2")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (out / "previous_1").glob("epoch_*")) == ["epoch_2", "epoch_3"]
    assert sorted(p.name for p in out.glob("epoch_*")) == ["epoch_2", "epoch_3"] and epochs_in(out) == [1, 2, 3]
    assert parameters(out, "latest") == parameters(run_folder, "latest")
    best = finished(out)["models"]["best"]
    assert json.loads((out / "best_model/best_model.info.json").read_text())["metric"] == best["score"]


@pytest.mark.slow
def test_resuming_elsewhere_brings_the_best_model_along(run_folder, small_faces, tmp_path):
    done = train_here(
        small_faces, tmp_path, f"Train.resume_path={run_folder}/latest/latest.pdparams", "Train.epochs_iters=4"
    )
    assert done.returncode == 0, done.stderr
    best = finished(tmp_path)["models"]["best"]
    assert best["score"] >= finished(run_folder)["models"]["best"]["score"] and epochs_in(tmp_path) == [1, 2, 3, 4]
    assert all((tmp_path / path).is_file() for key, path in best.items() if key != "score") and len(best) == 7


@pytest.mark.slow
def test_a_run_set_aside_can_be_resumed_without_harm_to_the_newer_one(run_folder, small_faces, tmp_path):
    shutil.copytree(run_folder, tmp_path / "previous_1")
    shutil.copytree(run_folder / "best_model", tmp_path / "best_model")
    old = f"Train.resume_path={tmp_path}/previous_1/latest/latest.pdparams"
    done = train_here(small_faces, tmp_path, old, "Train.epochs_iters=4")
    assert done.returncode == 0, done.stderr
    assert parameters(tmp_path / "previous_2", "best_model") == parameters(run_folder, "best_model")
    assert parameters(tmp_path / "previous_1", "latest") == parameters(run_folder, "latest")


@pytest.mark.slow
def test_resuming_with_another_batch_size_keeps_epochs_and_schedule(run_folder, small_faces, tmp_path):
    path = f"Train.resume_path={run_folder}/epoch_2/epoch_2.pdparams"
    done = train_here(small_faces, tmp_path, path, "Train.batch_size=32", "Train.log_interval=2")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    new = [r for r in rows if r["kind"] == "train" and r["epoch"] == 3]
    assert [r["step"] for r in new] == [8, 9]  # 3 steps an epoch; the last one is logged though no interval ends


@pytest.mark.slow
def test_a_torn_line_of_metrics_is_left_out(run_folder, small_faces, tmp_path):
    shutil.copytree(run_folder, tmp_path / "out")
    with (tmp_path / "out/metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "tra')
    path = f"Train.resume_path={tmp_path}/out/latest/latest.pdparams"
    done = train_here(small_faces, tmp_path / "out", path, "Train.epochs_iters=4")
    assert done.returncode == 0, done.stderr
    assert epochs_in(tmp_path / "out") == [1, 2, 3, 4]


def test_a_finished_run_says_that_nothing_is_left(run_folder, small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, f"Train.resume_path={run_folder}/latest/latest.pdparams")
    assert done.returncode == 1 and "Nothing is left to train" in done.stderr


def test_a_checkpoint_caught_between_two_renames_is_read_and_put_back_by_its_run_alone(run_folder, tmp_path):
    """A reader must not rename what a run may be exchanging at that moment."""
    shutil.copytree(run_folder / "latest", tmp_path / ".latest.replaced")
    model = create_model("PP-ShiTuV2_rec", tmp_path / "latest/inference", device="cpu")
    assert model and weights.read(tmp_path / "latest/latest.pdparams")
    assert checkpoint.read_progress(tmp_path / "latest/latest.pdstates").epoch == 3
    assert [p.name for p in tmp_path.iterdir()] == [".latest.replaced"]
    assert RunFolder(tmp_path, 1).latest() == tmp_path / "latest/latest.pdparams"
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_a_best_model_caught_between_two_renames_goes_with_a_run_that_is_taken_up_elsewhere(run_folder, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(run_folder / "best_model", source / ".best_model.replaced")
    shutil.copytree(run_folder / "latest", source / "latest")
    out.mkdir()
    progress = checkpoint.read_progress(source / "latest/latest.pdstates")
    RunFolder(out, 1).resume_from(source / "latest/latest.pdparams", progress)
    assert (source / ".best_model.replaced").is_dir() and not (source / "best_model").exists()
    for path in sorted((run_folder / "best_model").glob("best_model.*")):
        assert (out / "best_model" / path.name).read_bytes() == path.read_bytes()


def state_of(layer, rate: float = 0.1, **progress) -> TrainingState:
    return TrainingState(layer, paddle.optimizer.Momentum(rate, 0.9, layer.parameters()), Progress(**progress))


def test_only_the_last_epochs_are_kept(tmp_path):
    (tmp_path / "inference").mkdir()
    root = tmp_path / "run"
    folder = RunFolder(root, keep_checkpoints=2)
    layer = paddle.nn.Linear(2, 2)
    for epoch in (1, 2, 3, 4):
        state = state_of(layer, epoch=epoch, last_recall1=epoch / 10)
        folder.save(["latest", f"epoch_{epoch}"], state, tmp_path / "inference")
    folder.finish()
    assert sorted(p.name for p in root.iterdir()) == ["epoch_3", "epoch_4", "latest"]
    assert folder.result("m", 0.4)["models"]["last_2"]["score"] == 0.3
    twins = [root / n / f"{n}.pdparams" for n in ("latest", "epoch_4")]
    assert twins[0].stat().st_ino == twins[1].stat().st_ino  # written once


def test_momentum_survives_in_another_process_order(tmp_path):
    """Paddle numbers its parameters by order of creation; a checkpoint must not depend on it."""
    layer = paddle.nn.Linear(3, 2)
    state = state_of(layer, epoch=1, step=1)
    (layer(paddle.ones([1, 3])) ** 2).sum().backward()
    state.optimizer.step()
    folder = RunFolder(tmp_path, 1)
    folder.save(["best_model"], state, None)
    folder.finish()
    paddle.nn.Linear(4, 4)  # shifts the numbers
    other = paddle.nn.Linear(3, 2)
    again = state_of(other)
    checkpoint.resume(tmp_path / "best_model/best_model.pdparams", again)
    checkpoint.resume_optimizer(tmp_path / "best_model/best_model.pdparams", again)
    for (name, a), (_, b) in zip(layer.named_parameters(), other.named_parameters(), strict=True):
        assert np.array_equal(a.numpy(), b.numpy())
        velocity = [
            next(v.numpy() for k, v in s.optimizer.state_dict().items() if k.startswith(p.name))
            for s, p in ((state, a), (again, b))
        ]
        assert np.array_equal(*velocity) and np.abs(velocity[0]).max() > 0, name


@pytest.mark.parametrize(
    "momentum",
    [
        {},
        {"weight:velocity_0": np.full((2, 2), "a")},
        {"weight:velocity_0": np.zeros(3, "float32")},
        {"x:velocity_0": np.zeros(1)},
    ],
)
def test_momentum_that_does_not_fit_is_an_error(tmp_path, momentum):
    state = state_of(paddle.nn.Linear(2, 2), epoch=1, step=1)
    checkpoint.snapshot(state).write(tmp_path, "x")
    weights.write(tmp_path / "x.pdopt", momentum)
    with pytest.raises(WeightsError, match=r"x\.pdopt"):
        checkpoint.resume_optimizer(tmp_path / "x.pdparams", state)


def test_weights_of_another_program_cannot_be_resumed(tmp_path):
    for suffix in ("pdparams", "pdopt", "pdstates"):
        weights.write(tmp_path / f"x.{suffix}", {"epoch": 3, "something": 1})
    with pytest.raises(WeightsError, match="pretrain_weight_path"):
        checkpoint.resume(tmp_path / "x.pdparams", state_of(paddle.nn.Linear(2, 2)))


def test_a_state_of_the_first_version_can_be_resumed(tmp_path):
    """Its progress had six fields."""
    layer = paddle.nn.Linear(2, 2)
    checkpoint.snapshot(state_of(layer)).write(tmp_path, "x")
    old = {"epoch": 2, "step": 10, "best": 0.5, "best_epoch": 1, "score": None, "classes": [4, 7]}
    weights.write(tmp_path / "x.pdstates", old)
    assert checkpoint.read_progress(tmp_path / "x.pdstates").classes == [4, 7]


def test_a_run_of_millions_of_classes_can_be_resumed(tmp_path):
    checkpoint.snapshot(state_of(paddle.nn.Linear(2, 2), classes=list(range(3_000_000)))).write(tmp_path, "x")
    assert checkpoint.read_progress(tmp_path / "x.pdstates").classes[-1] == 2_999_999


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": -1},
        {"best": float("nan")},
        {"best": 5.0},
        {"best": -1.5},
        {"score": 1.01},
        {"classes": np.full(2, 0.5)},
        {"scaler": [1]},
    ],
)
def test_progress_that_no_run_has_cannot_be_resumed(tmp_path, wrong):
    weights.write(tmp_path / "x.pdstates", wrong)
    with pytest.raises(WeightsError, match="does not hold the state of a run"):
        checkpoint.read_progress(tmp_path / "x.pdstates")


@pytest.mark.parametrize(("signature", "done", "counted"), [("x", 3, 13), ("x", 5, 15), ("y", 3, 10), ("x", 6, 10)])
def test_steps_that_an_epoch_does_not_have_are_not_counted(signature, done, counted):
    progress = Progress(epoch=2, step=99, step_in_epoch=done, batch_signature=signature)
    count_steps(progress, 5, "x")
    assert progress.step == counted and progress.step_in_epoch == counted - 10


@pytest.mark.parametrize("state", [{}, {"weight": np.zeros((3, 3), "f4")}])
def test_a_moving_average_that_does_not_fit_is_an_error(tmp_path, state):
    """It once ended in a KeyError, where the raw weights beside it did fit."""
    layer = paddle.nn.Linear(2, 2)
    run = state_of(layer, epoch=1)
    run.ema = Ema(layer.state_dict(), 0.9)
    checkpoint.snapshot(run).write(tmp_path, "x")
    weights.write(tmp_path / "x.pdparams", state)
    with pytest.raises(WeightsError, match=r"do not fit the network"):
        checkpoint.resume(tmp_path / "x.pdparams", run)


def test_the_moving_average_is_saved_and_comes_back(tmp_path):
    layer, other = paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2)
    state, again = state_of(layer, epoch=1), state_of(other)
    state.ema, again.ema = (Ema(n.state_dict(), 0.9) for n in (layer, other))
    layer.weight.set_value(np.ones((2, 2), "float32"))
    state.ema.update(layer.state_dict(), 1)
    checkpoint.snapshot(state).write(tmp_path, "x")
    checkpoint.resume(tmp_path / "x.pdparams", again)
    assert np.array_equal(other.weight.numpy(), np.ones((2, 2)))
    assert np.array_equal(again.ema.state["weight"].numpy(), state.ema.state["weight"].numpy())
    assert np.array_equal(weights.read(tmp_path / "x.pdparams")["weight"], state.ema.state["weight"].numpy())
    assert not np.array_equal(again.ema.state["weight"].numpy(), other.weight.numpy())


def test_a_loss_that_is_not_finite_names_step_terms_and_files(tmp_path):
    model = recognizer.build(SPECS["PP-ShiTuV2_rec"], 2)
    images = np.zeros((4, 32, 32, 3), np.uint8)
    model.head.fc.weight.set_value(np.full((512, 2), np.inf, np.float32))
    state = state_of(model)
    loss = recipe_loss()
    trainer = Trainer(
        state=state,
        step=Step(TrainingNetwork(model, Preprocess(32)), loss, state.optimizer),
        batches=lambda epoch, first: [(np.arange(4), images)] * 2,
        labels=np.array([0, 0, 1, 1]),
        files=["a.jpg", "b.jpg", "c.jpg", "d.jpg"],
        exporter=None,
        evaluate=None,
        folder=RunFolder(tmp_path, 1),
        plan=TrainingPlan(1, 2, 0.1, 0, log_interval=2, eval_interval=1, save_interval=1, eval_start=False, seed=0),
        run_logger=RunLogger(tmp_path, 1, 2),
    )
    with pytest.raises(TrainingError) as caught:
        trainer.fit()
    text = str(caught.value)
    assert "step 1" in text and "CELoss" in text and "c.jpg" in text


@pytest.mark.slow
def test_more_epochs_can_be_asked_for_and_auto_takes_up_what_is_there(run_folder, small_faces, tmp_path):
    """The finished folder goes on; asked again, nothing is left and the result is written all the same."""
    shutil.copytree(run_folder, tmp_path / "out")
    for _ in range(2):
        done = train_here(small_faces, tmp_path / "out", "Train.resume=auto", "Train.epochs_iters=4")
        assert done.returncode == 0, done.stderr
        assert "Resuming after epoch" in done.stderr and epochs_in(tmp_path / "out") == [1, 2, 3, 4]
        assert finished(tmp_path / "out")["done_flag"] is True
    assert not list((tmp_path / "out").glob("config.yaml.bak.1"))


def test_auto_begins_where_nothing_is(small_faces, tmp_path):
    done = train_tiny(small_faces, tmp_path, "Train.resume=auto", "Train.epochs_iters=1")
    assert done.returncode == 0 and "nothing to resume" in done.stderr
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["Train"]["resume"] is None


@pytest.mark.slow
def test_a_run_stops_early_without_a_better_recall_and_stays_stopped(small_faces, tmp_path):
    """With frozen weights recall never changes."""
    stuck = ("Train.learning_rate=1e-30", "Train.early_stopping=2", "Train.epochs_iters=9", "Train.save_interval=9")
    done = train_tiny(small_faces, tmp_path, *stuck, "Train.freeze=[backbone, neck]")
    assert done.returncode == 0, done.stderr
    assert "No better recall1 in 2 evaluations" in done.stderr and epochs_in(tmp_path) == [1, 2, 3]
    assert (tmp_path / "epoch_3").is_dir()
    again = train_tiny(small_faces, tmp_path, *stuck, "Train.freeze=[backbone, neck]", "Train.resume=auto")
    assert again.returncode == 0 and epochs_in(tmp_path) == [1, 2, 3]


@pytest.mark.slow
def test_everything_at_once_repeats_and_resumes_bit_for_bit(small_faces, tmp_path):
    """Average, accumulation, clipping, scaling, uniform classes, frozen layers: all are part of the state."""
    options = (
        "Train.ema_decay=0.99",
        "Train.accumulate_steps=2",
        "Train.max_grad_norm=5",
        "Train.lr_scaling=sqrt",
        "Train.class_sampling=uniform",
        "Train.freeze=[backbone.stem]",
        "Train.batch_size=8",
        "Train.deterministic=True",
    )
    done = train(small_faces, tmp_path / "a", *options)
    assert done.returncode == 0, done.stderr
    epoch_1 = f"Train.resume_path={tmp_path}/a/epoch_1/epoch_1.pdparams"
    resumed = train(small_faces, tmp_path / "b", *options, epoch_1, "Train.num_workers=1")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("latest.pdparams", "latest.pdema", "latest.pdopt", "latest.pdstates"):
        assert (tmp_path / "a/latest" / name).read_bytes() == (tmp_path / "b/latest" / name).read_bytes(), name
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["kind"] == "train"]
    assert len(steps) == 15 and max(r["lr"] for r in steps) == pytest.approx(0.01 * 2**0.5)
    assert all(0 <= r["waited"] <= 1 for r in steps)
    assert [r["kind"] for r in rows[-2:]] == ["eval", "save"] and rows[-2]["peak_memory_mib"] > 100


def test_bad_images_are_replaced_within_their_class_if_asked_for(small_faces, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_faces, data, symlinks=True)
    (data / "bad.jpg").write_bytes(b"no image")
    lines = (data / "train.txt").read_text().splitlines()
    lines[::3] = [f"bad.jpg {line.split()[1]}" for line in lines[::3]]
    (data / "train.txt").write_text("\n".join(lines) + "\n")
    done = train_tiny(data, tmp_path / "out", "Train.skip_bad_images=True", "Train.epochs_iters=1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("another image of its class") == 1
    assert [Path(p).name for p in finished(tmp_path / "out")["skipped_images"]] == ["bad.jpg"]


def test_a_run_is_recorded(run_folder):
    record = json.loads((run_folder / "run.json").read_text())
    assert record["convolutions"] == "oneDNN, channels last, compiled loops"
    assert record["versions"]["paddlepaddle"] and record["command"][1].endswith("main.py")
    assert record["dataset"]["train"]["images"] == 80 and len(record["dataset"]["query"]["sha256"]) == 64


@pytest.mark.slow
def test_a_run_that_is_resumed_with_other_data_and_settings_says_so_and_records_it(run_folder, small_faces, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(small_faces, data, symlinks=True)
    lines = (data / "train.txt").read_text().splitlines(keepends=True)
    (data / "train.txt").write_text("".join(lines[::2]))
    shutil.copytree(run_folder, out)
    before = json.loads((out / "run.json").read_text())
    for _ in range(2):
        other = ("Train.seed=7", "Train.epochs_iters=4", "Train.eval_interval=9", "Train.cache_mib=7")
        done = train_here(data, out, "Train.resume=auto", *other)
        assert done.returncode == 0, done.stderr
        record = json.loads((out / "run.json").read_text())
        first = record["resumed"][0]
        assert first["config"] == before["config"]
        assert first["dataset"] == {name: p["sha256"] for name, p in before["dataset"].items()}
        said = [line for line in done.stderr.splitlines() if "made with other data or settings" in line]
        if len(record["resumed"]) == 1:
            (text,) = said
            assert "train.txt; " in text and "Train.seed 42, now 7" in text and "query.txt" not in text
            assert "epochs_iters 3, now 4" in text and "Train.resume" not in text
            assert "cache_mib" not in text  # which changes no result
    assert not said and len(record["resumed"]) == 2 and record["resumed"][1]["config"] == record["config"]


RECORDS = [
    "",
    "[" * 200_000,
    '{"dataset": 3, "resumed": 7}',
    '{"dataset": {"train": "x"}, "resumed": [3, {"config": []}]}',
]


@pytest.mark.parametrize("content", RECORDS, ids=range(len(RECORDS)))
def test_a_damaged_record_of_the_resumed_run_does_no_harm(content, tmp_path, caplog):
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "config.yaml").write_text("Train: [3")
    config = load("PP-ShiTuV2_rec", [])[0]
    runs = resumed_from(tmp_path, config, {n: {"images": 1, "sha256": "0"} for n in ("train", "gallery", "query")})
    assert runs == [{"config": None, "dataset": {}}]
    assert len(caplog.records) == 1 and "its config.yaml cannot be read" in caplog.text


@pytest.mark.slow
def test_a_run_that_stopped_early_goes_on_if_more_epochs_are_asked_for(small_faces, tmp_path):
    stuck = ("Train.learning_rate=1e-30", "Train.early_stopping=1", "Train.freeze=[backbone, neck]")
    assert train_tiny(small_faces, tmp_path, *stuck, "Train.epochs_iters=5").returncode == 0
    assert epochs_in(tmp_path) == [1, 2]
    again = train_tiny(small_faces, tmp_path, *stuck, "Train.epochs_iters=5", "Train.resume=auto")
    assert again.returncode == 0 and "no better recall1" in again.stderr and epochs_in(tmp_path) == [1, 2]
    refused = train_tiny(
        small_faces, tmp_path, *stuck, "Train.epochs_iters=5", f"Train.resume_path={tmp_path}/latest/latest.pdparams"
    )
    assert refused.returncode == 1 and "Nothing is left" in refused.stderr
    longer = train_tiny(small_faces, tmp_path, *stuck, "Train.epochs_iters=6", "Train.resume=auto")
    assert longer.returncode == 0 and epochs_in(tmp_path) == [1, 2, 3]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_compiled_training_graph_runs_on_a_cpu(small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, "Train.dy2st=True", "Train.epochs_iters=1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("train", "images/gone.pgm 10", "1 images of train.txt do not exist"),
        ("query", "images/gone.pgm 210", "query.txt:13"),
        ("gallery", None, "No query has a gallery image"),
    ],
)
def test_what_a_later_epoch_would_meet_is_said_at_the_start(small_faces, tmp_path, name, line, message):
    data = tmp_path / "data"
    shutil.copytree(small_faces, data, symlinks=True)
    with (data / f"{name}.txt").open("a" if line else "w") as stream:
        stream.write(f"{line or 'images/s01/01.pgm 999'}\n")
    done = train_here(data, tmp_path / "out")
    assert done.returncode == 1 and message in done.stderr and "epoch 1" not in done.stderr


@pytest.mark.nightly
@pytest.mark.slow
def test_batches_that_starve_the_triplet_loss_are_said(small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, "Train.batch_size=4", "Train.epochs_iters=1", "Train.augment.zoom=0.999")
    assert done.returncode == 0 and "no negatives" in done.stderr


def test_mixed_precision_on_a_cpu_is_refused(small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, "Train.amp=O1")
    assert done.returncode == 1 and "needs a GPU" in done.stderr
