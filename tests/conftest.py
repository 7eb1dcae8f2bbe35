"""The tiers, and what tests of several tiers share: the ORL faces as a data set, and a short training run on them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from support.runs import small_set, train

HERE = Path(__file__).resolve().parent
TIERS = ("unit", "integration", "parity", "robustness", "perf")

# Paddle reads these when it is first imported. Workers of pytest-xdist share the processors: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("GLOG_minloglevel", "2")


def pytest_configure(config: pytest.Config) -> None:
    """Each folder of tests is a tier, and a marker."""
    for tier in TIERS:
        config.addinivalue_line("markers", f"{tier}: what is in tests/{tier} (docs/testing.md)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier."""
    for item in items:
        item.add_marker(item.path.relative_to(HERE).parts[0])


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
def environment_of_processes() -> None:
    """What the processes that tests start inherit. Signals are ignored under nohup and behind `&`."""
    os.environ["FLAGS_use_mkldnn"] = "1"
    for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """make_once(name, make): a folder that `make` filled, once for all workers of pytest-xdist. Tests only read it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = root / name, root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not made.exists():
                folder.mkdir(exist_ok=True)  # it is there already where the worker that was at it has failed
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def faces(make_once) -> Path:
    """The 400 ORL photographs with train.txt, gallery.txt and query.txt."""
    import prepare_orl

    return make_once("data", lambda folder: prepare_orl.main(folder / "ORL_faces")) / "ORL_faces"


@pytest.fixture(scope="session")
def small_faces(faces, make_once) -> Path:
    """The data set of `small_set`, for quick runs."""
    make_once("small_set", lambda _: small_set(faces))
    return faces.parent / "small"


@pytest.fixture(scope="session")
def run_folder(small_faces, make_once) -> Path:
    """The output of a finished run of three epochs."""

    def make(folder: Path) -> None:
        done = train(small_faces, folder / "output")
        assert done.returncode == 0, done.stderr

    return make_once("run", make) / "output"


@pytest.fixture(scope="session")
def files(faces) -> list[str]:
    """Five photographs each of three people."""
    return [str(faces / f"images/s{p:02d}/{i:02d}.pgm") for p in (21, 22, 23) for i in range(1, 6)]


@pytest.fixture(scope="module")
def model(run_folder):
    """A predictor with the best weights of `run_folder`."""
    from paddlex_feat import create_model

    return create_model("PP-ShiTuV2_rec", run_folder / "best_model/inference", device="cpu", batch_size=4)
