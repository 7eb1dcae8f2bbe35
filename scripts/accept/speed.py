"""Item 11: throughput of training and evaluation, and what keeps the device waiting."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from accept.bench import Bench, Failed, Line, records
from accept.networks import Training, batch, build
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes.train_data import MIN_PROCESSORS
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.paddle_import import prepare_paddle

RATE = "rate.json"  # images/s with ready tensors, for the loader's bound
COPIES = 10  # of each JPEG, under names of their own: 16 steps an epoch


def _sizes(bench: Bench) -> tuple[int, int, int]:
    """Pixels, images a batch, steps."""
    return (224, 128, 30) if bench.gpu else (32, 16, 3)


def _training(bench: Bench) -> tuple[Training, tuple[np.ndarray, np.ndarray]]:
    pixels, images, _ = _sizes(bench)
    return build(NetworkSpec(input_size=pixels), bench.device), batch(pixels, images)


def _images_per_second(bench: Bench, step: Callable[[], Any]) -> float:
    """Of `step`, which takes one batch; the last value is fetched, so the device has finished."""
    _, images, steps = _sizes(bench)
    for _ in range(1 + steps // 3):
        last = step()
    float(last)
    started = time.perf_counter()
    for _ in range(steps):
        last = step()
    float(last)
    return images * steps / (time.perf_counter() - started)


def steps(bench: Bench) -> Iterator[Line]:
    """Steps on tensors that are on the device already, and on arrays."""
    import paddle

    training, (images, labels) = _training(bench)
    pixels, targets = paddle.to_tensor(images), paddle.to_tensor(labels)

    def ready() -> Any:
        loss = training.criterion(*training.network(pixels, targets), targets)["loss"]
        loss.backward()
        training.optimizer.step()
        training.optimizer.clear_grad()
        return loss

    tensors = _images_per_second(bench, ready)
    (bench.folder / RATE).write_text(json.dumps(tensors))
    yield bench.line(f"training on ready tensors, {_sizes(bench)[0]} px", f"{tensors:.0f} images/s")
    step = training.step()
    arrays = _images_per_second(bench, lambda: step([(images, labels)])["loss"])
    bound, ok = (">= 90 % of that", arrays >= 0.9 * tensors) if bench.gpu else ("", True)
    yield bench.line("training on ready arrays", f"{arrays:.0f} images/s, {arrays / tensors:.0%}", bound, ok)


def profile(bench: Bench) -> Iterator[Line]:
    """Operators, launches and synchronisations of a step, by Paddle's profiler."""
    import paddle

    training, arrays = _training(bench)
    step, count = training.step(), 5
    for _ in range(3):
        last = step([arrays])
    float(last["loss"])
    targets = [paddle.profiler.ProfilerTarget.CPU, *[paddle.profiler.ProfilerTarget.GPU] * bench.gpu]
    trace = bench.folder / "trace.json"
    profiler = paddle.profiler.Profiler(targets=targets, on_trace_ready=lambda p: p.export(str(trace), "json"))
    with profiler:
        for _ in range(count):
            last = step([arrays])
    float(last["loss"])
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    names = [event.get("name", "").partition("[")[0] for event in events]  # the duration follows in brackets
    operators = sum(event.get("cat") == "Operator" for event in events) / count
    if not operators:
        raise Failed("the trace names no operators")
    yield bench.line("operators of a step", f"{operators:.0f}")
    if not bench.gpu:
        yield bench.not_run("launches and synchronisations of a step", "needs a GPU")
        return
    launches = sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in names) / count
    # CUPTI's names may end in the version of the call, as in cudaMemcpy_v3020.
    waits = sum("Synchronize" in name or bool(re.fullmatch(r"cudaMemcpy(_v\d+)?", name)) for name in names) / count
    yield bench.line("launches of a step", f"{launches:.0f}")
    # The profiler waits for the device when it starts and when it ends.
    yield bench.line("waits for the device in a step", f"{waits:.1f}", "< 1", waits < 1)


