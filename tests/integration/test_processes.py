"""Decoding processes: the same bytes as threads, errors by name, and nothing left of them."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from support.runs import QUICK, ROOT

from paddlex_feat.config.schema import Config
from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.augment.rand_augment import RandAugment
from paddlex_feat.data.images import cache as caches
from paddlex_feat.data.images import decode
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.loader import CorruptImageReplacer, training_batches
from paddlex_feat.data.loading.processes import HELD, DecodingProcesses, ProcessEnded
from paddlex_feat.data.loading.slices import slices
from paddlex_feat.errors import ImageError
from paddlex_feat.modes import train_data
from paddlex_feat.modes import worker as places
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime.distributed import ProcessGroup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
AUGMENT, PREPROCESS, KEY = Augment(rand_augment=RandAugment(num_ops=2)), Preprocess(32), (7, 1, 0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """Thirty JPEG files of several sizes; decoded at several reductions."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    names = []
    for i in range(30):
        image = cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (40 + 12 * i, 50 + 9 * i))
        names.append(str(folder / f"{i}.jpg"))
        cv2.imwrite(names[-1], image)
    return names


BATCHES = [np.random.default_rng(i).integers(0, 30, n) for i, n in enumerate((40, 40, 40, 40, 40, 40, 7))]


@pytest.fixture(scope="module")
def pool():
    """Three processes that keep half of the images."""
    processes = DecodingProcesses(3, 40, AUGMENT, PREPROCESS, ImageCache(500_000))
    processes.wait_until_ready()
    yield processes
    processes.close()


def by_threads(paths: list[str], workers: int = 2, first: int = 0, bad: CorruptImageReplacer | None = None, key=KEY):
    return list(training_batches(BATCHES, paths, PREPROCESS, AUGMENT, key, workers, first, bad))


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(i, j) and np.array_equal(x, y) for (i, x), (j, y) in zip(one, other, strict=True)
    )


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition, seconds: float = 20) -> None:
    latest = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.02)


def test_processes_and_any_number_of_threads_give_the_same_bytes(paths, pool):
    expected = by_threads(paths, 1)
    assert same(expected, by_threads(paths, 5))
    for _ in range(2):  # the second time from the cache
        assert same(expected, list(pool.batches(BATCHES, paths, KEY)))
    assert 0 < pool._samples.cache.bytes <= 500_000
    assert same(expected[4:], list(pool.batches(BATCHES, paths, KEY, 4)))
    assert not same(expected, list(pool.batches(BATCHES, paths, (7, 2, 0))))
    one = DecodingProcesses(1, 40, AUGMENT, PREPROCESS, ImageCache(0))
    one.wait_until_ready()
    assert same(expected, list(one.batches(BATCHES, paths, KEY)))
    one.close()


def test_an_epoch_that_is_broken_off_leaves_nothing_to_the_next(paths, pool):
    expected = by_threads(paths)
    for taken in (0, 1, 2):
        stream = pool.batches(BATCHES, paths, (1, 1, 1))
        for _ in range(taken):
            next(stream)
        stream.close()
        assert same(expected, list(pool.batches(BATCHES, paths, KEY)))


def test_a_batch_stays_as_it_is_while_any_view_of_it_lives(paths, pool):
    expected = by_threads(paths)
    rows = [images[3:5][:, ::2] for _, images in pool.batches(BATCHES, paths, KEY)]
    assert all(np.array_equal(row, images[3:5][:, ::2]) for row, (_, images) in zip(rows, expected, strict=True))
    assert sum(view() is not None for view in pool._views) == HELD
    del rows
    assert not any(view() is not None for view in pool._views)


def test_an_undecodable_image_is_named_or_replaced_as_threads_do(paths, pool, tmp_path, caplog):
    broken = list(paths)
    for i in (4, 11):
        broken[i] = str(tmp_path / f"broken_{i}.jpg")
        Path(broken[i]).write_bytes(b"no image")
    for stream in (
        pool.batches(BATCHES, broken, KEY),
        training_batches(BATCHES, broken, PREPROCESS, AUGMENT, KEY, 2),
    ):
        with pytest.raises(ImageError) as caught:
            list(stream)
        first = next(i for i in np.concatenate(BATCHES) if i in (4, 11))
        assert caught.value.where == broken[first] and "cannot be decoded" in caught.value.what and caught.value.fix
    labels = np.arange(30) // 10
    ours, theirs = CorruptImageReplacer(labels), CorruptImageReplacer(labels)
    expected = by_threads(broken, bad=theirs)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = list(pool.batches(BATCHES, broken, KEY, bad=ours))
    assert same(expected, found) and not {4, 11} & set(np.concatenate([i for i, _ in found]).tolist())
    assert ours.files == theirs.files == {broken[4], broken[11]} and len(caplog.records) == 2


def test_a_repair_of_the_decoder_is_logged_once_by_the_process_that_trains(paths, pool, tmp_path, caplog):
    data = bytearray(Path(paths[29]).read_bytes())
    data[-400:-300] = b"\xff\xd3" * 50
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        list(pool.batches([np.zeros(40, int)] * 3, [str(damaged)], KEY))
    assert [str(damaged) in r.getMessage() for r in caplog.records] == [True]


