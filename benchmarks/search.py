"""How fast search is, beside bare faiss in the same run, and beside comparing with every feature in float64.

    python benchmarks/search.py [--rows 1000000] [--checked 10000] [--keep FOLDER]
    python benchmarks/search.py --service

Prints the tables of benchmarks/README.md. Ratios are taken pair by pair; medians are quoted. The first form needs
12 GiB of memory and 3 GB of disk for a million features; --keep leaves the gallery for the next run.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import faiss
import numpy as np

from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import NewItem
from paddlex_feat.search.nearest import Nearest

ROOT = Path(__file__).resolve().parent.parent
DIMENSION, CLUSTERS, K = 512, 5000, 10
IDENTITY = ModelIdentity("benchmark", "benchmark", "none", DIMENSION)
PAIRS = 31
CHANGES = 500
MODEL = "EfficientNet_Lite0_rec"
CLIENTS, SECONDS, TURNS = 8, 2, 24


def features(count: int, seed: int) -> np.ndarray:
    """Unit rows around random centres, as features of classes are: float32 [N, D]."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIMENSION), np.float32)
    rng = np.random.default_rng(seed)
    rows = np.empty((count, DIMENSION), np.float32)
    for first in range(0, count, 50_000):
        part = rows[first : first + 50_000]
        part[:] = centres[rng.integers(0, CLUSTERS, len(part))]
        part += 0.7 * rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def seconds(action: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def row(what: str, value: str, asked: str = "") -> None:
    """One line of the table."""
    print(f"| {what} | {value} | {asked} |", flush=True)


def percentile(values: list[float], share: float) -> float:
    """By the nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def build(path: Path, rows: np.ndarray) -> None:
    """A gallery of these features, unless it is there."""
    with Gallery.create(path, IDENTITY) as gallery:
        for first in range(len(gallery), len(rows), 4096):
            part = rows[first : first + 4096]
            gallery.add_items([NewItem(f"{first + i}", r, str((first + i) % CLUSTERS)) for i, r in enumerate(part)])


def compare_with_faiss(rows: np.ndarray, nearest: Nearest) -> None:
    """One query, and 256 at once."""
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(rows)
    queries = features(PAIRS * 8 + 256, 1)
    nearest.search(queries[:1], K)
    single, theirs = [], []
    for query in queries[: PAIRS * 8]:
        single.append(seconds(partial(nearest.search, query[None], K)))
        if len(single) % 8 == 0:
            theirs.append(seconds(partial(flat.search, query[None], K)))
    ratio = statistics.median(single) / statistics.median(theirs)
    row(
        "one query", f"{1000 * statistics.median(single):.0f} ms, IndexFlatIP {1000 * statistics.median(theirs):.0f} ms"
    )
    row("ratio", f"{ratio:.2f}", "at most 0.3")
    row("p99 / p50", f"{percentile(single, 0.99) / statistics.median(single):.2f}", "at most 3")
    many = queries[-256:]
    pairs = [(seconds(lambda: nearest.search(many, K)), seconds(lambda: flat.search(many, K))) for _ in range(5)]
    ours = statistics.median(a for a, _ in pairs)
    row("256 queries at once, a query", f"{1000 * ours / 256:.1f} ms")
    row("ratio to IndexFlatIP", f"{statistics.median(a / b for a, b in pairs):.2f}", "at most 1.1")


def check(rows: np.ndarray, nearest: Nearest, count: int) -> None:
    """The nearest of `count` queries, beside all similarities in float64."""
    queries = features(count, 2)
    wrong = 0
    for first in range(0, count, 250):
        part = queries[first : first + 250]
        best = np.empty((len(part), 0))
        places = np.empty((len(part), 0), np.int64)
        for start in range(0, len(rows), 50_000):
            similar = part.astype(np.float64) @ rows[start : start + 50_000].astype(np.float64).T
            near = np.argpartition(-similar, K, axis=1)[:, : K + 5]
            best = np.concatenate([best, np.take_along_axis(similar, near, axis=1)], axis=1)
            places = np.concatenate([places, near + start], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :K]
        expected = np.take_along_axis(places, order, axis=1) + 1
        together = nearest.search(part[::2], K)[0]  # by a matrix product, the others by 8-bit scans
        alone = np.stack([nearest.search(query[None], K)[0][0] for query in part[1::2]])
        wrong += int((together != expected[::2]).any(axis=1).sum()) + int((alone != expected[1::2]).any(axis=1).sum())
    row(f"queries of {count:,} whose {K} nearest are not those in float64", str(wrong), "0")


def change(path: Path) -> None:
    """Adding and removing one feature, durable; and how soon another process sees it."""
    rows = features(CHANGES, 3)
    with Gallery(path) as gallery, Gallery(path) as other:
        other.answers(rows[:1], 1, None)
        adding, removing, seen = [], [], []
        for number, vector in enumerate(rows):
            adding.append(seconds(partial(gallery.add_items, [NewItem(f"new {number}", vector)])))
            seen.append(seconds(partial(other.answers, vector[None], 1, None)))
        for number in range(CHANGES):
            removing.append(seconds(partial(gallery.remove, [f"new {number}"])))
    row("adding one, durable, p50 and p99", _two(adding), "p99 at most 20 ms")
    row("removing one, durable, p50 and p99", _two(removing), "p99 at most 20 ms")
    row(
        "the first question of another connection after a change, p99", f"{1000 * percentile(seen, 0.99):.0f} ms", "1 s"
    )


def _two(values: list[float]) -> str:
    return f"{1000 * statistics.median(values):.1f} and {1000 * percentile(values, 0.99):.1f} ms"


_OPEN = """
import sys, time
import numpy as np
from paddlex_feat.search.gallery import Gallery

def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

before = memory("VmRSS")
started = time.perf_counter()
gallery = Gallery(sys.argv[1])
query = np.zeros((1, 512), np.float32)
query[0, 0] = 1
gallery.answers(query, 1, None)
print(time.perf_counter() - started, memory("VmHWM") - before)
"""


def opening(path: Path, count: int) -> None:
    """From nothing to the first answer, in processes of their own."""
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _OPEN, path], capture_output=True, text=True, check=True)
        runs.append(tuple(map(float, done.stdout.split())))
    needed = count * DIMENSION * 5 / 1024  # float32 and 8 bits, KiB
    taken, peak = (statistics.median(column) for column in zip(*runs, strict=True))
    row("opening, to the first answer", f"{taken:.1f} s", "at most 6 s")
    row(
        "memory, beside what float32 and 8 bits need",
        f"{peak / 1024:.0f} MiB, {peak / needed:.2f} times",
        "at most 1.3",
    )


def measure_search(count: int, checked: int, folder: Path) -> None:
    """The table of search."""
    print(f"{cpu_count()} cores, {count:,} x {DIMENSION}\n\n| what | measured | asked |\n|---|---|---|", flush=True)
    rows, path = features(count, 4), folder / f"{count}.gallery"
    build(path, rows)
    opening(path, count)
    change(path)
    nearest = Nearest(DIMENSION)
    nearest.add(np.arange(1, count + 1), rows)
    compare_with_faiss(rows, nearest)
    if checked:
        check(rows, nearest, checked)


def measure_service(folder: Path) -> None:
    """The table of the service: small pictures, CLIENTS clients at once."""
    from paddlex_feat import create_model

    print(f"{cpu_count()} cores, {MODEL}, {CLIENTS} clients\n\n| what | measured | asked |\n|---|---|---|", flush=True)
    rng = np.random.default_rng(0)
    small = [cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (112, 112)) for _ in range(64)]
    bodies = [base64.b64encode(cv2.imencode(".jpg", image)[1].tobytes()).decode() for image in small]
    model = create_model(MODEL)
    batch = np.stack([model.reduce(image) for image in (small * 2)[:8]])
    model.features_of(batch)
    identity = model.identity
    large = folder / "large.gallery"
    with Gallery.create(large, identity) as gallery:
        generator = np.random.default_rng(1)
        for first in range(0, 684_000_000 // (4 * identity.dimension), 4096):
            part = generator.standard_normal((4096, identity.dimension), np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
            gallery.add_items([NewItem(f"{first + i}", r) for i, r in enumerate(part)])
    with serving(folder / "empty", folder / "empty.gallery") as port:
        service_rate(port, bodies)
        turns = np.array([(engine_rate(model.features_of, batch), service_rate(port, bodies)) for _ in range(TURNS)])
    rate, served = np.median(turns, axis=0)
    row("the engine alone, and the service with embedding", f"{rate:.0f} and {served:.0f} images/s")
    row(f"ratio, median of {TURNS} pairs", f"{np.median(turns[:, 1] / turns[:, 0]):.2f}", "at least 0.85")
    compare_galleries(folder, large, part, bodies)


def compare_galleries(folder: Path, large: Path, queries: np.ndarray, bodies: list[str]) -> None:
    """One client's requests to an empty gallery and to one of 684 MB in turn, beside the scan of the latter."""
    with (
        serving(folder / "empty", folder / "empty.gallery") as empty,
        serving(folder / "large", large) as filled,
        Gallery(large) as gallery,
    ):

        def once(n: int) -> tuple[float, float, float]:
            """Seconds of the three; threads of the one that has just been at work turn for a while, so each waits."""
            times = []
            for work in (
                partial(ask, empty, bodies[n % 64]),
                partial(ask, filled, bodies[n % 64]),
                partial(gallery.answers, queries[n : n + 1], K, None),
            ):
                time.sleep(0.3)
                times.append(seconds(work))
            return times[0], times[1], times[2]

        turns = np.array([once(n) for n in range(60)])[10:]  # the first ones read the gallery
    alone, there, scan = 1000 * np.median(turns, axis=0)
    row("one request, empty gallery", f"{alone:.1f} ms")
    row("one request, gallery of 684 MB; the scan alone", f"{there:.1f} ms; {scan:.1f} ms")
    ratio = np.median(turns[:, 1] / (turns[:, 0] + turns[:, 2]))
    row("ratio to an empty one and the scan", f"{ratio:.2f}", "at most 1.2")


def engine_rate(embed: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> float:
    """Images a second of the engine itself."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        embed(batch)
        count += len(batch)
    return count / (time.perf_counter() - started)


def ask(port: int, image: str, connection: http.client.HTTPConnection | None = None) -> float:
    """Seconds of one request."""
    own = connection or http.client.HTTPConnection("127.0.0.1", port)
    started = time.perf_counter()
    body = json.dumps({"image": image, "topk": K, "threshold": None})
    own.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
    answer = own.getresponse()
    content = answer.read()
    taken = time.perf_counter() - started
    if answer.status != 200:
        raise RuntimeError(content[:500])
    if connection is None:
        own.close()
    return taken


def service_rate(port: int, bodies: list[str]) -> float:
    """Requests a second of all clients together, which are threads of this process."""
    counts = [0] * CLIENTS
    stop = time.perf_counter() + SECONDS

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < stop:
            ask(port, bodies[(counts[number] + number * 7) % len(bodies)], connection)
            counts[number] += 1
        connection.close()

    started = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


@contextmanager
def serving(output: Path, gallery: Path) -> Iterator[int]:
    """A service; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    settings = ("Global.mode=serve", f"Global.output={output}", "Predict.model_dir=null", f"Index.path={gallery}",
                f"Serve.port={port}")  # fmt: skip
    words = [word for setting in settings for word in ("-o", setting)]
    process = subprocess.Popen([sys.executable, ROOT / "main.py", "-c", MODEL, *words], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--checked", type=int, default=0, help="queries that are compared with float64")
    parser.add_argument("--keep", type=Path, help="folder of the galleries, kept for the next run")
    parser.add_argument("--service", action="store_true", help="measure the service instead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if given.service:
            measure_service(folder)
        else:
            measure_search(given.rows, given.checked, folder)


if __name__ == "__main__":
    main()
