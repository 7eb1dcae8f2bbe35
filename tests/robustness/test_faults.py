"""Full disks, read-only folders, files that vanish, clocks that jump, second runs: said, and nothing is lost."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT, run_main

from paddlex_feat import cli, errors
from paddlex_feat.config.schema import MODE_NAMES as MODES
from paddlex_feat.errors import OutputError
from paddlex_feat.fileio import locks
from paddlex_feat.fileio.atomic_folder import recover_folder
from paddlex_feat.fileio.locks import folder_lock, locked
from paddlex_feat.fileio.temporary import TemporaryFolder, remove_stale, temporary_file
from paddlex_feat.modes import session
from paddlex_feat.runtime import launch, logs

NAME = "PP-ShiTuV2_rec"


def overrides(mode: str, data: Path, run: Path) -> tuple[str, ...]:
    """What makes each mode work on a small data set and a finished run."""
    best = run / "best_model"
    return {
        "check_dataset": (f"Global.dataset_dir={data}", *QUICK),
        "train": (f"Global.dataset_dir={data}", *QUICK),
        "evaluate": (f"Global.dataset_dir={data}", *QUICK, f"Evaluate.weight_path={best}/best_model.pdparams"),
        "export": (f"Global.dataset_dir={data}", *QUICK, f"Export.weight_path={best}/best_model.pdparams"),
        "predict": (
            f"Predict.model_dir={best}/inference",
            f"Predict.input={data}/images/s21",
            "Predict.save_format=npz",
            *QUICK,
        ),
        "index": (f"Predict.model_dir={best}/inference", f"Index.input={data}/images/s21"),
        "search": (f"Predict.model_dir={best}/inference", f"Search.input={data}/images/s21"),
        "serve": (f"Predict.model_dir={best}/inference",),
    }[mode]


def words(mode: str, output: Path, *settings: str) -> list[str]:
    """Arguments of the command."""
    all_settings = (f"Global.mode={mode}", f"Global.output={output}", *settings)
    return ["-c", NAME, *(w for s in all_settings for w in ("-o", s))]


def result(output: Path, mode: str) -> dict:
    return json.loads((output / f"{mode}_result.json").read_text())


# Two runs in one folder


@pytest.fixture
def impatient(monkeypatch):
    """The lock of a run is not waited for as long as that of a dying one takes."""
    monkeypatch.setattr(locks, "PATIENCE", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", MODES)
def test_a_second_run_of_a_mode_is_refused_and_touches_nothing(mode, tmp_path, capsys):
    (tmp_path / f"{mode}_result.json").write_text('{"done_flag": true}')
    with locked(tmp_path / f".{mode}.lock"):
        assert cli.main(words(mode, tmp_path)) == 1
        said = capsys.readouterr().err
        assert "Another run of this mode" in said and "Traceback" not in said
        assert cli.main(words(mode, tmp_path, "Global.threads=many")) == 1
        assert "Global.threads" in capsys.readouterr().err
    assert result(tmp_path, mode) == {"done_flag": True}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f".{mode}.lock", f"{mode}_result.json"])


def test_another_mode_may_run_in_the_same_folder(tmp_path, small_faces):
    with locked(tmp_path / ".train.lock"):
        done = run_main(*words("check_dataset", tmp_path, f"Global.dataset_dir={small_faces}", "Train.batch_size=16"))
    assert done.returncode == 0, done.stderr


HOLDER = """
import sys, time
from pathlib import Path
from paddlex_feat.fileio.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_whose_process_is_dying_is_taken_up_at_once(tmp_path, small_faces):
    """The lock is freed a second after the command was given, like that of a process that holds much memory."""
    lock = tmp_path / ".check_dataset.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    settings = words("check_dataset", tmp_path, f"Global.dataset_dir={small_faces}", "Train.batch_size=16")
    command = [sys.executable, str(ROOT / "main.py"), *settings]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stderr is not None and "waiting up to 5 s for its end" in run.stderr.readline()
    holder.kill()
    holder.communicate()
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 0 and "waiting" not in said, said


