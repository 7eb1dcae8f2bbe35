"""Signals that end a run: closed terminals, schedulers, limits of CPU time. What is trained is saved."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT

NAMES = ("SIGHUP", "SIGUSR1", "SIGXCPU", "SIGQUIT", "SIGUSR2")

# Trainings in one process, which imports Paddle once: each is sent a signal in its second epoch, and goes on.
RUNS = """
import json, os, signal, sys, threading, time
from pathlib import Path
from paddlex_feat.cli import main

data, output, *settings = sys.argv[1:]

def run(folder, *more):
    words = ["Global.mode=train", f"Global.dataset_dir={data}", f"Global.output={folder}", *settings, *more]
    return main(["-c", "PP-ShiTuV2_rec_CLIP_vit_base", *(w for word in words for w in ("-o", word))])

def signal_later(folder, numbers):
    metrics = folder / "metrics.jsonl"
    while not metrics.is_file() or '"epoch": 2' not in metrics.read_text():
        time.sleep(0.02)
    for number in numbers:
        os.kill(os.getpid(), number)

def signalled(name, numbers, *more):
    folder = Path(output) / name
    threading.Thread(target=signal_later, args=(folder, numbers)).start()
    code = run(folder, *more)
    return folder, code, json.loads((folder / "train_result.json").read_text())

for name in ("SIGHUP", "SIGUSR1", "SIGXCPU", "SIGQUIT", "SIGUSR2"):
    number = getattr(signal, name)
    # Twice, as a closed terminal and a limit of CPU time do: the second does not second_signal_raises, as Ctrl-C would.
    folder, code, result = signalled(name, [number, number], "Train.epochs_iters=500")
    saved = json.loads((folder / "latest/latest.info.json").read_text()) if code else {}
    again = run(folder, "Train.epochs_iters=4", "Train.resume=auto")
    done = json.loads((folder / "train_result.json").read_text())["done_flag"]
    print(json.dumps([name, code, result.get("err_msg", ""), saved, again, done]), flush=True)
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
_, code, result = signalled("nohup", [signal.SIGHUP], "Train.epochs_iters=4")
print(json.dumps(["nohup", code, result.get("err_msg", ""), {}, code, result["done_flag"]]), flush=True)
"""


@pytest.fixture(scope="module")
def runs(small_faces, tmp_path_factory) -> dict[str, list]:
    """What became of each signal's run: exit code, message, latest's information, exit code of the resumed run."""
    pytest.importorskip("paddle")
    output = tmp_path_factory.mktemp("signals")
    settings = [s for s in QUICK if "epochs_iters" not in s and "learning_rate" not in s]
    settings += ["Train.eval_interval=500", "Train.save_interval=500", "Train.log_interval=1"]
    settings += ["Model.depth=1", "Model.width=32", "Model.heads=2", "Model.patch_size=16"]  # the smallest network
    # A shell's background jobs, CI's among them, ignore SIGINT and SIGQUIT, and their children with them.
    heed = lambda: [signal.signal(getattr(signal, name), signal.SIG_DFL) for name in NAMES]  # noqa: E731
    command = [sys.executable, "-c", RUNS, small_faces, output, *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, preexec_fn=heed)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]  # Paddle prints too
    return {row[0]: row[1:] for row in map(json.loads, lines)}


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_saves_the_run_which_goes_on(runs, name):
    code, message, saved, again, done = runs[name]
    assert code == 1 and "everything is saved" in message and "-o Train.resume=auto" in message
    assert saved["epoch"] >= 1
    assert again == 0 and done is True


def test_under_nohup_nothing_changes(runs):
    code, message, _, _, done = runs["nohup"]
    assert (code, message, done) == (0, "", True)


def test_a_dropped_terminal_saves_the_run(small_faces, tmp_path):
    """The terminal is gone when the signal comes, and with it standard error."""
    pytest.importorskip("paddle")
    settings = ("Global.mode=train", f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path}", *QUICK)
    words = [w for s in (*settings, "Train.epochs_iters=500", "Train.save_interval=500") for w in ("-o", s)]
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, str(ROOT / "main.py"), "-c", "PP-ShiTuV2_rec", *words])
    shown = b""
    while b"epoch 1/" not in shown:
        shown += os.read(terminal, 2**16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    result = json.loads((tmp_path / "train_result.json").read_text())
    assert "everything is saved" in result["err_msg"] and (tmp_path / "latest/latest.pdparams").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_other_modes_end_with_their_result(name, small_faces, tmp_path):
    code = (
        "import os, sys; from paddlex_feat.cli import main\n"
        "from paddlex_feat.modes import check_dataset as mode\n"
        f"check = mode.check; number = {int(getattr(signal, name))}\n"
        "mode.check = lambda *a: (os.kill(os.getpid(), number), check(*a))[1]\n"
        "sys.exit(main())"
    )
    words = ("-o", f"Global.dataset_dir={small_faces}", "-o", f"Global.output={tmp_path}", "-o", "Train.batch_size=16")
    heed = lambda: signal.signal(getattr(signal, name), signal.SIG_DFL)  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", code, "-c", "PP-ShiTuV2_rec", *words],
        cwd=ROOT,
        env={**os.environ, "PADDLE_PDX_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        preexec_fn=heed,
    )
    assert done.returncode == 1 and "Interrupted" in done.stderr and "Traceback" not in done.stderr
    assert "Interrupted" in json.loads((tmp_path / "check_dataset_result.json").read_text())["err_type"]


# Signals of a process to itself, in one of its own: a mistake here would end pytest.
INSISTING = """
import json, signal, sys
from paddlex_feat.runtime import signals
from paddlex_feat.training.stop import StopSignal

