"""How fast training is on a CPU, beside the straightforward benchmarks/plain_training.py, and beside PyTorch.

    python benchmarks/training.py [steps] [peer] [run] [checkpoint]

Prints the tables of benchmarks/README.md. Every figure is of whole processes; ratios are taken pair by
pair in one run, and medians are quoted. `peer` runs benchmarks/torch_training.py in an environment of its own, which it
makes, unless TORCH_PYTHON names the Python of one that has torch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PLAIN, PEER = (str(ROOT / "benchmarks" / name) for name in ("plain_training.py", "torch_training.py"))
KEPT_BYTES = 2**34
PAIRS = 3
STEPS = ((64, 64, 4, "6"), (224, 32, 3, "2.3"))  # size, batch, steps of a process, ratio asked for
PEER_PAIRS, TORCH = 5, ("torch==2.13.*", "numpy<3")
PEERS = (  # model, size, batch, steps of a process
    ("PP-ShiTuV2_rec", 64, 64, 8),
    ("PP-ShiTuV2_rec", 224, 32, 4),
    ("EfficientNet_Lite0_rec", 128, 64, 5),
    ("PP-ShiTuV2_rec_CLIP_vit_base", 224, 8, 4),
)
CLASSES, IMAGES, SIDE = 50, 1000, 160
EPOCHS, EVAL_INTERVAL = 5, 5  # a quarter of 20 epochs with an evaluation every 5
CHECKPOINTS = 12


def environment(**changes: str) -> dict[str, str]:
    """Without what would change Paddle's defaults."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "FLAGS_", "PADDLE_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2", **changes}


def seconds_of_steps(command: list[str]) -> float:
    """Median seconds of a process's steps, its first left out."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return statistics.median([float(line) for line in done.stdout.split()][1:])


def own_steps(name: str, size: int, batch_size: int, count: int) -> None:
    """Print the seconds of each of our steps on random pixels."""
    from paddlex_feat.runtime.malloc import keep_all_freed_memory
    from paddlex_feat.runtime.paddle_import import prepare_paddle

    with keep_all_freed_memory(KEPT_BYTES):
        prepare_paddle(training=True, onednn_training=True, fast_products=True)
        _own_steps(name, size, batch_size, count)


def _own_steps(name: str, size: int, batch_size: int, count: int) -> None:
    import paddle

    from paddlex_feat.config.load import load
    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.losses.combined import recipe_loss
    from paddlex_feat.models import cpu_conv, recognizer
    from paddlex_feat.modes.parts import network_spec
    from paddlex_feat.runtime.cpu import cpu_count
    from paddlex_feat.training.step import Step, TrainingNetwork

    paddle.seed(0)
    config, _ = load(name, [("Train.input_size", size), ("Model.head", "linear")])
    model = recognizer.build(network_spec(config), CLASSES)
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, model.parameters(), weight_decay=1e-5)
    cpu_conv.accelerate(model, channels_last=True, threads=cpu_count())
    criterion = recipe_loss()
    step = Step(TrainingNetwork(model, Preprocess(size)), criterion, optimizer)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    labels = np.arange(batch_size) // 4 % CLASSES
    model.train()
    for _ in range(count):
        started = time.perf_counter()
        float(step([(images, labels)])["loss"])
        print(time.perf_counter() - started, flush=True)


def measure_steps() -> None:
    """Table of one step against Paddle's dynamic graph with its default settings."""
    print(f"\n{PAIRS} pairs of processes\n")
    print("| step | plain | ours | ratio, median of pairs | asked |\n|---|---|---|---|---|")
    for size, batch_size, count, asked in STEPS:
        pairs = []
        for _ in range(PAIRS):
            plain = seconds_of_steps([sys.executable, PLAIN, "steps", str(size), str(batch_size), str(count)])
            words = ["own_steps", "PP-ShiTuV2_rec", str(size), str(batch_size), str(3 * count)]
            pairs.append((plain, seconds_of_steps([sys.executable, __file__, *words])))
        plain, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        ratio = statistics.median(a / b for a, b in pairs)
        row = f"{size} px, batch {batch_size} | {plain:.2f} s | {ours:.3f} s | {ratio:.1f} | at least {asked}"
        print(f"| {row} |", flush=True)


def torch_python(folder: Path) -> str:
    """The Python of an environment with PyTorch."""
    if "TORCH_PYTHON" in os.environ:
        return os.environ["TORCH_PYTHON"]
    venv.create(folder / "torch", with_pip=True)
    python = str(folder / "torch" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *TORCH], check=True)
    return python