def test_a_lock_that_is_free_soon_is_not_spoken_of(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / ".train.lock"
    lock = locked(path)
    lock.__enter__()
    threading.Timer(0.3, lambda: lock.__exit__(None, None, None)).start()
    with locked(path):
        assert caplog.text == ""


@pytest.mark.usefixtures("impatient")
def test_processes_of_one_job_share_its_lock(tmp_path):
    with locked(tmp_path / ".train.lock"), session.hold_output("train", tmp_path, True):
        another = session.hold_output("train", tmp_path, False)
        with pytest.raises(OutputError):
            another.__enter__()


# What another made of the folder, and of names


@pytest.mark.parametrize("there", [True, False])
def test_a_log_that_is_a_symbolic_link_is_refused_and_its_target_stays(there, tmp_path, small_faces):
    victim, output = tmp_path / "victim", tmp_path / "out"
    if there:
        victim.write_text("mine\n")
    output.mkdir()
    for mode in MODES:
        (output / f"{mode}.log").symlink_to(victim)
        done = run_main(*words(mode, output, *overrides(mode, small_faces, output)))
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 3, done.stderr
        assert f"symbolic link, which no log or lock may be.\n  where: {output / mode}.log\n" in done.stderr, (
            done.stderr
        )
        with pytest.raises(OSError, match="symbolic link"):
            logs.log_to_file(output / f"{mode}.log")
        (output / f".{mode}.lock").unlink()
        (output / f".{mode}.lock").symlink_to(victim)
        with pytest.raises(OutputError, match="symbolic link"), session.hold_output(mode, output, False):
            pass
    assert not any(path.suffix == ".json" for path in output.iterdir())
    assert victim.read_text() == "mine\n" if there else not victim.exists()


def test_a_moved_log_takes_the_earlier_lines_along_and_every_process_goes_on_in_the_new_one(tmp_path):
    """The first process of a job and its rank 0 write to the same file, and rank 0 moves it."""
    path, target = tmp_path / "train.log", tmp_path / "previous_1"
    target.mkdir()
    path.write_text("earlier\n")
    log = logging.getLogger("paddlex_feat")
    with logs.restored_logger():
        log.propagate = False
        logs.log_to_file(path)
        first = log.handlers[-1]
        log.info("of the first process")
        logs.log_to_file(path)
        log.handlers.remove(first)
        log.info("of rank 0, before")
        logs.move_log(path, target)
        log.info("of rank 0, after")
        log.handlers[:] = [first]
        log.info("of the first process, after")
    said = [line.partition(" INFO ")[2] for line in path.read_text().splitlines()]
    assert said == ["of rank 0, before", "of rank 0, after", "of the first process, after"]
    assert (target / "train.log").read_text().startswith("earlier\n") and "after" not in (
        target / "train.log"
    ).read_text()


def test_a_log_that_held_nothing_before_is_not_moved(tmp_path):
    with logs.restored_logger():
        logs.log_to_file(tmp_path / "train.log")
        logging.getLogger("paddlex_feat").info("mine")
        logs.move_log(tmp_path / "train.log", tmp_path / "absent")
    assert "mine" in (tmp_path / "train.log").read_text()


def test_a_log_whose_name_becomes_a_link_is_not_followed(tmp_path, capsys):
    path, victim = tmp_path / "train.log", tmp_path / "victim"
    victim.write_text("mine\n")
    with logs.restored_logger():
        logs.log_to_console()
        logs.log_to_file(path)
        path.unlink()
        path.symlink_to(victim)
        for _ in range(2):
            logging.getLogger("paddlex_feat").info("a line")
    assert victim.read_text() == "mine\n" and capsys.readouterr().err.count("is not complete") == 1


HOSTILE = "zz\n::error title=forged::x\x1b]0;pwned\x07\r\u202e"


def require_no_forgery(text: str) -> None:
    assert "forged" in text and not set("\x1b\x07\r\u202e") & set(text), text
    assert not any(line.lstrip().startswith(("::", "##")) for line in text.splitlines()), text
    assert max(map(len, text.splitlines())) <= errors.MAX_MESSAGE + 50  # time and level


def test_the_names_of_tensors_cannot_forge_a_message(run_folder, small_faces, tmp_path):
    from paddlex_feat.models import weights

    path = tmp_path / "best_model.pdparams"
    shutil.copy(run_folder / "config.yaml", tmp_path)
    state = weights.read(run_folder / "best_model/best_model.pdparams")
    some = next(iter(state.values()))
    weights.write(path, {**state, HOSTILE: some, "n" * 3_000_000: some})
    done = run_main(
        *words("evaluate", tmp_path, f"Global.dataset_dir={small_faces}", *QUICK, f"Evaluate.weight_path={path}")
    )
    assert done.returncode == 0 and "(3000000 characters)" in done.stderr, done.stderr[:5000]
    require_no_forgery(done.stderr)
    require_no_forgery((tmp_path / "evaluate.log").read_text())


def test_the_names_of_files_cannot_forge_a_message(run_folder, tmp_path):
    (tmp_path / "in").mkdir()
    for name in (f"{HOSTILE}.jpg", "::error title=forged::y.jpg", "a\n    ::error title=forged::z.jpg"):
        (tmp_path / "in" / name.replace("/", "_")).write_bytes(b"none")
    model = f"Predict.model_dir={run_folder}/best_model/inference"
    done = run_main(*words("predict", tmp_path / "out", model, f"Predict.input={tmp_path / 'in'}", *QUICK))
    assert done.returncode == 1, done.stderr
    require_no_forgery(done.stderr)
    require_no_forgery((tmp_path / "out/predict.log").read_text())


@pytest.mark.parametrize("part", ["what", "where", "fix"])
def test_an_error_is_three_lines_and_30_000_characters_whatever_it_quotes(part):
    for text in (HOSTILE, f"::error::{HOSTILE}", f"\n ##[error]{HOSTILE}", f"\n    ::error {HOSTILE}", "\x1b" * 10**6):
        error = errors.WeightsError(**{"what": "w", "where": "w", "fix": "f", part: text})
        assert len(str(error).splitlines()) == 3
        require_no_forgery(f"{error} forged")
    error = errors.WeightsError("\x1b" * 10**6, where="\n" * 10**6, fix="\ud800" * 10**6)
    assert len(str(error)) <= errors.MAX_MESSAGE == 30_000


def test_an_error_keeps_its_own_list():
    error = errors.DatasetError("2 faults:\n    a.txt:1: one\n    … and 1 more", where="a")
    assert str(error) == "2 faults:\n    a.txt:1: one\n    … and 1 more\n  where: a"


def test_a_traceback_in_the_log_is_readable_and_forges_no_line(tmp_path):
    code = (
        "import logging, sys; from pathlib import Path; from paddlex_feat.runtime import logs\n"
        "logs.log_to_console(); logs.log_to_file(Path(sys.argv[1])); log = logging.getLogger('paddlex_feat')\n"
        "try: raise ValueError(sys.argv[2])\n"
        "except ValueError as error: log.debug('traceback', exc_info=error)\n"
        "log.info('%s: %s', 'x' * 10**6, sys.argv[2]); log.info(sys.argv[2]); log.error('%d of %s', 3, Path('a\\nb'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.log", HOSTILE], cwd=ROOT, capture_output=True, text=True
    )
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert lines[0].endswith(" DEBUG traceback") and lines[1] == "| Traceback (most recent call last):", done.stderr
    traceback = lines[1:-3]  # from Python 3.13 on it shows the lines of such code too
    assert all(line.startswith("| ") for line in traceback) and lines[-1].endswith(r" ERROR 3 of a\x0ab")
    assert any(line.startswith(r"| \::error title=forged::x\x1b]0;pwned\x07") for line in traceback)
    said = done.stderr.splitlines()
    assert len(said) == 3 and len(said[0]) == errors.MAX_MESSAGE
    require_no_forgery("\n".join(lines))
    require_no_forgery(done.stderr)


