"""What a hundred thousand images and a million lines cost in memory and time.

    python benchmarks/load.py check [--images 100000]
    python benchmarks/load.py predict [--images 100000] [--save jsonl]
    python benchmarks/load.py train [--lines 1000000] [--classes 200000]
    python benchmarks/load.py draw

Each runs `main.py`'s command line in a process of its own and prints rows of docs/reliability.md. Curves are kept below
--folder (default output/load, 3 GB for 100,000 images), from which `draw` makes docs/images/memory.png.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIDE = 224
IN_FOLDER = 1000  # files of a folder
INTERVAL = 1.0  # seconds between two samples of memory
FIRST = 10_000  # images after which memory should have settled
MODEL = "PP-ShiTuV2_rec"


def photographs() -> list[np.ndarray]:
    """The 400 ORL photographs, uint8 [112, 92]."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import prepare_orl

    files = sorted(prepare_orl.photographs().glob("*/*.pgm"))
    return [np.asarray(cv2.imread(str(f), cv2.IMREAD_GRAYSCALE)) for f in files]


def make_images(folder: Path, count: int) -> list[str]:
    """JPEG files below `folder`, each of four photographs drawn anew, so that no two are copies; their paths."""
    rng, faces = np.random.default_rng(0), photographs()
    names = [f"images/{i // IN_FOLDER:04d}/{i:07d}.jpg" for i in range(count)]
    for name, four in zip(names, rng.integers(0, len(faces), (count, 4)), strict=True):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            a, b, c, d = (faces[i] for i in four)
            cv2.imwrite(str(path), np.vstack([np.hstack([a, b]), np.hstack([c, d])]))
    return names


