"""The command as a process: speed of start, exit codes, result files, messages."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import BaseModel
from support.runs import CLIP, QUICK, ROOT, TINY, run_here, run_main

import paddlex_feat
from paddlex_feat.config.schema import Config

NEEDS_PADDLE = pytest.mark.skipif(find_spec("paddle") is None, reason="Paddle is not installed")
HEAVY = ("paddle", "cv2", "numpy", "matplotlib", "requests", "urllib3", "filelock", "tqdm")


def loaded_modules(*words: str) -> set[str]:
    code = (
        "import sys; from paddlex_feat.cli import main\n"
        f"try: main({list(words)!r})\nexcept SystemExit: pass\n"
        f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.split("LOADED")[-1].split())


def test_start_pays_for_nothing_that_the_mode_does_not_use(faces, tmp_path):
    assert loaded_modules("--help") == set()
    assert loaded_modules("-c", "PP-ShiTuV2_rec", "-o", "x=1", "-o", f"Global.output={tmp_path}") == set()
    check = ("-c", "PP-ShiTuV2_rec", "-o", f"Global.dataset_dir={faces}", "-o", f"Global.output={tmp_path}")
    assert "paddle" not in loaded_modules(*check)


def test_the_package_is_cheap_to_import_and_gives_what_it_names():
    code = f"import sys, paddlex_feat; print(*[m for m in {(*HEAVY, 'pydantic', 'yaml')!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
    for name in paddlex_feat.__all__:
        assert getattr(paddlex_feat, name) is not None and name in dir(paddlex_feat)
    from paddlex_feat import ImageError, create_model

    assert create_model.__module__ == "paddlex_feat.inference.predictor" and issubclass(ImageError, Exception)
    assert list(inspect.signature(paddlex_feat.create_model).parameters)[:2] == ["model_name", "model_dir"]
    with pytest.raises(AttributeError, match="absent"):
        _ = paddlex_feat.absent
    assert (ROOT / "paddlex_feat/py.typed").is_file()


def test_help_lists_every_key_with_its_default_and_meaning():
    """By a walk of its own over the schema; two keys as they are to look, with a unit and without."""
    text = " ".join(run_main("--help").stdout.split())
    pending = [("", Config)]
    while pending:
        prefix, section = pending.pop()
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                pending.append((f"{prefix}{name}.", field.annotation))
            else:
                default = "null" if field.default is None else field.get_default(call_default_factory=True)
                assert f" {prefix}{name} [{default}] " in text and f" {field.description}" in text, name
    assert " CheckDataset.split.train_percent [null] (%) integer or null Share of train.txt. " in text
    assert " CheckDataset.strict [False] True, False Warnings fail the check too. " in text


def test_a_reader_of_the_help_may_go_away():
    command = f"{sys.executable} main.py --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and not done.stderr


def test_version():
    from paddlex_feat import __version__

    assert __version__ in run_main("--version").stdout


@pytest.mark.parametrize("words", [(), ("--nonsense",), ("-c", "PP-ShiTuV2_rec", "-o", "Train.batch_size")])
def test_a_wrong_command_line_exits_with_2(words):
    done = run_main(*words)
    assert done.returncode == 2 and "error:" in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_configuration_exits_with_1_and_says_so_in_the_result_file(tmp_path):
    done = run_main(
        "-c", "PP-ShiTuV2_rec", "-o", "Global.mode=export", "-o", f"Global.output={tmp_path}", "-o", "Train.bach_size=1"
    )
    result = json.loads((tmp_path / "export_result.json").read_text())
    assert done.returncode == 1 and result["done_flag"] is False and "Train.bach_size" in result["err_msg"]


@pytest.mark.parametrize("mode", ["check_dataset", "train", "evaluate", "export", "predict"])
def test_a_wrong_configuration_leaves_the_result_of_a_finished_run(tmp_path, mode):
    path, content = tmp_path / f"{mode}_result.json", '{"done_flag": true}'
    path.write_text(content)
    words = ("-c", "PP-ShiTuV2_rec", "-o", f"Global.mode={mode}", "-o", f"Global.output={tmp_path}")
    done = run_here(*words, "-o", "Train.epoch=3")
    assert done.returncode == 1 and "Train.epoch" in done.stderr and "Traceback" not in done.stderr
    assert path.read_text() == content and "Train.epoch" in (tmp_path / f"{mode}.log").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{mode}.lock", f"{mode}.log", path.name]
    path.write_text('{"done_flag": false, "err_msg": "before"}')
    run_here(*words, "-o", "Train.epoch=3")
    assert "Train.epoch" in json.loads(path.read_text())["err_msg"]


@pytest.mark.parametrize("more", [(), ("-o", "Train.epoch=3")])
@pytest.mark.parametrize("mode", ["check_dataset", "train"])
def test_an_output_that_no_path_can_be_is_said_and_nothing_is_written(tmp_path, mode, more):
    words = ("-c", "PP-ShiTuV2_rec", "-o", f"Global.mode={mode}", "-o", f'Global.output="{tmp_path}/a\\0b"', *more)
    done = run_here(*words, cwd=tmp_path)
    assert done.returncode == 1 and "Global.output (-o): contains a NUL" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_mode_touches_no_result_file(tmp_path):
    (tmp_path / "check_dataset_result.json").write_text("mine")
    done = run_here("-c", "PP-ShiTuV2_rec", "-o", "Global.mode=traim", "-o", f"Global.output={tmp_path}")
    assert done.returncode == 1 and "traim" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["check_dataset_result.json"]
    assert (tmp_path / "check_dataset_result.json").read_text() == "mine"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&1 >/dev/null | head -c 5"])
def test_the_result_is_written_though_nobody_reads_the_messages(tmp_path, redirection):
    words = f"-o Global.dataset_dir=nowhere -o Global.output={tmp_path}"
    subprocess.run(["bash", "-c", f"{sys.executable} main.py -c PP-ShiTuV2_rec {words} {redirection}"], cwd=ROOT)
    result = json.loads((tmp_path / "check_dataset_result.json").read_text())
    assert result["done_flag"] is False and "does not exist" in result["err_msg"]


def test_file_names_that_are_not_text(tmp_path, faces):
    """Lists are UTF-8, but a folder given to a mode may be called anything."""
    data = tmp_path / os.fsdecode(b"b\xff")
    data.mkdir()
    (data / "images").symlink_to(faces / "images")
    for name in ("train", "gallery", "query"):
        shutil.copy(faces / f"{name}.txt", data)
    settings = (f"Global.dataset_dir={tmp_path}", f"Global.output={tmp_path / 'out'}", "Train.batch_size=40")
    done = run_main("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def failure(tmp_path: Path, mode: str, *overrides: str, **env: str) -> tuple[str, dict]:
    settings = (f"Global.mode={mode}", f"Global.output={tmp_path / 'out'}", "Global.device=cpu", *overrides)
    run = run_main if env else run_here
    done = run("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)), cwd=tmp_path, **env)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads((tmp_path / "out" / f"{mode}_result.json").read_text())
    assert result["done_flag"] is False and result["err_type"].startswith("<class 'paddlex_feat.errors.")
    return done.stderr, result


@pytest.mark.parametrize(
    ("mode", "overrides", "message"),
    [
        ("check_dataset", ["Global.dataset_dir=nowhere"], "does not exist"),
        ("train", ["Global.dataset_dir=nowhere"], "does not exist"),
        ("evaluate", ["Global.dataset_dir=nowhere"], "does not exist"),
        pytest.param("export", ["Export.weight_path=none.pdparams"], "none.pdparams", marks=NEEDS_PADDLE),
        ("export", ["Export.weight_path="], "Export.weight_path=null"),
        ("predict", ["Predict.input=x.jpg", "Predict.model_dir=nowhere"], "inference.yml"),
        ("predict", ["Predict.input=null"], "Predict.input"),
    ],
)
def test_missing_things_are_named_in_every_mode(tmp_path, mode, overrides, message):
    text, result = failure(tmp_path, mode, *overrides)
    assert message in text and message in result["err_msg"] and "to do:" in text
    assert "Traceback" in (tmp_path / "out" / f"{mode}.log").read_text()


@NEEDS_PADDLE
def test_a_device_that_is_not_there(tmp_path, small_faces):
    text, _ = failure(tmp_path, "train", f"Global.dataset_dir={small_faces}", *QUICK, "Global.device=gpu:7")
    assert "gpu:7" in text and "available: cpu" in text


def test_without_paddle_check_dataset_works_and_train_says_what_to_install(tmp_path, small_faces):
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import sys\n"
        "class NoPaddle:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'paddle':\n"
        "            raise ModuleNotFoundError(name, name='paddle')\n"
        "sys.meta_path.insert(0, NoPaddle())\n"
    )
    env = {"PYTHONPATH": str(blocker)}
    text, _ = failure(tmp_path, "train", f"Global.dataset_dir={small_faces}", *QUICK, **env)
    assert "PaddlePaddle is not installed" in text and "pip install" in text
    settings = (f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path / 'out'}", "Train.batch_size=16")
    done = run_main("-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s)), **env)
    assert done.returncode == 0 and "Check dataset passed !" in done.stderr


def test_an_output_folder_that_cannot_be_written(tmp_path, faces):
    (tmp_path / "file").write_text("mine")
    done = run_main("-c", "PP-ShiTuV2_rec", "-o", f"Global.output={tmp_path / 'file' / 'out'}")
    assert done.returncode == 1 and "Cannot write" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


@NEEDS_PADDLE
@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_and_sigterm_end_training_cleanly(tmp_path, small_faces, signum):
    settings = ("Global.mode=train", f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path}", *QUICK, *TINY)
    words = [w for s in (*settings, "Train.epochs_iters=5000") for w in ("-o", s)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "-c", CLIP, *words],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, CI's among them, ignore SIGINT, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 120
    while not (tmp_path / "epoch_1").exists() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signum)
    _, text = process.communicate(timeout=60)
    result = json.loads((tmp_path / "train_result.json").read_text())
    assert process.returncode == 1 and "Interrupted" in text and "Traceback" not in text
    assert result["done_flag"] is False and (tmp_path / "latest" / "latest.pdparams").is_file()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".paddlex")]  # no half-written leftovers


def test_the_result_of_an_earlier_success_does_not_survive_a_failure(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluate_result.json").write_text('{"done_flag": true}')
    failure(tmp_path, "evaluate", "Global.dataset_dir=nowhere")