# What killed processes leave


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from paddlex_feat.fileio.temporary import *\n"
        "folder = TemporaryFolder(Path(sys.argv[1])); (folder.path / 'x').write_text('x')\n"
        "with temporary_file(Path(sys.argv[1]), '.json'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    (tmp_path / ".notes.abcdefgh.json").write_text("mine")
    assert len(list(tmp_path.iterdir())) == 3
    with TemporaryFolder(tmp_path) as folder, temporary_file(tmp_path, ".json") as file:
        remove_stale(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {folder.name, file.name, ".notes.abcdefgh.json"}
    assert [p.name for p in tmp_path.iterdir()] == [".notes.abcdefgh.json"]


def test_what_only_resembles_a_leftover_is_the_users(tmp_path, small_faces):
    names = (
        ".toml",
        ".d/x",
        ".tmp",
        ".tmp-",
        ".tmp-notes",
        ".tmp-0123456789abcde",
        ".tmp-0123456789abcdef.a.b",
        ".k2h4zz_w",
    )
    own = [tmp_path / f".paddlex_feat{name}" for name in names] + [
        tmp_path / ".paddlex_feat.check_dataset.ab12cd34.json"
    ]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    left = tmp_path / ".paddlex_feat.tmp-0123456789abcdef.json"
    left.touch()
    done = run_main(*words("check_dataset", tmp_path, *overrides("check_dataset", small_faces, tmp_path)))
    assert done.returncode == 0 and not left.exists(), done.stderr
    assert all(path.read_text() == "mine" for path in own)


def test_a_folder_in_the_way_of_a_result_is_named_and_no_temporary_file(tmp_path, small_faces):
    blocked = tmp_path / "check_dataset_result.json"
    blocked.mkdir()
    done = run_main(*words("check_dataset", tmp_path, *overrides("check_dataset", small_faces, tmp_path)))
    assert done.returncode == 1 and f"where: {blocked}\n  to do: Move away what is there" in done.stderr, done.stderr
    assert "tmp-" not in done.stderr and [p.name for p in tmp_path.glob(".*")] == [".check_dataset.lock"]


def test_errors_name_what_lasts(tmp_path):
    staged = tmp_path / ".paddlex_feat.tmp-0123456789abcdef"
    for file, path, named in (
        (staged / "a", tmp_path / "a", tmp_path / "a"),
        (tmp_path / "source", tmp_path / "a", tmp_path / "source"),
        (None, tmp_path / "a", tmp_path / "a"),
    ):
        with pytest.raises(errors.OutputError) as found, errors.as_output_error(path):
            raise OSError(28, "No space left on device", file and str(file))
        assert found.value.where == str(named)
    with pytest.raises(errors.OutputError) as found, errors.as_output_error(staged / "a"):
        raise OSError(28, "No space left on device")
    assert found.value.where == f"{tmp_path}/"


def test_recovery_waits_for_a_folder_that_is_being_exchanged(tmp_path):
    """It must not put back the former one under the feet of the run that writes."""
    path = tmp_path / "best"
    former = tmp_path / ".best.replaced"
    former.mkdir()
    with folder_lock(former):
        code = (
            "import sys, pathlib, paddlex_feat.fileio.atomic_folder as a; a.recover_folder(pathlib.Path(sys.argv[1]))"
        )
        reader = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT)
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(2)
        path.mkdir()
        (path / "new").touch()
    assert reader.wait(20) == 0 and (path / "new").is_file() and not former.exists()
    former.mkdir()
    shutil.rmtree(path)
    recover_folder(path)  # nobody holds it: killed
    assert path.is_dir() and not former.exists()


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