def write_lists(folder: Path, names: list[str], classes: int, evaluated: int) -> None:
    """train.txt, and gallery.txt and query.txt of `evaluated` images each."""
    cuts = {"gallery": names[:evaluated], "query": names[evaluated : 2 * evaluated], "train": names[2 * evaluated :]}
    for part, files in cuts.items():
        labels = [i % (classes if part == "train" else max(1, evaluated // 2)) for i in range(len(files))]
        (folder / f"{part}.txt").write_text("".join(f"{f} {y}\n" for f, y in zip(files, labels, strict=True)))


def make_model(folder: Path) -> None:
    """An inference directory with random weights, for Paddle and OpenVINO."""
    import embedding

    from paddlex_feat.inference.export.convert import write_forms

    embedding.make_model(folder)
    write_forms(folder, ["paddle", "openvino"])


def resident() -> float:
    """MiB that this process and those it has started hold in memory now."""
    kilobytes, pending = 0, [os.getpid()]
    while pending:
        process = Path("/proc", str(pending.pop()))
        try:
            status = (process / "status").read_text()
            pending += [int(p) for t in (process / "task").iterdir() for p in (t / "children").read_text().split()]
        except FileNotFoundError:  # it has ended
            continue
        kilobytes += int(status.partition("VmRSS:")[2].split()[0]) if "VmRSS:" in status else 0
    return kilobytes / 1024


def observed(target: Path, words: list[str]) -> int:
    """Run the command line in this process; write (seconds, images, MiB) of every second and the first step's time."""
    began, images, samples, ended = time.monotonic(), 0, [], threading.Event()
    from tqdm import tqdm

    def count(_: tqdm, number: int = 1) -> None:  # silent off a terminal, but told of every image
        nonlocal images
        images += number

    tqdm.update = count

    def sample() -> None:
        while not ended.wait(INTERVAL):
            samples.append((time.monotonic() - began, images, resident()))

    report: dict[str, Any] = {}
    if "Global.mode=train" in words:
        _observe_step(report)
    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    from paddlex_feat import cli

    code = cli.main(words)
    ended.set()
    watcher.join()
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    target.write_text(json.dumps({"code": code, "samples": samples, "images": images, "peak": peak, **report}))
    return code


def _observe_step(report: dict[str, Any]) -> None:
    """Note the processor time at the start and end of the first optimizer step, then ask the run to end."""
    import signal

    from paddlex_feat.training import step

    plain = step.Step.__call__

    def cpu() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    def noted(self: step.Step, batches: Any, measure: bool = False) -> Any:
        before = {"cpu_before": cpu(), "memory_before": resident()}
        terms = plain(self, batches, measure)
        loss = float(terms["loss"])  # waits for the step
        report.update(before, cpu_after=cpu(), memory_after=resident(), loss=loss)
        os.kill(os.getpid(), signal.SIGTERM)
        return terms

    step.Step.__call__ = noted  # type: ignore[method-assign]


def run(folder: Path, name: str, *settings: str) -> dict[str, Any]:
    """The report of one command in a process of its own."""
    target = folder / f"{name}.json"
    for left in (folder / name, folder / f"cache_{name}"):  # nothing is known, nothing is in the way
        shutil.rmtree(left, ignore_errors=True)
    words = [word for setting in (f"Global.output={folder / name}", *settings) for word in ("-o", setting)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PADDLE_PDX_CACHE_HOME": str(folder / f"cache_{name}")}
    command = [sys.executable, __file__, "observe", str(target), "-c", MODEL, *words]
    with (folder / f"{name}.log").open("wb") as log:
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=log, check=False)
    report: dict[str, Any] = json.loads(target.read_text())
    return report


def say_memory(name: str, report: dict[str, Any]) -> None:
    """A row: images, rate, memory after FIRST images, when the last image was done, and at most."""
    samples, images = report["samples"], report["images"]
    settled = next((s for s in samples if s[1] >= min(FIRST, images)), samples[-1])
    last = next((s for s in samples if s[1] >= images), samples[-1])
    first = next((s for s in samples if s[1]), samples[-1])
    rate = (last[1] - first[1]) / max(last[0] - first[0], 1)
    growth = (last[2] - settled[2]) * 2**20 / max(last[1] - settled[1], 1)
    print(
        f"| {name} | {images} | {rate:.0f} | {settled[2]:.0f} | {last[2]:.0f} | {growth:.0f} | {report['peak']:.0f} |",
        flush=True,
    )


def check(folder: Path, images: int) -> None:
    """Mode check_dataset."""
    data = folder / "data"
    write_lists(data, make_images(data, images), max(2, images // 20), images // 10)
    say_memory("check_dataset", run(folder, f"check_{images}", f"Global.dataset_dir={data}"))


def predict(folder: Path, images: int, form: str) -> None:
    """Mode predict, with OpenVINO in bfloat16."""
    data, model = folder / "data", folder / "model"
    made = make_images(data, images)
    if not model.exists():
        subprocess.run([sys.executable, __file__, "make_model", str(model)], check=True)
    listed = folder / f"listed_{images}"  # a folder of just so many images
    for folder_name in dict.fromkeys(name.split("/")[1] for name in made):
        listed.mkdir(exist_ok=True)
        (listed / folder_name).unlink(missing_ok=True)
        (listed / folder_name).symlink_to(data / "images" / folder_name)
    settings = {"engine": "openvino", "precision": "bf16", "batch_size": 16, "save": form, "model_dir": model}
    words = [f"Predict.{key}={value}" for key, value in settings.items()]
    inputs = json.dumps([str(p) for p in sorted(listed.iterdir())])
    report = run(folder, f"predict_{form}_{images}", "Global.mode=predict", f"Predict.input={inputs}", *words)
    say_memory(f"predict, {form}", report)


def train(folder: Path, lines: int, classes: int) -> None:
    """Mode train up to and with its first step."""
    data = folder / "many"
    made = make_images(data, IN_FOLDER)
    for number in range(1, lines // IN_FOLDER + 1):  # the same files below other names
        link = data / "images" / f"{number:04d}"
        if not link.exists():
            link.symlink_to(data / "images" / "0000")
    names = [f"images/{n:04d}/{Path(f).name}" for n in range(lines // IN_FOLDER + 1) for f in made]
    write_lists(data, names[: lines + 200], classes, 100)
    settings = (
        "Global.mode=train",
        f"Global.dataset_dir={data}",
        "Train.pretrain_weight_path=null",
        "Train.batch_size=16",
    )
    report = run(folder, f"train_{lines}", *settings)
    head = classes * 512 * 4 / 2**20
    print(
        f"{lines} lines, {classes} classes: first step begins after {report['cpu_before']:.1f} s of CPU time and "
        f"{report['memory_before']:.0f} MiB, ends after {report['cpu_after']:.1f} s and {report['memory_after']:.0f} "
        f"MiB, loss {report['loss']:.4f}; the head's weights {head:.0f} MiB; most, with a checkpoint written, "
        f"{report['peak']:.0f} MiB"
    )


def draw(folder: Path) -> None:
    """docs/images/memory.png from the curves below `folder`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for path in sorted([*folder.glob("check_*.json"), *folder.glob("predict_*.json")]):
        samples = np.array(json.loads(path.read_text())["samples"])
        axes.plot(samples[:, 1] / 1000, samples[:, 2], label=path.stem.rpartition("_")[0].replace("_", ", "))
    axes.set(xlabel="thousand images done", ylabel="MiB in memory", ylim=(0, None), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "memory.png", dpi=120)


def main(words: list[str]) -> int:
    """The command line above."""
    if words[:1] == ["observe"]:
        return observed(Path(words[1]), words[2:])
    if words[:1] == ["make_model"]:
        make_model(Path(words[1]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "predict", "train", "draw"])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--save", choices=["jsonl", "npz", "parquet", "json"], default="jsonl")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "load")
    asked = parser.parse_args(words)
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    match asked.what:
        case "check":
            check(folder, asked.images)
        case "predict":
            predict(folder, asked.images, asked.save)
        case "train":
            train(folder, asked.lines, asked.classes)
        case _:
            draw(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
