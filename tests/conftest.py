"""Shared data: the ORL faces as a data set, and a short training run on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


def run_main(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """`python main.py …` as a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *words],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Loading a model sets OMP_NUM_THREADS, and a run Paddle's flag of oneDNN: later tests must not inherit them."""
    before, flags = os.environ.get("OMP_NUM_THREADS"), onednn_flag()
    result = yield
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before
    if flags:
        sys.modules["paddle"].set_flags(flags)
    return result


def onednn_flag() -> dict[str, bool]:
    """The flag as paddle.set_flags takes it; empty where Paddle is not imported yet."""
    paddle = sys.modules.get("paddle")
    return paddle.get_flags("FLAGS_use_mkldnn") if hasattr(paddle, "get_flags") else {}


@pytest.fixture(scope="session", autouse=True)
def paddle_environment():
    """Paddle reads these when a test first imports it; two threads are what CI has."""
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ["FLAGS_use_mkldnn"] = "1"
    os.environ.setdefault("GLOG_minloglevel", "2")
    for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"):  # ignored under nohup and behind `&`
        if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture
def fake_gpus(monkeypatch):
    """fake_gpus(2): a Paddle that claims to be a GPU build with two visible GPUs. Nothing can be computed there.

    Returns the list of devices that were selected since.
    """

    def pretend(count: int) -> list[str]:
        import paddle

        selected: list[str] = []
        monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
        monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: count)
        monkeypatch.setattr(paddle, "set_device", selected.append)
        monkeypatch.setattr(paddle.device, "set_device", selected.append)
        return selected

    return pretend


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    """The 400 ORL photographs with train.txt, gallery.txt and query.txt."""
    import prepare_orl

    folder = tmp_path_factory.mktemp("data") / "ORL_faces"
    prepare_orl.main(folder)
    return folder


def small_set(faces: Path) -> Path:
    """Eight people to train, 12 gallery and query pictures each of others, beside the folder `faces`."""
    folder = faces.parent / "small"
    folder.mkdir()
    (folder / "images").symlink_to(faces / "images")
    for name, people, first, last in (
        ("train", range(1, 9), 1, 10),
        ("gallery", range(21, 27), 1, 2),
        ("query", range(21, 27), 3, 4),
    ):
        lines = [f"images/s{p:02d}/{i:02d}.pgm {p * 10}" for p in people for i in range(first, last + 1)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def small_faces(faces) -> Path:
    """The data set of `small_set`, for quick runs."""
    return small_set(faces)


QUICK = (
    "Train.pretrain_weight_path=null",
    "Train.input_size=32",
    "Train.batch_size=16",
    "Train.epochs_iters=3",
    "Train.learning_rate=0.01",
    "Train.warmup_steps=1",
    "Train.augment.pad=2",
    "Global.device=cpu",
)


def train(
    data: Path, output: Path, *overrides: str, config: str = "PP-ShiTuV2_rec", **env: str
) -> subprocess.CompletedProcess[str]:
    """A short training run at 32 px; where Paddle is missing, the test that wants it is skipped."""
    pytest.importorskip("paddle")
    settings = ("Global.mode=train", f"Global.dataset_dir={data}", f"Global.output={output}", *QUICK, *overrides)
    return run_main("-c", config, *(word for setting in settings for word in ("-o", setting)), **env)


@pytest.fixture(scope="session")
def run_folder(small_faces, tmp_path_factory) -> Path:
    """The output of a finished run of three epochs."""
    output = tmp_path_factory.mktemp("run") / "output"
    done = train(small_faces, output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def files(faces) -> list[str]:
    """Five photographs each of three people."""
    return [str(faces / f"images/s{p:02d}/{i:02d}.pgm") for p in (21, 22, 23) for i in range(1, 6)]


@pytest.fixture(scope="module")
def model(run_folder):
    """A predictor with the best weights of `run_folder`."""
    from paddlex_feat import create_model

    return create_model("PP-ShiTuV2_rec", run_folder / "best_model/inference", device="cpu", batch_size=4)