@pytest.mark.parametrize("moves", range(7))
def test_an_export_stopped_after_any_move_is_one_export_or_refused(moves, tmp_path, monkeypatch):
    pytest.importorskip("paddle")
    from paddlex_feat.inference.export.install import install_export
    from paddlex_feat.inference.model_info import read_info

    names = ("inference.json", "inference.pdiparams", "inference.yml")
    old, new, staged = dict.fromkeys(names, "old"), dict.fromkeys(names, "new"), tmp_path / "staged"
    staged.mkdir()
    for name in names:
        (tmp_path / name).write_text("old")
        (staged / name).write_text("new")
    honest, made = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        made.append(target)
        if len(made) > moves:
            raise Killed
        return honest(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        try:
            install_export(staged, tmp_path)
        except Killed:
            assert moves < 6
    found = {name: (tmp_path / name).read_text() for name in names if (tmp_path / name).exists()}
    if "inference.yml" in found:
        assert found == (old if moves == 0 else new)
    else:
        with pytest.raises(errors.WeightsError, match=r"inference\.yml cannot be read"):
            read_info(tmp_path)
    kept = [path.read_text() for name in names for path in tmp_path.glob(f"{name}*")]
    assert kept.count("old") == 3  # under its own name or as .bak
    if moves < 6:
        for name in names:
            (staged / name).write_text("new")
        assert install_export(staged, tmp_path) == sorted(names)  # the next run completes it
    assert {name: (tmp_path / name).read_text() for name in names} == new


# Clocks


def test_the_first_error_of_a_job_is_told_by_order_not_by_clocks(tmp_path):
    for rank in (1, 0):
        launch.report_failure(tmp_path, errors.ImageError(f"of {rank}"), rank)
    os.utime(tmp_path / "error_1.json", (2e9, 2e9))  # the clock went back between the two
    assert [rank for rank, _ in launch._failures(tmp_path)] == [1, 0]


@pytest.mark.slow
def test_a_run_goes_on_though_the_clock_went_back(small_faces, run_folder, tmp_path, monkeypatch):
    """The state that is taken up, and what is set aside, depend on what files hold."""
    pytest.importorskip("paddle")
    from paddlex_feat.training.run_folder import RunFolder

    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    for age, path in enumerate(sorted(copy.rglob("*"), key=lambda p: p.name == "latest")):
        os.utime(path, (1e9 - age, 1e9 - age))  # `latest` and what is in it are the oldest
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1e8)
    folder = RunFolder(copy, 9)
    assert folder.latest() == copy / "latest/latest.pdparams"
    before = (copy / "latest/latest.pdparams").read_bytes()
    settings = (*overrides("train", small_faces, run_folder), "Train.resume=auto", "Train.epochs_iters=4")
    done = run_main(*words("train", copy, *settings))
    assert done.returncode == 0 and "Resuming after epoch 3" in done.stderr, done.stderr
    assert (copy / "latest/latest.pdparams").read_bytes() != before and not (copy / "previous_1").exists()


