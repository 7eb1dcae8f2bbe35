"""What Unix alone has is asked for, and never taken for granted: the modes run without it.

No Windows and no macOS is at hand: a child process hides modules and functions that Windows lacks from Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.runs import QUICK, ROOT
from support.runs import train as run_train

from paddlex_feat.errors import OutputError
from paddlex_feat.fileio import locks, os_locks, temporary
from paddlex_feat.fileio.atomic import write_text
from paddlex_feat.fileio.atomic_folder import atomic_folder
from paddlex_feat.runtime import cpu

HIDDEN_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty")
HIDDEN_OF_OS = (
    *("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "mkfifo", "posix_fallocate", "posix_fadvise"),
    *("sched_getaffinity", "sched_setaffinity", "fork", "forkpty", "memfd_create", "register_at_fork", "sysconf"),
    *("getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "pread", "pwrite", "uname", "statvfs", "nice"),
)
HIDDEN_OF_SIGNAL = ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBUS", "SIGALRM", "SIGKILL", "SIGCHLD")
# Python's own modules and the packages that the modes use are imported first: they know the system that they are on.
MASKED = """
import ctypes, os, signal, sys
import {imports}
for name in {modules!r}:
    sys.modules[name] = None
for name in {of_os!r}:
    if hasattr(os, name):
        delattr(os, name)
for name in {of_signal!r}:
    delattr(signal, name)
def no_library(name, *rest, whole=ctypes.CDLL, **options):
    if name is None:
        raise TypeError("there is no library of the process")
    return whole(name, *rest, **options)
ctypes.CDLL = no_library

from paddlex_feat.cli import main
code = main(sys.argv[1:])
print("CODE", code, "fork" in vars(os))
"""
IMPORTS = "subprocess, tempfile, shutil, platform, multiprocessing, concurrent.futures, sqlite3, uuid, numpy, PIL.Image"


def masked(*settings: str, imports: str = IMPORTS) -> subprocess.CompletedProcess[str]:
    code = MASKED.format(imports=imports, modules=HIDDEN_MODULES, of_os=HIDDEN_OF_OS, of_signal=HIDDEN_OF_SIGNAL)
    words = [word for setting in settings for word in ("-o", setting)]
    done = subprocess.run(
        [sys.executable, "-c", code, "-c", "PP-ShiTuV2_rec", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "CODE 0 False" in done.stdout, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.nightly
def test_all_modes_without_what_unix_alone_has(small_faces, tmp_path):
    pytest.importorskip("paddle")
    data, out = f"Global.dataset_dir={small_faces}", tmp_path / "out"
    masked("Global.mode=check_dataset", data, f"Global.output={tmp_path / 'check'}", "Train.batch_size=16")
    assert json.loads((tmp_path / "check/check_dataset_result.json").read_text())["check_pass"] is True
    with_paddle = f"{IMPORTS}, paddle, matplotlib.pyplot"
    train = ("Global.mode=train", data, f"Global.output={out}", *QUICK, "Train.epochs_iters=1")
    done = masked(*train, "Train.loader=processes", "Train.cache_mib=64", imports=with_paddle)
    assert "threads decode instead" in done.stderr and "does not support locks" in done.stderr
    weights = out / "best_model/best_model.pdparams"
    for mode in ("evaluate", "export"):
        key = f"{mode.capitalize()}.weight_path={weights}"
        masked(f"Global.mode={mode}", data, f"Global.output={out}", *QUICK, key, imports=with_paddle)
    assert json.loads((out / "evaluate_result.json").read_text())["done_flag"] is True
    image, model = next((small_faces / "images/s21").iterdir()), out / "best_model/inference"
    predict = ("Global.mode=predict", f"Predict.model_dir={model}", f"Predict.input={image}")
    masked(*predict, f"Global.output={tmp_path / 'predicted'}", imports=with_paddle)
    assert json.loads((tmp_path / "predicted/predict_result.json").read_text())["done_flag"] is True
    assert not list(tmp_path.rglob(".paddlex_feat.tmp-*"))
    usual = run_train(small_faces, tmp_path / "usual", "Train.epochs_iters=1")
    assert usual.returncode == 0, usual.stderr
    assert (tmp_path / "usual/best_model/best_model.pdparams").read_bytes() == weights.read_bytes()


@pytest.fixture
def without_flock(monkeypatch):
    """As on Windows: no flock, so no locks on folders, and none on what is renamed or removed."""
    monkeypatch.setattr(os_locks, "fcntl", None)
    for module in (os_locks, locks, temporary):
        monkeypatch.setattr(module, "HAS_FLOCK", False)


@pytest.mark.usefixtures("without_flock")
def test_files_and_folders_are_replaced_whole_without_flock(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two")
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "b.txt").write_text(text)
    assert (tmp_path / "a.txt").read_text() == "two" == (tmp_path / "folder/b.txt").read_text()
    left = tmp_path / ".paddlex_feat.tmp-0123456789abcdef"
    left.touch()
    temporary.remove_stale(tmp_path)  # it cannot know that its process is dead
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "folder", left.name}


@pytest.mark.usefixtures("without_flock")
def test_filelock_keeps_a_second_run_out(tmp_path, monkeypatch):
    """The package's own backend for this system stands for that of Windows."""
    path = tmp_path / ".train.lock"
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    with locks.locked(path):
        with pytest.raises(OutputError) as caught, locks.locked(path):
            pass
        with locks.locked(path, shared=True):  # the first process of the job holds the lock for all
            pass
    assert caught.value.code == "folder-in-use"
    with locks.locked(path), locks.folder_lock(tmp_path):
        assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_link_is_refused_where_the_system_cannot_refuse_it_itself(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_NOFOLLOW")
    (tmp_path / "train.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        locks.open_to_append(tmp_path / "train.log")
    assert not (tmp_path / "victim").exists()


def test_memory_is_known_or_said_to_be_unknown(monkeypatch, tmp_path):
    assert 2**20 < cpu.peak_resident_bytes() < cpu.memory_limit()
    assert cpu.peak_resident_bytes(tmp_path / "absent") > 2**20  # as on macOS
    monkeypatch.setitem(sys.modules, "resource", None)
    assert cpu.peak_resident_bytes(tmp_path / "absent") == 0
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr("paddlex_feat.runtime.cgroups.memory", lambda: None)
    assert cpu.memory_limit() == sys.maxsize


def test_no_module_takes_what_unix_alone_has_for_granted():
    """Unguarded imports at the top of a module would end every mode on Windows."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "paddlex_feat").rglob("*.py"))
        for line in path.read_text().splitlines()
        if line.startswith(tuple(f"{word} {module}" for word in ("import", "from") for module in HIDDEN_MODULES))
    ]
    assert not found
