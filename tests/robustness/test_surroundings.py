"""Where jobs run: homes and disks that cannot be written, no folder for temporary files, users without a name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.runs import QUICK, ROOT

from paddlex_feat.errors import DownloadError, OutputError, as_output_error, run_output
from paddlex_feat.fileio import atomic, cache, temporary, user_folders
from paddlex_feat.fileio.cache import cache_folder, cache_to_write
from paddlex_feat.hub.fetch import fetch_url
from paddlex_feat.inference.export.convert import onnx_file
from paddlex_feat.inference.results import FeatureResult
from paddlex_feat.inference.writers import save_features

MODEL = "PP-ShiTuV2_rec"
_NAMESPACE = ["unshare", "-m"]


def may_mount() -> bool:
    """May this process make mounts of its own, as root may outside of strict containers?"""
    try:
        return (
            subprocess.run([*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
        )
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(not may_mount(), reason="mounts cannot be made here")


def words(mode: str, data: Path, output: Path, run: Path) -> list[str]:
    """The arguments of Python for a mode."""
    weights = run / "best_model/best_model.pdparams"
    own = {
        "evaluate": [f"Evaluate.weight_path={weights}"],
        "export": [f"Export.weight_path={weights}", "Export.format=[paddle,onnx]"],
        "predict": [f"Predict.model_dir={run}/best_model/inference", f"Predict.input={data}/images/s21"],
    }
    settings = [f"Global.mode={mode}", f"Global.dataset_dir={data}", f"Global.output={output}", *QUICK]
    main = str(ROOT / "main.py")
    return [main, "-c", MODEL, *(w for s in settings + own.get(mode, []) for w in ("-o", s))]


def run_in(script: str, arguments: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a mount namespace that `script` has prepared."""
    return subprocess.run(
        [*_NAMESPACE, "bash", "-ec", f'{script}\nexec "$@"', "_", sys.executable, *arguments],
        cwd="/",
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=200,
    )


def nothing_but(output: Path) -> str:
    """What makes all read-only but a folder, as `docker run --read-only` with one volume does."""
    return f"""
mkdir -p {output}; mount --bind {output} {output}; mount -o remount,ro,bind /
for place in /tmp /var/tmp /dev/shm; do
  if mountpoint -q $place; then mount -o remount,ro,bind $place; fi
  if touch $place/x 2>/dev/null; then exit 9; fi
done"""


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [
        line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR", "Matplotlib", "Traceback"))
    ]


def same_files(one: Path, other: Path) -> None:
    """All files but logs are the same, byte for byte."""
    names = {
        str(p.relative_to(one)) for p in one.rglob("*") if p.is_file() and p.suffix in (".pdparams", ".json", ".png")
    }
    names -= {"run.json", "curves.png"}
    assert names
    for name in names:
        if "result" not in name:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@needs_mounts
def test_training_where_nothing_but_its_output_can_be_written(small_faces, run_folder, tmp_path):
    """At full speed, with the same bytes, without a line about it, and nothing is left."""
    pytest.importorskip("paddle")
    output = tmp_path / "out"
    done = run_in(nothing_but(output), words("train", small_faces, output, run_folder))
    assert done.returncode == 0, done.stderr
    assert not lines_of(done)
    assert json.loads((output / "run.json").read_text())["convolutions"] == "oneDNN, channels last, compiled loops"
    same_files(run_folder / "best_model", output / "best_model")
    assert not list(output.rglob(".paddlex*"))


@needs_mounts
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["check_dataset", "evaluate", "export", "predict"])
def test_each_mode_where_nothing_but_its_output_can_be_written(mode, small_faces, run_folder, tmp_path):
    arguments = words(mode, small_faces, tmp_path / "out", run_folder)
    done = run_in(nothing_but(tmp_path / "out"), arguments)
    assert done.returncode == 0, done.stderr
    usual = run_in("true", words(mode, small_faces, tmp_path / "usual", run_folder))
    assert usual.returncode == 0, usual.stderr
    same_files(tmp_path / "usual", tmp_path / "out")


# As if nothing but HOME named a folder.
NO_VARIABLES = dict.fromkeys(("PADDLE_PDX_CACHE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"), "")
HOMES = {
    "read-only": "mount -t tmpfs -o ro tmpfs $HOME",
    "full": "mount -t tmpfs -o size=16k tmpfs $HOME; head -c 100000 /dev/zero 2>/dev/null > $HOME/fill || true",
    "a full quota of files": "mount -t tmpfs -o nr_inodes=3 tmpfs $HOME; touch $HOME/a $HOME/b",
    "a file where .cache belongs": "mount -t tmpfs tmpfs $HOME; touch $HOME/.cache $HOME/.config $HOME/.paddlex",
}


