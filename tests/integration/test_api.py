"""The Python API: results, callbacks, errors, and what it leaves alone in the process."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT

import paddlex_feat
from paddlex_feat import (
    Config,
    ConfigError,
    DatasetError,
    FeatError,
    TrainingCallback,
    TrainingError,
    check_dataset,
    load_config,
    train,
)

pytest.importorskip("paddle")
TRAINING = dict(setting.split("=", 1) for setting in QUICK if "=null" not in setting)


def config(data: Path, output: Path, **keys: object) -> Config:
    quick = {name: int(v) if v.isdigit() else float(v) if "." in v else v for name, v in TRAINING.items()}
    folders = {"Global.dataset_dir": data, "Global.output": output, "Train.pretrain_weight_path": None}
    return load_config("PP-ShiTuV2_rec", {**quick, **folders}, **keys)


class Recorder(paddlex_feat.TrainingCallback):
    """Notes every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def on_start(self, config):
        self.events.append(("start", config))

    def on_log_steps(self, values):
        self.events.append(("log_steps", values))

    def on_evaluation(self, values):
        self.events.append(("evaluation", values))

    def on_checkpoint(self, values):
        self.events.append(("checkpoint", values))

    def on_end(self, status, result):
        self.events.append((f"end {status}", result))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.fixture(scope="module")
def trained(small_faces, tmp_path_factory):
    """A training in a thread, its callback, and the state of the process before and after."""
    output, recorder = tmp_path_factory.mktemp("api") / "out", Recorder()
    wanted, results = config(small_faces, output, Train__epochs_iters=2), []

    def state() -> tuple:
        logger = logging.getLogger("paddlex_feat")
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV)}
        return handlers, list(warnings.filters), list(logger.handlers), logger.level, logger.propagate, Path.cwd()

    before, environment = state(), dict(os.environ)
    thread = threading.Thread(target=lambda: results.append(paddlex_feat.train(wanted, callbacks=[recorder])))
    thread.start()
    thread.join()
    changed = {name for name in {*environment, *os.environ} if environment.get(name) != os.environ.get(name)}
    return results[0], recorder, (before, state(), changed), output


def test_train_in_a_thread_returns_weights_and_inference_model(trained):
    result, _, _, output = trained
    assert result.weights == output / "best_model/best_model.pdparams" and result.weights.is_file()
    assert (result.inference_dir / "inference.yml").is_file() and 0 < result.recall1 <= 1
    assert json.loads((output / "run.json").read_text())["outputs"]
    assert not (output / "train_result.json").exists() and not (output / "train.log").exists()


def test_callbacks_get_the_lines_of_metrics_jsonl(trained):
    result, recorder, _, output = trained
    kinds = recorder.kinds()
    assert kinds[0] == "start" and kinds[-1] == "end finished" and kinds.count("start") == 1
    assert recorder.events[0][1]["Train"]["epochs_iters"] == 2
    assert recorder.events[-1][1] == result.details
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    names = {"train": "log_steps", "eval": "evaluation", "save": "checkpoint"}
    rows = [(names[line.pop("kind")], line) for line in lines]
    assert rows == recorder.events[1:-1] and {kind for kind, _ in rows} == set(names.values())


def test_training_leaves_the_process_as_it_was(trained):
    before, after, changed = trained[2]
    assert before == after
    # Paddle reads these when it is imported and while it runs (docs/python.md).
    assert all(name.startswith(("FLAGS_", "OMP_", "KMP_", "GLOG_", "CUBLAS_")) for name in changed), changed


@pytest.mark.slow
def test_the_command_trains_to_the_same_bytes(trained, small_faces, tmp_path):
    from conftest import train

    done = train(small_faces, tmp_path, "Train.epochs_iters=2")
    assert done.returncode == 0, done.stderr
    weights = (tmp_path / "best_model/best_model.pdparams").read_bytes()
    assert trained[0].weights.read_bytes() == weights


@pytest.mark.slow
def test_evaluate_and_export_what_was_trained(trained, small_faces, tmp_path):
    result = trained[0]
    found = paddlex_feat.evaluate(config(small_faces, tmp_path / "evaluated", Evaluate__weight_path=result.weights))
    assert found.metrics["recall1"] == result.recall1 and found.report.is_file()
    exported = paddlex_feat.export(config(small_faces, tmp_path / "exported", Export__weight_path=result.weights))
    assert exported.largest_difference < 1e-4 and all(file.is_file() for file in exported.files)
    assert not list(tmp_path.rglob("*_result.json"))
    model = paddlex_feat.create_model("PP-ShiTuV2_rec", exported.inference_dir, device="cpu")
    photo = str(small_faces / "images/s21/01.pgm")
    assert len(next(iter(model.predict(photo)))["feature"]) == 512


