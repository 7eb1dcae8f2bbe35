"""Inside other people's programs: threads, handlers and loggers of theirs, other processes, `python -m`."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl  # noqa: F401 - it sets an environment variable when it is imported first
from support.runs import QUICK, ROOT

import paddlex_feat
from paddlex_feat import cli
from paddlex_feat.errors import ImageError
from paddlex_feat.fileio import atomic
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.provenance import run_record

MODEL = "PP-ShiTuV2_rec"


def words(data: Path, output: Path, *more: str) -> list[str]:
    settings = (f"Global.dataset_dir={data}", f"Global.output={output}", "Train.batch_size=16", *more)
    return ["-c", MODEL, *(w for s in settings for w in ("-o", s))]


@pytest.fixture
def logger():
    """A host's own handler on the package's logger, and its level."""
    own, lines = logging.getLogger("paddlex_feat"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    former = own.handlers[:], own.level, own.propagate
    own.handlers[:], own.propagate = [handler], True
    own.setLevel(logging.ERROR)
    yield own, lines
    own.handlers[:], own.propagate = former[0], former[2]
    own.setLevel(former[1])


def test_a_mode_in_a_thread(small_faces, tmp_path, capsys):
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(words(small_faces, tmp_path))))
    thread.start()
    thread.join()
    assert codes == [0] and "Check dataset passed !" in capsys.readouterr().err


def test_threads_wait_for_each_other_and_keep_their_logs(small_faces, tmp_path, capsys):
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: codes.append(cli.main(words(small_faces, tmp_path / str(i)))))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0] and "Waiting for the end of another run" in capsys.readouterr().err
    for i in range(3):
        log = (tmp_path / str(i) / "check_dataset.log").read_text()
        assert log.count("Checking the data set") == log.count("Check dataset passed !") == 1


@pytest.mark.parametrize("settings", [(), ("Global.dataset_dir=nowhere",), ("Global.threads=many",)])
def test_after_a_run_all_is_as_before(small_faces, tmp_path, logger, settings):
    own, lines = logger
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    mine = {number: signal.getsignal(number) for number in numbers}
    before = (own.handlers[:], own.level, own.propagate, dict(os.environ), Path.cwd())
    try:
        assert cli.main(words(small_faces, tmp_path, *settings)) == bool(settings)
        assert {number: signal.getsignal(number) for number in numbers} == mine
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert before == (own.handlers[:], own.level, own.propagate, dict(os.environ), Path.cwd())
    assert str(tmp_path) not in {str(f.resolve().parent) for f in Path("/proc/self/fd").iterdir()} and not lines
    size = (tmp_path / "check_dataset.log").stat().st_size
    own.error("of the host")
    assert (tmp_path / "check_dataset.log").stat().st_size == size and lines == ["of the host"]


THREADS = """
import os, signal, sys, threading
from pathlib import Path
from paddlex_feat.cli import main

signal.signal(signal.SIGTERM, lambda *_: print("the host's own handler", flush=True))
data, output, model, *settings = sys.argv[1:]

def go(name, config, mode, *more):
    given = [f"Global.mode={mode}", f"Global.dataset_dir={data}", f"Global.output={output}/{name}", *settings, *more]
    codes = []
    words = ["-c", config, *(w for s in given for w in ("-o", s))]
    thread = threading.Thread(target=lambda: codes.append(main(words)))
    thread.start()
    thread.join()
    print(name, codes, flush=True)

go("predict", "PP-ShiTuV2_rec", "predict", f"Predict.model_dir={model}", f"Predict.input={data}/images/s21/01.pgm",
   "Predict.save_format=npz")  # Paddle comes without what a training wants
for name in ("first", "second"):
    go(name, "PP-ShiTuV2_rec_CLIP_vit_base", "train", "Model.depth=1", "Model.width=32", "Model.heads=2",
       "Model.patch_size=16")