def test_a_changed_image_is_inspected_again_though_it_got_older(tmp_path, monkeypatch):
    import cv2
    import numpy as np

    from paddlex_feat.checks.inspection import inspect_all

    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    assert not inspect_all([str(path)], 1)[str(path)].error
    path.write_bytes(b"x" * path.stat().st_size)  # as long as before
    os.utime(path, (1e9, 1e9))
    assert inspect_all([str(path)], 1)[str(path)].error


# Disks


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own in memory; `resize` changes it."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


ROOM = {"check_dataset": "48k", "train": "40m", "evaluate": "100k", "export": "1m", "predict": "16k"}


def require_said(done: subprocess.CompletedProcess[str], what: str) -> None:
    """Exit code 1 and three lines, no traceback of ours or of the log's."""
    assert done.returncode == 1 and f"Cannot write: {what}" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ROOM)
def test_a_full_disk_is_said_and_the_command_succeeds_once_there_is_room(
    mode, small_disk, small_faces, run_folder, files
):
    """What stands under its final name is whole all the time, and what was there before is kept."""
    pytest.importorskip("paddle")
    from test_kills import check_params_complete

    (small_disk / "notes.txt").write_text("mine")
    remount(small_disk, f"size={ROOM[mode]}")
    command = words(mode, small_disk, *overrides(mode, small_faces, run_folder))
    require_said(run_main(*command), "No space left on device")
    check_params_complete(small_disk, files[0])
    if (small_disk / f"{mode}_result.json").exists():
        assert result(small_disk, mode)["done_flag"] is False
    assert not list(small_disk.rglob(".paddlex_feat.tmp-*"))
    remount(small_disk, "size=200m")
    done = run_main(*command)
    assert done.returncode == 0 and result(small_disk, mode)["done_flag"] is True, done.stderr
    check_params_complete(small_disk, files[0])
    assert (small_disk / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ROOM)