def test_check_dataset_returns_findings_that_are_errors(small_faces, tmp_path):
    passed = paddlex_feat.check_dataset(config(small_faces, tmp_path / "a"))
    assert passed.passed and passed.report.is_file() and passed.details["attributes"]["train_samples"] == 80
    failed = paddlex_feat.check_dataset(
        config(small_faces, tmp_path / "b", CheckDataset__strict=True, Train__samples_per_class=16)
    )
    assert not failed.passed and any(f["severity"] == "error" for f in failed.findings)
    with pytest.raises(DatasetError):
        paddlex_feat.check_dataset(config(tmp_path / "nowhere", tmp_path / "c"))


def test_the_result_of_an_earlier_command_does_not_stay(small_faces, tmp_path):
    (tmp_path / "check_dataset_result.json").write_text('{"done_flag": true}')
    paddlex_feat.check_dataset(config(small_faces, tmp_path))
    assert not (tmp_path / "check_dataset_result.json").exists()
    assert (tmp_path / "check_dataset_result.json.bak").exists()


class Failing(Recorder):
    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method

    def __getattribute__(self, name):
        if name.startswith("on_") and name == object.__getattribute__(self, "_method"):
            raise ValueError("no tracker")
        return object.__getattribute__(self, name)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["on_start", "on_log_steps", "on_evaluation", "on_end"])
def test_an_exception_in_a_callback_ends_the_run_and_all_are_told(small_faces, tmp_path, method):
    other = Recorder()
    with pytest.raises(TrainingError) as caught:
        paddlex_feat.train(config(small_faces, tmp_path, Train__epochs_iters=1), [other, Failing(method)])
    assert caught.value.code == "callback-failed" and isinstance(caught.value.__cause__, ValueError)
    if method == "on_end":
        assert other.kinds()[-1] == "end finished"
    else:
        assert other.kinds()[-1] == "end failed" and other.events[-1][1]["err_code"] == "callback-failed"


def test_a_run_that_fails_tells_its_callbacks(tmp_path):
    recorder = Recorder()
    with pytest.raises(DatasetError) as caught:
        paddlex_feat.train(config(tmp_path / "nowhere", tmp_path / "out"), [recorder])
    assert recorder.kinds() == ["start", "end failed"]
    assert recorder.events[-1][1] == {
        "err_type": "DatasetError",
        "err_code": caught.value.code,
        "err_msg": str(caught.value),
    }


def test_callbacks_of_a_run_with_processes_of_its_own_are_an_error(small_faces, tmp_path):
    with pytest.raises(ConfigError) as caught:
        paddlex_feat.train(config(small_faces, tmp_path, Global__device="cpu:0,1"), [Recorder()])
    assert caught.value.code == "callbacks-in-other-process" and not list(tmp_path.iterdir())


def test_load_config_takes_dots_and_underscores(tmp_path):
    one = load_config("PP-ShiTuV2_rec", {"Train.augment.pad": 3}, Train__epochs_iters=7, Global__output=tmp_path)
    assert (one.Train.augment.pad, one.Train.epochs_iters, one.Global.output) == (3, 7, str(tmp_path))
    with pytest.raises(ConfigError, match="bach_size"):
        load_config("PP-ShiTuV2_rec", Train__bach_size=3)


def test_paths_of_the_mode_are_checked(tmp_path):
    with pytest.raises(ConfigError) as caught:
        paddlex_feat.check_dataset(config(Path("$DATA/mine"), tmp_path))
    assert caught.value.code == "invalid-config" and "Global.dataset_dir" in caught.value.what


