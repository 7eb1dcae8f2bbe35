"""How much memory is taken, and kept."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from support import hostile
from support.runs import ROOT

from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.evaluation.ranking.ranks import rank_gallery

GIB = 2**20  # KiB, the unit of VmHWM


def test_memory_does_not_grow_with_faulty_lines(tmp_path):
    (tmp_path / "train.txt").write_text("no label\n" * 60_000)
    tracemalloc.start()
    _, found = read_list(tmp_path, "train")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(f.count for f in found) == 60_000 and held < 12 * 2**20


def test_no_weight_file_takes_a_gib_of_memory_or_ten_seconds(tmp_path):
    """One process reads them all, so its peak, Paddle included, bounds each."""
    pytest.importorskip("paddle")
    bombs = hostile.bombs()
    for number, (data, _) in enumerate(bombs.values()):
        (tmp_path / f"{number}.pdparams").write_bytes(data)
    code = """if True:
        import json, pathlib, sys, time
        from paddlex_feat.errors import WeightsError
        from paddlex_feat.models import weights
        for number in range(int(sys.argv[2])):
            began = time.process_time()
            try:
                weights.read(pathlib.Path(sys.argv[1]) / f"{number}.pdparams")
            except WeightsError as error:
                print(json.dumps([str(error), time.process_time() - began]))
        print(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path, str(len(bombs))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *rows, peak = done.stdout.splitlines()
    for (name, (_, pattern)), row in zip(bombs.items(), rows, strict=True):
        told, seconds = json.loads(row)
        assert re.search(pattern, told), (name, told)
        assert seconds < 10, name
        print(f"{seconds:6.2f} s  {name}")
    print(f"peak {int(peak) // 1024} MiB")
    assert int(peak) < GIB


def test_a_metrics_file_without_an_end_takes_no_memory(tmp_path):
    pytest.importorskip("paddle")
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "train", "epoch": 1, "step": 1, "lr": 0.1, "loss": 1.0}) + "\n")
    os.truncate(path, 6 * 2**30)
    code = (
        "import resource, sys, pathlib; from paddlex_feat.training.metrics_file import metrics_until;"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); print(len(metrics_until(pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(("variable", "most", "least"), [("", 100, 0), ("MALLOC_ARENA_MAX", 10**9, 2_000)])
def test_freed_memory_is_used_again_without_fresh_pages_unless_the_user_has_set_malloc(variable, most, least):
    code = """
import resource, threading
import numpy as np
from paddlex_feat.runtime.malloc import keep_freed_memory
keep_freed_memory()
def work():
    for turn in range(10):
        if turn == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [np.ones(33 * 2**20, np.uint8) for _ in range(3)]
        del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
threading.Thread(target=work).start()
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), **({variable: "8"} if variable else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_training_uses_gigabytes_again_without_fresh_pages_and_gives_them_back_at_its_end():
    code = """
import resource
import numpy as np
from paddlex_feat.runtime.malloc import keep_all_freed_memory, keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
def step():
    before = faults()
    blocks = [np.ones(100 * 2**20, np.uint8) for _ in range(10)]
    return faults() - before
with keep_all_freed_memory(4 * 2**30):
    step()
    keep_freed_memory()  # as an engine that evaluates does
    print(step(), resident())
print(resident())
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    fresh, during, after = map(int, done.stdout.split())
    assert fresh < 100 and during > 1000 and after < 200


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_where_addresses_are_limited_none_are_reserved():
    code = """
import resource
import numpy as np
from paddlex_feat.runtime.malloc import keep_all_freed_memory
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
with keep_all_freed_memory(900 * 2**20):
    import mmap
    mmap.mmap(-1, 800 * 2**20)  # as a library that is loaded takes its own
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    subprocess.run([sys.executable, "-c", code], env={**kept, "PYTHONPATH": str(ROOT)}, check=True)


def ranked(kind: str, queries: int, images: int, classes: int, dim: int) -> tuple[np.ndarray, ...]:
    """Features and labels of queries and gallery: of a trained network, or of one that has (all but) collapsed."""
    rng = np.random.default_rng(5)
    ql, gl = rng.integers(0, classes, queries), rng.integers(0, classes, images)
    centres = rng.standard_normal((classes, dim))
    query, gallery = (centres[x] + 1.5 * rng.standard_normal((len(x), dim)) for x in (ql, gl))
    if kind == "close":
        query, gallery = 1 + 1e-7 * query, 1 + 1e-7 * gallery
    elif kind == "collapsed":
        query, gallery = np.ones_like(query), np.ones_like(gallery)
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (query, gallery)]
    return unit[0], ql, unit[1], gl


@pytest.mark.parametrize(
    ("classes", "images", "dim", "threads", "memory", "kind"),
    [(50, 30_000, 128, 2, 2**25, "trained"), (1, 20_000, 256, 4, 2**26, "trained"), (2, 20_000, 256, 2, 2**26, "close"),
     (40, 20_000, 256, 4, 2**26, "collapsed"), (40, 3_000, 2048, 2, 2**26, "trained")],
)  # fmt: skip
def test_the_memory_of_a_ranking_is_bounded(classes, images, dim, threads, memory, kind):
    """What NumPy really takes while one class holds all images, in float64 alone, or with long features."""
    query, ql, gallery, gl = ranked(kind, 300, images, classes, dim)
    tracemalloc.start()
    rank_gallery(query[:3], ql[:3], gallery[:30], gl[:30])  # what is imported and kept once
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    found = rank_gallery(query, ql, gallery, gl, memory_bytes=memory, threads=threads)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert found.first_match.all() and peak < memory


SAVING = """
import sys
from pathlib import Path
import numpy as np
from paddlex_feat.inference import writers
from paddlex_feat.inference.results import FeatureResult, OutputNames

def memory_kib():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

def made(number, path):
    feature = np.random.default_rng(number).normal(size=512).astype(np.float32)
    return FeatureResult(path, feature, f"r{number}", number, None)

form, stems = sys.argv[1], OutputNames()
results = (made(i, f"folder/photograph_{i}.jpg") for i in range(30_000) if stems.next(f"photograph_{i}.jpg"))
writers.save_features((next(results) for _ in range(10_000)), f"a.{form}")
before = memory_kib()
writers.save_features(results, f"b.{form}")
print(memory_kib() - before)
"""


@pytest.mark.parametrize("form", ["jsonl", "npz", "parquet"])
def test_memory_stays_flat_while_results_are_saved(tmp_path, form):
    """20,000 results into each form: beyond paths and stems nothing grows. In a process where nothing else ran."""
    pytest.importorskip("paddle")
    command = [sys.executable, "-c", SAVING, form]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    grown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    print(form, grown)
    assert int(grown) < 20 * 1024  # the features alone are 39 MiB