def test_a_fault_of_our_own_passes_with_its_type(paths, pool):
    with pytest.raises(OverflowError):
        list(pool.batches(BATCHES, paths, (-1, 0, 0)))
    assert same(by_threads(paths), list(pool.batches(BATCHES, paths, KEY)))


@pytest.mark.parametrize(("count", "killed"), [(1, 1), (2, 1), (2, 2)])
def test_the_end_of_a_process_is_noticed_at_once(paths, count, killed):
    processes = DecodingProcesses(count, 40, AUGMENT, PREPROCESS, ImageCache(0))
    processes.wait_until_ready()
    stream = processes.batches(BATCHES * 50, paths, KEY)
    next(stream)
    for child in processes._children[:killed]:
        child.kill()
        child.wait()
    with pytest.raises(ProcessEnded, match="signal 9"):
        next(stream)
    children = [child.pid for child in processes._children]
    processes.close()
    assert all(map(gone, children))


@pytest.mark.parametrize("killed", [1, 2])
def test_threads_go_on_where_a_process_has_ended(paths, caplog, killed):
    train_section = TrainSection(loader="processes", num_workers=2, input_size=32, batch_size=40, seed=7)
    with train_data.Loader(Config(Train=train_section), data_of(paths), place()) as loader:
        stream = loader(1, 0)
        found = [next(stream)]
        for child in loader._processes._children[:killed]:
            child.kill()
            child.wait()
        found += stream
    assert [r.getMessage() for r in caplog.records if "threads decode instead" in r.getMessage()]
    expected = training_batches(BATCHES, paths, loader._preprocess, loader._augment, KEY, 2)
    assert same(list(expected), found)


def test_threads_decode_where_memory_is_short(monkeypatch, caplog):
    monkeypatch.setattr(train_data, "memory_limit", lambda: 512 * 2**20)
    settings = TrainSection(loader="processes", num_workers=6, input_size=224, batch_size=128)
    assert train_data._processes(settings, place()) == 0 and "512 MiB" in caplog.text


PARENT = """
import sys, numpy as np
from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.processes import DecodingProcesses
paths = sys.argv[1:]
pool = DecodingProcesses(2, 40, Augment(), Preprocess(32), ImageCache(10**6))
stream = pool.batches([np.arange(40) % len(paths)] * 10**6, paths, (1, 2, 3))
pool.wait_until_ready()
next(stream)
print(*(child.pid for child in pool._children), flush=True)
for _ in stream:
    pass
"""


def test_a_killed_parent_leaves_no_process_and_no_shared_memory(paths):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *paths],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2 and not any(map(gone, children))
    modules = Path(f"/proc/{children[0]}/maps").read_text()
    assert "cv2" in modules and "paddle/" not in modules
    assert "memfd:paddlex_feat" in modules and "/dev/shm" not in modules  # so the kernel frees it with the last process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent's to take
        os.kill(children[0], number)
    time.sleep(0.2)
    assert not gone(children[0])
    parent.kill()
    parent.wait()
    wait_for(lambda: all(map(gone, children)))


def data_of(paths: list[str]) -> SimpleNamespace:
    return SimpleNamespace(
        lists={"train": SimpleNamespace(files=lambda: paths)},
        sampler=SimpleNamespace(epoch=lambda number: iter(BATCHES)),
        bad=None,
    )


def place(device: str = "cpu", local_size: int = 1) -> Worker:
    return Worker(device, 0, 2, ProcessGroup(rank=0, size=local_size, local_rank=0, local_size=local_size))


@pytest.mark.parametrize(
    ("loader", "device", "processors", "local_size", "workers", "count"),
    [
        ("auto", "cpu", 64, 1, 0, 0),
        ("auto", "gpu:0", 2, 1, 0, 0),
        ("auto", "gpu:0", 3, 1, 0, 2),
        ("auto", "gpu:0", 8, 1, 0, 7),
        ("auto", "gpu:0", 64, 1, 0, 16),
        ("auto", "gpu:0", 64, 8, 0, 7),
        ("auto", "gpu:0", 16, 8, 0, 0),
        ("auto", "gpu:0", 64, 1, 5, 5),
        ("threads", "gpu:0", 64, 1, 0, 0),
        ("processes", "cpu", 2, 1, 0, 1),
        ("processes", "cpu", 2, 1, 3, 3),
    ],
)
def test_who_decodes(monkeypatch, loader, device, processors, local_size, workers, count):
    monkeypatch.setattr(places, "cpu_count", lambda: processors)
    settings = TrainSection(loader=loader, num_workers=workers)
    assert train_data._processes(settings, place(device, local_size)) == count


def test_at_most_eight_threads_decode_unless_more_are_asked_for(monkeypatch):
    pytest.importorskip("paddle")
    monkeypatch.setattr(places, "cpu_count", lambda: 64)
    config = SimpleNamespace(Global=SimpleNamespace(device="cpu", threads=1))
    assert places.init_worker(config, ProcessGroup()).decoding_threads == 8
    assert places.init_worker(config, ProcessGroup(), 20).decoding_threads == 20