# What writes to the home folder: Paddle's import, its captures, and matplotlib.
WRITERS = """
from paddlex_feat.fileio.user_folders import matplotlib_folder
from paddlex_feat.runtime.paddle_import import prepare_paddle
prepare_paddle(onednn_training=True)
from paddlex_feat.models import cpu_conv
assert cpu_conv._agrees(*cpu_conv._KINDS[0])
with matplotlib_folder():
    from matplotlib.figure import Figure
    Figure().subplots().set_title("a font")
"""


@needs_mounts
@pytest.mark.parametrize("kind", HOMES)
def test_a_home_folder_that_cannot_be_written(kind, tmp_path):
    pytest.importorskip("paddle")
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    done = run_in(HOMES[kind], ["-c", WRITERS], **places, **NO_VARIABLES)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not list((tmp_path / "tmp").iterdir()), "what was kept in a temporary folder is gone"


@needs_mounts
def test_a_mode_with_a_read_only_home(small_faces, run_folder, tmp_path):
    pytest.importorskip("paddle")
    (tmp_path / "home").mkdir()
    arguments = words("check_dataset", small_faces, tmp_path / "out", run_folder)
    done = run_in(HOMES["read-only"], arguments, HOME=str(tmp_path / "home"), **NO_VARIABLES)
    assert done.returncode == 0 and len(lines_of(done)) == 1 and "earlier checks are not used" in done.stderr, (
        done.stderr
    )


@pytest.mark.parametrize("place", ["/dev/null", ""])
def test_values_of_home_that_name_no_folder(place, tmp_path):
    pytest.importorskip("paddle")
    environment = {**os.environ, **NO_VARIABLES, "HOME": place, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WRITERS], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_relative_home_is_not_used(monkeypatch):
    monkeypatch.setenv("HOME", "somewhere")
    assert user_folders.home() is None


def test_a_user_without_a_name_and_a_home(monkeypatch):
    """As under `docker run --user 12345`, where HOME is not set and the user has no entry."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.delenv("PADDLE_PDX_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_folders.home() is None
    with pytest.raises(DownloadError, match="no home folder"):
        cache_folder()
    assert cache_to_write().is_relative_to(temporary.private_folder())


@pytest.fixture
def own_home(tmp_path, monkeypatch) -> Path:
    """A home folder, and nothing else that names a place."""
    for name in NO_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_cache_is_where_it_was_and_elsewhere_only_if_that_fails(own_home, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == own_home / ".paddlex" == cache_to_write()
    monkeypatch.setattr(cache, "can_write", lambda folder: not folder.is_relative_to(own_home))
    assert cache_folder() == tmp_path / "xdg/paddlex" == cache_to_write()
    (own_home / ".paddlex").mkdir()  # of an image of a container: read, and not written
    assert cache_folder() == own_home / ".paddlex"
    assert not caplog.text
    assert cache_to_write().is_relative_to(temporary.private_folder())
    assert caplog.text.count("PADDLE_PDX_CACHE_HOME names another folder") == 1
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(own_home / "named"))
    assert cache_folder() == own_home / "named" == cache_to_write()


def test_a_conversion_without_a_cache_is_made_for_this_run(own_home, run_folder, tmp_path, monkeypatch):
    pytest.importorskip("paddle2onnx")
    (own_home / ".paddlex").touch()
    file = onnx_file(run_folder / "best_model/inference")
    assert file.stat().st_size > 1000 and file.is_relative_to(temporary.private_folder())


def test_matplotlib_keeps_the_users_settings_where_it_can(own_home, tmp_path):
    with user_folders.matplotlib_folder():
        assert "MPLCONFIGDIR" not in os.environ
    assert not list(own_home.iterdir()), "looking leaves nothing behind"
    (own_home / ".cache").touch()
    with user_folders.matplotlib_folder():
        assert Path(os.environ["MPLCONFIGDIR"]).is_relative_to(temporary.private_folder())
    assert "MPLCONFIGDIR" not in os.environ


def test_an_unusable_folder_of_the_users_for_matplotlib_comes_back(own_home, monkeypatch):
    monkeypatch.setenv("MPLCONFIGDIR", "/dev/null/mpl")
    with user_folders.matplotlib_folder():
        assert os.environ["MPLCONFIGDIR"] != "/dev/null/mpl"
    assert os.environ["MPLCONFIGDIR"] == "/dev/null/mpl"


# Temporary files


def test_temporary_files_go_to_the_output_where_the_system_has_no_place(tmp_path, monkeypatch):
    before = tempfile.tempdir

    def none() -> str:
        if tempfile.tempdir:
            return tempfile.tempdir
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(OutputError, match="TMPDIR"):
        temporary.TemporaryFolder()
    with temporary.temporary_files_in(tmp_path):
        with temporary.TemporaryFolder() as folder:
            assert folder.is_relative_to(tmp_path) and os.environ["TMPDIR"] == str(folder.parent)
        assert temporary.private_folder().is_dir()
    assert tempfile.tempdir is None and not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", before)


def test_temporary_files_do_not_go_to_the_working_directory(tmp_path, monkeypatch):
    """It is Python's last resort, and may be a data set."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "data"))
    with temporary.temporary_files_in(tmp_path):
        assert Path(tempfile.gettempdir()) != tmp_path / "data"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "data"))  # the user's wish
    with temporary.temporary_files_in(tmp_path):
        assert Path(tempfile.gettempdir()) == tmp_path / "data"