for number in signals.ENDING:  # also those that this process was started to ignore
    signal.signal(number, lambda *_: None)
request, raised = StopSignal(), False
with request.listening():
    try:
        for name in sys.argv[1:]:
            signal.raise_signal(getattr(signal, name))
    except KeyboardInterrupt:
        raised = True
print(json.dumps([request.received, raised]))
"""


@pytest.mark.parametrize(
    ("sent", "insists"),
    [
        (["SIGTERM", "SIGTERM"], True),
        (["SIGINT", "SIGTERM"], True),
        (["SIGHUP", "SIGTERM", "SIGTERM"], True),
        (["SIGHUP", "SIGTERM"], False),  # as systemd closes a session
        (["SIGTERM", "SIGHUP", "SIGCONT"], False),
        (["SIGXCPU", "SIGXCPU", "SIGXCPU"], False),  # one a second
        (["SIGUSR1", "SIGTERM"], False),  # Slurm, before the time is over and when it is
    ],
)
def test_somebody_insists_by_a_second_ctrl_c_or_sigterm_alone(sent, insists):
    done = subprocess.run([sys.executable, "-c", INSISTING, *sent], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, insists]


def test_handlers_come_back_also_those_that_python_does_not_know(tmp_path):
    code = """
import faulthandler, os, signal, sys
from paddlex_feat.runtime.signals import handled, restored_handlers
faulthandler.register(signal.SIGUSR1, open(sys.argv[1], "w"))
came = []
with restored_handlers([signal.SIGUSR1]), handled(lambda number, _: came.append(number)):
    os.kill(os.getpid(), signal.SIGUSR1)
assert came == [signal.SIGUSR1]
os.kill(os.getpid(), signal.SIGUSR1)
assert len(came) == 1
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "dump"], cwd=ROOT, check=True)
    assert "most recent call first" in (tmp_path / "dump").read_text()


def of_job(output: Path) -> list[int]:
    """The processes whose command or environment names the output."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(output).encode() in told:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_several_processes_save_once_and_end(small_faces, tmp_path, to_all):
    """A closed terminal reaches the first process alone; Slurm signals all of them, Paddle's launcher too."""
    pytest.importorskip("paddle")
    output = tmp_path / "out"
    settings = ("Global.mode=train", f"Global.dataset_dir={small_faces}", f"Global.output={output}", *QUICK)
    settings += ("Train.batch_size=8", "Global.device=cpu:0,1", "Train.epochs_iters=500")
    command = [sys.executable, str(ROOT / "main.py"), "-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (output / "epoch_1").exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.1)
    for pid in of_job(output) if to_all else [process.pid]:
        os.kill(pid, signal.SIGUSR1)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "everything is saved" in message and not of_job(output), message