def open_files() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def no_memory(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fault", ["memory", "program", "start"])
def test_threads_take_over_where_processes_cannot_be_used(paths, monkeypatch, caplog, fault):
    if fault == "memory":
        monkeypatch.setattr(os, "posix_fallocate", no_memory)
    else:
        monkeypatch.setattr(sys, "executable", "/bin/false" if fault == "start" else "/no/such/python")
    train_section = TrainSection(loader="processes", num_workers=2, input_size=32, batch_size=40, seed=7)
    decode.read_bgr(paths[0])  # opens what stays open
    before = open_files()
    with (
        caplog.at_level(logging.WARNING),
        train_data.Loader(Config(Train=train_section), data_of(paths), place()) as loader,
    ):
        found = list(loader(1, 0))
    assert [r.getMessage().startswith("Decoding processes cannot be used") for r in caplog.records] == [True]
    augment = loader._augment
    assert same(list(training_batches(BATCHES, paths, loader._preprocess, augment, KEY, 2)), found)
    del loader
    assert open_files() == before


def test_a_header_is_checked_once_and_again_when_the_file_has_changed(paths, tmp_path, monkeypatch):
    checked, check = [], caches.require_admissible
    monkeypatch.setattr(caches, "require_admissible", lambda data, name: checked.append(name) or check(data, name))
    file = tmp_path / "a.jpg"
    file.write_bytes(Path(paths[3]).read_bytes())
    cache = ImageCache(0)
    for _ in range(3):
        assert np.array_equal(cache.read_bgr(file), decode.read_bgr(paths[3]))
    assert len(checked) == 1
    file.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(ImageError):
            cache.read_bgr(file)
    assert len(checked) == 3  # a refusal is not remembered
    file.write_bytes(Path(paths[4]).read_bytes())
    assert np.array_equal(cache.read_bgr(file), decode.read_bgr(paths[4])) and len(checked) == 4


def test_the_processes_of_a_machine_share_one_cache(paths, monkeypatch):
    """Rank 1 reads what rank 0 has decoded, though the file is gone, and takes its part alone where it cannot."""
    limit = 10**6
    first = ImageCache(limit)
    expected = first.read_bgr(paths[2])
    gather = SimpleNamespace(
        rank=1, local_rank=1, local_size=2, all_gather_rows=lambda own: [np.array([first.address()]), own]
    )
    other = train_data._cache(limit, gather)
    monkeypatch.setattr(caches, "read_identified", None)
    assert np.array_equal(other.read_bgr(paths[2]), expected) and other.bytes == first.bytes > 0
    process, fd, mark = first.address()
    for wrong in ((process, fd, mark + 1), (process, 0, mark), (2**22 + 5, fd, mark), (0, 0, 0)):
        gather.all_gather_rows = lambda own, wrong=wrong: [np.array([wrong]), own]
        assert train_data._cache(limit, gather).limit == limit // 2


def test_a_cache_that_cannot_be_mapped_is_a_warning(paths, caplog):
    with caplog.at_level(logging.WARNING):
        cache = ImageCache(2**62)
    assert cache.limit == 0 and "not cached" in caplog.text
    assert cache.read_bgr(paths[0]).size and cache.bytes == 0


@pytest.mark.parametrize(("images", "workers"), [(1, 8), (7, 2), (32, 2), (128, 8), (129, 3), (16, 64)])
def test_slices_cover_a_batch_and_leave_nobody_idle(images, workers):
    rows = list(slices(images, workers))
    assert rows[0].start == 0 and rows[-1].stop == images and all(a.stop == b.start for a, b in pairwise(rows))
    assert max(r.stop - r.start for r in rows) <= 16 and 2 * len(rows) >= min(workers, images)


@pytest.mark.slow
def test_ctrl_c_ends_the_processes_and_the_resumed_run_is_that_of_threads(small_faces, run_folder, tmp_path):
    """SIGINT to the whole process group, as a terminal sends it."""
    settings = (
        "Global.mode=train",
        f"Global.dataset_dir={small_faces}",
        f"Global.output={tmp_path / 'processes'}",
        *QUICK,
        "Train.loader=processes",
        "Train.num_workers=2",
    )
    command = [sys.executable, str(ROOT / "main.py"), "-c", "PP-ShiTuV2_rec", *(w for s in settings for w in ("-o", s))]
    run = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, CI's among them, ignore SIGINT, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in run.stderr:
        if "epoch 1/3" in line or "step" in line:
            break
    children = [
        int(p.name) for p in Path("/proc").glob("[0-9]*") if "decoder_process" in _command(p) and _parent(p) == run.pid
    ]
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and "everything is saved" in errors and len(children) == 2
    assert all(map(gone, children))
    resumed = subprocess.run([*command, "-o", "Train.resume=auto"], cwd=ROOT, check=False)
    assert resumed.returncode == 0
    one, other = (folder / "best_model/best_model.pdparams" for folder in (run_folder, tmp_path / "processes"))
    assert one.read_bytes() == other.read_bytes()


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])