def test_the_private_folder_goes_with_its_process_and_a_killed_ones_with_the_next(tmp_path):
    code = (
        "import os, signal, sys; from paddlex_feat.fileio.temporary import private_folder as p\n"
        "assert p() == p(); (p() / 'x').mkdir(); print(p(), flush=True)\n"
        "child = os.fork()\n"
        "if not child: assert p() != os.environ.get('x'); sys.exit(0)\n"  # a forked process has one of its own
        "os.waitpid(child, 0); assert (p() / 'x').is_dir()\n"
        "sys.argv[1:] and os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert not list(tmp_path.iterdir())
    killed = subprocess.run([sys.executable, "-c", code, "die"], env=environment, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert not list(tmp_path.iterdir())


# Advice that fits the path


def advice(write: Callable[[], object]) -> str:
    with pytest.raises(OutputError) as found:
        write()
    assert found.value.fix is not None
    return found.value.fix


def test_advice_fits_the_path(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "a"
    with run_output(tmp_path / "file/out"):  # cannot be made: the path at fault is above it
        assert "Global.output=DIR" in advice(lambda: atomic.write_text(tmp_path / "file/out/x.json", ""))
    with run_output(tmp_path / "out"):
        assert "Global.output" not in advice(lambda: atomic.write_text(below, ""))
    assert "choose another path" in advice(lambda: atomic.write_text(below, ""))
    feature = FeatureResult("x.jpg", np.zeros(4, np.float32), "x", 1, None)
    assert "choose another path" in advice(lambda: feature.save_to_json(below))
    assert "choose another path" in advice(lambda: save_features([feature], below.with_suffix(".npz")))
    with temporary.TemporaryFolder() as folder:
        assert "TMPDIR" in advice(lambda: atomic.write_text(folder / "a" / ("x" * 300), ""))
        with run_output(folder.parent):
            assert "Global.output" in advice(lambda: atomic.write_text(folder / ("x" * 300), ""))


def test_a_relative_output_and_one_behind_a_link(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    for output, path in (("real", tmp_path / "real/a"), ("link", tmp_path / "real/a"), ("real", Path("link/a"))):
        with run_output(Path(output)), pytest.raises(OutputError, match=r"Global\.output"), as_output_error(path):
            raise OSError(28, "No space left on device", str(path))


@needs_mounts
def test_a_data_set_on_a_read_only_medium_is_to_be_copied(small_faces, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_faces, data, symlinks=True)
    split = [
        f"CheckDataset.split.{k}" for k in ("enable=True", "train_percent=60", "gallery_percent=20", "query_percent=20")
    ]
    arguments = [
        str(ROOT / "main.py"),
        "-c",
        MODEL,
        "-o",
        f"Global.dataset_dir={data}",
        "-o",
        f"Global.output={tmp_path / 'out'}",
    ]
    arguments += [w for s in split for w in ("-o", s)]
    done = run_in(f"mount --bind {data} {data}; mount -o remount,ro,bind {data}", arguments)
    assert done.returncode == 1 and "Read-only file system" in done.stderr and "Global.output" not in done.stderr
    assert f"where: {data}\n  to do: The lists of a data set are written beside it: copy it to a folder" in done.stderr


def test_a_full_disk_of_the_cache_names_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError) as found:
        fetch_url("http://127.0.0.1:9/x.pdparams", "weights", "Give a file.")
    assert found.value.fix is not None and "with PADDLE_PDX_CACHE_HOME" in found.value.fix


def test_standard_output_that_is_full(run_folder, small_faces, tmp_path):
    pytest.importorskip("paddle")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *words("predict", small_faces, tmp_path / "out", run_folder)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    assert done.returncode == 1 and "Global.output" not in done.stderr and "Redirect" in done.stderr.title()