def test_a_file_that_may_not_grow_is_said(mode, small_faces, run_folder, tmp_path):
    """The same without a file system of one's own: a limit on the length of files."""
    limit = {"train": 2**20, "export": 2**20, "predict": 2**12}.get(mode, 2**13)

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "main.py", *words(mode, tmp_path, *overrides(mode, small_faces, run_folder))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=bounded)
    require_said(done, "File too large")
    assert result(tmp_path, mode)["done_flag"] is False and not list(tmp_path.rglob(".paddlex_feat.tmp-*"))


@pytest.mark.parametrize("mode", MODES)
def test_a_read_only_output_is_said_before_any_work(mode, small_disk, small_faces, run_folder):
    (small_disk / f"{mode}_result.json").write_text('{"done_flag": true}')
    remount(small_disk, "ro")
    began = time.perf_counter()
    require_said(run_main(*words(mode, small_disk, *overrides(mode, small_faces, run_folder))), "Read-only file system")
    assert time.perf_counter() - began < 20
    remount(small_disk, "rw")
    assert [p.name for p in small_disk.iterdir()] == [f"{mode}_result.json"]


# Files that vanish between the check and the use

GONE = """
import shutil, sys
from pathlib import Path
import {module} as module
from paddlex_feat import cli
honest = module.{name}
def vanishing(*args, **kwargs):
    found = honest(*args, **kwargs)
    for path in map(Path, {paths!r}):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return found
module.{name} = vanishing
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "module", "name", "what", "kind"),
    [
        ("check_dataset", "paddlex_feat.modes.check_dataset", "find_root", "data/images", "DatasetError"),
        ("check_dataset", "paddlex_feat.modes.check_dataset", "find_root", "data/query.txt", "DatasetError"),
        ("train", "paddlex_feat.modes.train", "read_data", "data/images", "ImageError"),
        ("train", "paddlex_feat.data.readers.find", "find_root", "data/train.txt", "DatasetError"),
        ("evaluate", "paddlex_feat.modes.evaluate", "self_pairs_of", "data/images", "ImageError"),
        ("evaluate", "paddlex_feat.data.readers.find", "find_root", "data/gallery.txt", "DatasetError"),
        ("evaluate", "paddlex_feat.modes.trained_model", "resolve_weights", "run/best_model", "WeightsError"),
        ("export", "paddlex_feat.modes.export", "weight_file", "run/best_model", "WeightsError"),
        ("predict", "paddlex_feat.inference.predictor", "read_info", "run/best_model", "WeightsError"),
        ("predict", "paddlex_feat.inference.inputs.paths", "exists", "data/images", "ImageError"),
    ],
)
def test_what_vanishes_between_check_and_use_is_named(
    mode, module, name, what, kind, faces, small_faces, run_folder, tmp_path
):
    data, run, output = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    shutil.copytree(small_faces, data, ignore=shutil.ignore_patterns("images"))
    shutil.copytree(faces / "images", data / "images")
    shutil.copytree(run_folder, run)
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    code = GONE.format(module=module, name=name, paths=[str(tmp_path / what)])
    arguments = words(mode, output, *overrides(mode, data, run))
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    said = result(output, mode)
    assert said["done_flag"] is False and kind in said["err_type"], said["err_msg"]
    assert Path(what).name in said["err_msg"] + json.dumps(said), said
    assert (output / "notes.txt").read_text() == "mine" and not list(output.rglob(".paddlex_feat.tmp-*"))