def measure_peers() -> None:
    """Table of one step against PyTorch's, eager and with channels last."""
    print(f"\n{PEER_PAIRS} pairs of processes\n")
    print("| step | PyTorch | ours | images/s, ours / PyTorch's, median of pairs | asked |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        python = torch_python(Path(temporary))
        for name, size, batch_size, count in PEERS:
            words, pairs = [name, str(size), str(batch_size), str(count)], list[tuple[float, float]]()
            for _ in range(PEER_PAIRS):
                peer = seconds_of_steps([python, PEER, *words])
                pairs.append((peer, seconds_of_steps([sys.executable, __file__, "own_steps", *words])))
            peer, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            ratio = statistics.median(a / b for a, b in pairs)
            what = f"{name}, {size} px, batch {batch_size}"
            print(f"| {what} | {peer:.3f} s | {ours:.3f} s | {ratio:.2f} | at least 0.9 |", flush=True)


def make_data(folder: Path) -> None:
    """1000 training images of 160 x 160 in 50 classes, and 100 each for gallery and query."""
    rng = np.random.default_rng(0)
    for name, count in (("train", IMAGES), ("gallery", 100), ("query", 100)):
        (folder / name).mkdir()
        lines = []
        for i in range(count):
            label = i % CLASSES
            own = np.random.default_rng((1, label)).integers(0, 256, (6, 6, 3))
            coarse = np.clip(own + rng.normal(0, 40, (6, 6, 3)), 0, 255).astype(np.uint8)
            image = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.int16)
            image += rng.normal(0, 4, (SIDE, SIDE, 1)).astype(np.int16)
            path = f"{name}/{i:04d}.jpg"
            cv2.imwrite(str(folder / path), np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
            lines.append(f"{path} {label}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def our_run(data: Path, output: Path, epochs: int, **options: str) -> float:
    """Seconds of `main.py` from start to end."""
    settings = {
        "Global.mode": "train",
        "Global.dataset_dir": str(data),
        "Global.output": str(output),
        "Global.device": "cpu",
        "Train.pretrain_weight_path": "null",
        "Train.input_size": "64",
        "Train.batch_size": "64",
        "Train.epochs_iters": str(epochs),
        "Train.eval_interval": str(EVAL_INTERVAL),
        **{key.replace("__", "."): value for key, value in options.items()},
    }
    words = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    command = [sys.executable, str(ROOT / "main.py"), "-c", "PP-ShiTuV2_rec", *words]
    started = time.perf_counter()
    subprocess.run(command, env=environment(), capture_output=True, check=True)
    return time.perf_counter() - started


def measure_run() -> None:
    """Table of whole trainings: start, epochs, evaluation, checkpoints."""
    pairs = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder)
        for number in range(PAIRS):
            outputs = [folder / f"{who}{number}" for who in ("plain", "ours")]
            outputs[0].mkdir()
            words = [str(folder), str(outputs[0]), "64", "64", str(EPOCHS), str(EVAL_INTERVAL)]
            started = time.perf_counter()
            subprocess.run([sys.executable, PLAIN, "run", *words], env=environment(), capture_output=True, check=True)
            plain = time.perf_counter() - started
            pairs.append((plain, our_run(folder, outputs[1], EPOCHS)))
            print(f"pair {number + 1}: plain {plain:.0f} s, ours {pairs[-1][1]:.1f} s", file=sys.stderr, flush=True)
        whole = our_run(folder, folder / "whole", 20)
    print(
        f"\n{EPOCHS} epochs of {IMAGES} images of {SIDE} x {SIDE} at 64 px, batch 64, one evaluation; {PAIRS} pairs\n"
    )
    print("| what | plain | ours | ratio, median of pairs | asked |\n|---|---|---|---|---|")
    rates = [statistics.median(EPOCHS * IMAGES / p[i] for p in pairs) for i in (0, 1)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"| images/s, start to end | {rates[0]:.1f} | {rates[1]:.1f} | {ratio:.1f} | at least 5 |")
    print(f"| ours, 20 epochs with 4 evaluations | | {20 * IMAGES / whole:.1f} | | |", flush=True)


def measure_checkpoint() -> None:
    """Share of an epoch that its checkpoint takes, within one run that evaluates every 5 epochs."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder)
        our_run(folder, folder / "out", CHECKPOINTS, Train__eval_interval=str(CHECKPOINTS))
        rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    saves = [row for row in rows if row["kind"] == "save"]
    epochs = [row["epoch_seconds"] for row in saves]
    shares = [row["seconds"] / row["epoch_seconds"] for row in saves[1:-1]]
    print("\n| what | measured | asked |\n|---|---|---|")
    print(f"| epoch of {IMAGES} images at 64 px | {statistics.median(epochs):.2f} s | |")
    print(f"| its checkpoint (latest, epoch_N, inference model) | {statistics.median(shares):.2%} of it | under 2 % |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["own_steps"]:
        own_steps(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        tables = {"steps": measure_steps, "peer": measure_peers, "run": measure_run, "checkpoint": measure_checkpoint}
        for name in sys.argv[1:] or tables:
            tables[name]()