@pytest.mark.slow
def test_ctrl_c_raises_keyboard_interrupt(small_faces, tmp_path):
    """The caller's handlers stay, also where the command would take the signal to save."""
    code = (
        "import os, signal, paddlex_feat\n"
        "from paddlex_feat import load_config, train, TrainingCallback\n"
        "class Stop(TrainingCallback):\n"
        "    def on_log_steps(self, values): os.kill(os.getpid(), signal.SIGINT)\n"
        "    def on_end(self, status, result): print(status)\n"
        f"settings = {dict(config(small_faces, tmp_path).model_dump(mode='json'))!r}\n"
        "try: train(paddlex_feat.Config.model_validate(settings), [Stop()])\n"
        "except KeyboardInterrupt: print('interrupted by the caller')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["interrupted", "interrupted by the caller"], done.stderr


@pytest.mark.slow
def test_the_tracker_of_the_docs_tracks_a_run(small_faces, tmp_path, monkeypatch, capsys):
    """The example of docs/python.md, with a stand-in for MLflow."""
    page = (ROOT / "docs/python.md").read_text()
    example = re.search(r"```python\n(import mlflow.*?)```", page, re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line.strip()]) <= 14
    logged: list[tuple] = []

    class Stand:
        def __getattr__(self, name):
            return lambda *words, **named: logged.append((name, *words, named))

    monkeypatch.setitem(sys.modules, "mlflow", Stand())
    monkeypatch.setattr(paddlex_feat, "load_config", lambda *_: config(small_faces, tmp_path, Train__epochs_iters=1))
    exec(example, {})
    names = [name for name, *_ in logged]
    assert names[0] == "start_run" and names[-1] == "end_run" and logged[-1][1] == "FINISHED"
    assert any(name == "log_metrics" and "recall1" in words[0] for name, *words in logged)


def test_messages_of_the_host_program_come_through_after_a_run(run_folder, tmp_path):
    """Paddle's import gives the root logger a handler, whose stream would be ours."""
    code = (
        "import logging, sys\n"
        "from paddlex_feat import export, load_config\n"
        "export(load_config('PP-ShiTuV2_rec', Export__weight_path=sys.argv[1], Global__output=sys.argv[2], "
        "Global__device='cpu'))\n"
        "assert not logging.root.handlers, logging.root.handlers\n"
        "logging.basicConfig(); logging.getLogger('host').warning('after the run')\n"
    )
    weights = run_folder / "best_model/best_model.pdparams"
    command = [sys.executable, "-c", code, weights, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING:host:after the run" in done.stderr, done.stderr


@pytest.mark.slow
def test_another_run_starts_in_on_end_and_not_before(small_faces, tmp_path):
    codes: list[str] = []

    class Chain(TrainingCallback):
        def on_start(self, settings):
            with pytest.raises(FeatError) as caught:
                check_dataset(config(small_faces, tmp_path / "a"))
            codes.append(caught.value.code)

        def on_end(self, status, result):
            codes.append(f"{status} {check_dataset(config(small_faces, tmp_path / 'b')).passed}")

    train(config(small_faces, tmp_path / "c", Train__epochs_iters=1), [Chain()])
    assert codes == ["run-in-run", "finished True"]


def test_an_error_of_on_end_does_not_hide_the_one_that_ended_the_run(tmp_path, caplog):
    class Bad(TrainingCallback):
        def on_start(self, settings):
            raise KeyboardInterrupt

        def on_end(self, status, result):
            raise ValueError(status)

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "absent", tmp_path), [Bad()])
    assert "failed in on_end (ValueError: interrupted)" in caplog.text


def test_what_is_no_callback_is_refused_before_the_run(small_faces, tmp_path):
    with pytest.raises(ConfigError, match="has no on_start") as caught:
        train(config(small_faces, tmp_path), [print])
    assert caught.value.code == "not-a-callback" and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": "adamww"}, "Train.optimizer.*Did you mean adamw"),
        ({"batch_size": -1}, "Train.batch_size.*greater than or equal to 1"),
    ],
)
def test_a_faulty_configuration_leaves_an_earlier_result_alone(small_faces, tmp_path, keys, message):
    """`model_copy` validates nothing, and some names are known to the modes alone."""
    (tmp_path / "train_result.json").write_text('{"done_flag": true}')
    settings = config(small_faces, tmp_path)
    settings = settings.model_copy(update={"Train": settings.Train.model_copy(update=keys)})
    with pytest.raises(ConfigError, match=message):
        train(settings)
    assert [p.name for p in tmp_path.iterdir()] == ["train_result.json"]


def test_the_result_of_a_killed_command_is_set_aside(small_faces, tmp_path):
    (tmp_path / "check_dataset_result.json").write_text('{"done_flag": false}')
    check_dataset(config(small_faces, tmp_path))
    assert (tmp_path / "check_dataset_result.json.bak").is_file()
    assert not (tmp_path / "check_dataset_result.json").exists()


def test_losses_from_the_top_leave_threads_and_signals_to_the_runs():
    code = (
        "import signal; from paddlex_feat import TripletAngularMarginLoss\n"
        "from paddlex_feat.runtime.cpu import cpu_threads, physical_cores\n"
        "assert cpu_threads(0) == physical_cores(), cpu_threads(0)\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "assert not int(status['SigCgt'], 16) & 1 << signal.SIGTERM - 1, status['SigCgt']\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