def _jpegs(bench: Bench) -> Path:
    """The photographs as JPEGs of a usual size, some under several names, in lists of their own."""
    import cv2

    folder = bench.folder / "jpegs"
    if (folder / "train.txt").is_file():
        return folder
    copies = COPIES if bench.gpu else 1
    for name in ("gallery", "query", "train"):
        lines = (bench.data / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        written = []
        for line in lines if name == "train" else lines[:20]:
            path, _, label = line.rpartition(" ")
            target = folder / Path(path).with_suffix(".jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            image = cv2.imread(str(bench.data / path))
            assert image is not None, path
            cv2.imwrite(str(target), cv2.resize(image, (640, 480), interpolation=cv2.INTER_CUBIC))
            names = [target] if name != "train" else [target.with_stem(f"{target.stem}_{i}") for i in range(copies)]
            for copy in names:
                if copy != target:
                    copy.write_bytes(target.read_bytes())
                written.append(f"{copy.relative_to(folder)} {label}")
        (folder / f"{name}.txt").write_text("\n".join(written) + "\n", encoding="utf-8")
    return folder


def loader(bench: Bench) -> Iterator[Line]:
    """Mode train on JPEGs that are decoded each time, by threads and by processes."""
    data, (_, images, _) = _jpegs(bench), _sizes(bench)
    threads = (2, 4, 8) if bench.gpu else (2,)
    rates = {}
    for kind, workers in (*(("threads", count) for count in threads), ("processes", 0)):
        title = f"{workers} {kind}" if workers else f"{kind}, one less than processors"
        rates[kind, workers], waited = _rate_from(bench, data, f"loader_{kind}{workers}", kind, workers)
        yield bench.line(f"training from JPEGs, {title}", f"{rates[kind, workers]:.0f} images/s, waited {waited:.0%}")
    own = ("processes", 0) if cpu_count() >= MIN_PROCESSORS else ("threads", 2)  # what auto takes on a GPU
    share = rates[own] / json.loads((bench.folder / RATE).read_text())
    bound, ok = (">= 90 %", share >= 0.9) if bench.gpu else ("", True)
    title = f"training from JPEGs by {own[0]}, to the rate on ready tensors, batches of {images}"
    yield bench.line(title, f"{share:.0%}", bound, ok)


def _rate_from(bench: Bench, data: Path, name: str, kind: str, workers: int) -> tuple[float, float]:
    """Images per second of a training, and the share of the time in which it waited for them.

    Of each epoch the first log interval is left out, which begins without a batch, and the last, which ends without a
    step in the queue.
    """
    pixels, images, _ = _sizes(bench)
    epochs, interval = (4, 4) if bench.gpu else (1, 2)
    output = bench.folder / name
    settings = {
        "Global.dataset_dir": data,
        "Train.input_size": pixels,
        "Train.batch_size": images,
        "Train.samples_per_class": 8,  # of 20 classes no batch of 128 has 32
        "Train.epochs_iters": epochs,
        "Train.eval_interval": epochs,
        "Train.save_interval": epochs,
        "Train.log_interval": interval,
        "Train.cache_mib": 0,
        "Train.loader": kind,
        "Train.num_workers": workers,
    }
    bench.main("train", output, *(f"{key}={value}" for key, value in settings.items()))
    rows = records(output, "train")
    kept = []
    for epoch in range(1, epochs + 1):
        kept += [row for row in rows if row["epoch"] == epoch][1:-1]
    if not kept:
        raise Failed("an epoch has too few steps")
    rate, waited = (float(np.median([row[key] for row in kept])) for key in ("images_per_second", "waited"))
    return rate, waited


def evaluation(bench: Bench) -> Iterator[Line]:
    """The network as an extractor of features."""
    prepare_paddle()
    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.inference.network import NetworkExtractor

    pixels, _, steps = _sizes(bench)
    training = build(NetworkSpec(input_size=pixels), bench.device)
    extract, (images, _) = NetworkExtractor(training.model, Preprocess(pixels)), batch(pixels, 64)
    extract(images)
    started = time.perf_counter()
    for _ in range(steps):
        extract(images)
    rate = 64 * steps / (time.perf_counter() - started)
    yield bench.line(f"features by the network, batches of 64, {pixels} px", f"{rate:.0f} images/s")