import paddle
print(paddle.get_flags("FLAGS_use_mkldnn")["FLAGS_use_mkldnn"], flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
def test_modes_in_threads_one_after_the_other(small_faces, run_folder, tmp_path):
    """Paddle is imported in a thread that is gone when the next mode runs, and takes the host's handlers."""
    pytest.importorskip("paddle")
    environment = {name: value for name, value in os.environ.items() if name != "FLAGS_use_mkldnn"}
    inference = run_folder / "best_model/inference"
    command = [sys.executable, "-c", THREADS, small_faces, tmp_path, inference, *QUICK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    said = [line for line in done.stdout.splitlines() if "OneDNN" not in line]  # Paddle prints too
    expected = ["predict [0]", "first [0]", "second [0]", "True", "the host's own handler"]
    assert said == expected, done.stdout + done.stderr
    best = "best_model/best_model.pdparams"
    assert (tmp_path / "first" / best).read_bytes() == (tmp_path / "second" / best).read_bytes()


# Models that are sent elsewhere


def features(model: Predictor, paths: list[str]) -> np.ndarray:
    return np.stack([result.feature for result in model.predict(paths)])


def fail(model: Predictor) -> None:
    list(model.predict("nowhere.jpg"))


@pytest.fixture(scope="module")
def small(run_folder, tmp_path_factory) -> Predictor:
    """A model on the engine that needs no Paddle, made by a relative path."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("paddle2onnx")
    from paddlex_feat.inference.export import convert

    folder = tmp_path_factory.mktemp("model")
    for file in (run_folder / "best_model/inference").iterdir():
        atomic.link_or_copy(file, folder / file.name)
    convert.to_onnx(*convert.graph_files(folder), folder / "inference.onnx")
    return paddlex_feat.create_model(
        MODEL, os.path.relpath(folder), device="cpu", batch_size=3, engine="auto", threads=1, fast_decode=True
    )


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_answers_alike(small, files, again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small.failed = [("x", "y")]
    other = again(small)
    assert other is not small and other.batch_size == 3 and other.failed == [("x", "y")]
    assert other._extractor.engine.name == small._extractor.engine.name and other._is_large_enough is not None
    assert np.array_equal(features(other, files), features(small, files))


def test_a_model_is_sent_to_a_process(small, files):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert np.array_equal(pool.submit(features, small, files[:3]).result(), features(small, files[:3]))
        with pytest.raises(ImageError, match="does not exist") as found:
            pool.submit(fail, small).result()
    assert found.value.where == "nowhere.jpg" and found.value.fix  # the error comes whole


def test_a_predictor_of_unknown_origin_says_so(small):
    with pytest.raises(TypeError, match="create_model"):
        pickle.dumps(Predictor(small._extractor))


# In a process that has loaded nothing else: beside other engines' threads a forked child may hang in OpenCV itself.
FORKS = """
import faulthandler, os, sys
import cv2
import numpy as np
from paddlex_feat import create_model
from paddlex_feat.errors import FeatError

folder, *files = sys.argv[1:]
small = create_model("PP-ShiTuV2_rec", folder, device="cpu", batch_size=4)

def in_child(use):
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            use()
            os._exit(0)
        except FeatError as error:
            os._exit(3 if "fork" in str(error) else 4)
        finally:
            os._exit(5)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

cv2.setNumThreads(2)  # this process's OpenCV has threads, too
cv2.GaussianBlur(np.ones((2000, 2000), np.float32), (0, 0), 9)
results = small.predict(files * 3)
next(results)
found = [in_child(lambda: list(results))]
found.append(len(list(results)))  # here it goes on
small._extractor._running.append(None)  # as if a thread were in the engine
found.append(in_child(lambda: list(small.predict(files))))
small._extractor._running.clear()
found.append(in_child(lambda: list(small.predict(files))))
print(found)
"""


def test_what_is_under_way_when_the_process_is_forked_is_an_error_there(small, files):
    """Its threads do not exist in the child, which would wait for them for ever."""
    command = [sys.executable, "-c", FORKS, small._extractor.folder, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([3, 3 * len(files) - 1, 3, 0]), done.stderr


# Ways to start


@pytest.mark.parametrize("module", ["paddlex_feat", "paddlex_feat.cli"])
def test_python_dash_m(module, tmp_path, small_faces):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "-c is required" in done.stderr and MODEL in done.stderr
    done = subprocess.run([*command, *words(small_faces, tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argument", "program", "command"),
    [
        ("main.py", "python main.py", [sys.executable, "main.py", "-c", "x"]),
        ("/opt/bin/paddlex-feat", "paddlex-feat", [sys.executable, "/opt/bin/paddlex-feat", "-c", "x"]),
        (
            str(ROOT / "paddlex_feat/__main__.py"),
            "python -m paddlex_feat",
            [sys.executable, "-m", "paddlex_feat", "-c", "x"],
        ),
        ("/srv/app.py", "python -m paddlex_feat", [sys.executable, "/srv/app.py", "-c", "x"]),
    ],
)
def test_the_command_that_goes_on_is_one_that_can_be_given(monkeypatch, argument, program, command):
    monkeypatch.setattr(sys, "argv", [argument, "-c", "x"])
    assert run_record.program() == program and run_record.command_line() == command
