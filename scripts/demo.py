"""The main job on the ORL faces: data set, check, train, evaluate, export, predict, and a search.

    python scripts/demo.py                           from the starter's weights, which ImageNet has trained
    python scripts/demo.py --model PP-ShiTuV2_rec    from random weights

Every step is the command a user would type; it is printed before it runs. What this file adds is the data set and the
summary. It fails if training did not lift recall@1, or delivered less than its start.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CONFIGS = {
    "EfficientNet_Lite0_rec": ("configs/modules/image_feature/EfficientNet_Lite0_rec.yaml", "Train.recipe=auto"),
    "PP-ShiTuV2_rec": ("configs/modules/image_feature/PP-ShiTuV2_rec_scratch.yaml",),
}
STARTER = "EfficientNet_Lite0_rec"
DATA = "dataset/ORL_faces"
OUTPUT = "output/demo"
LEAST_GAIN = 0.10  # of a training from random weights


def step(*words: str, show_output: bool = True) -> None:
    """Print a command, run it, stop if it fails."""
    print(f"\n$ {shlex.join(['python', *words])}", flush=True)
    code = subprocess.run([sys.executable, *words], stdout=None if show_output else subprocess.DEVNULL).returncode
    if code:
        sys.exit(f"The step failed with exit code {code}.")


def mode(config: str, name: str, *overrides: str, output: str = OUTPUT, show_output: bool = True) -> None:
    """One call of main.py."""
    settings = [f"Global.mode={name}", f"Global.dataset_dir={DATA}", f"Global.output={output}", *overrides]
    step("main.py", "-c", config, *(word for s in settings for word in ("-o", s)), show_output=show_output)


def result(name: str, output: str = OUTPUT) -> dict[str, Any]:
    """Content of <name>_result.json."""
    content: dict[str, Any] = json.loads(Path(output, f"{name}_result.json").read_text(encoding="utf-8"))
    return content


def start_recall1() -> float:
    """recall1 of the evaluation before the first step."""
    rows = map(json.loads, Path(OUTPUT, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return next(float(row["recall1"]) for row in rows if row["kind"] == "eval")


def run_all(model: str) -> int:
    """Run everything and say what came out; the exit code."""
    started, (config, *settings) = time.perf_counter(), CONFIGS[model]
    step("scripts/prepare_orl.py", DATA)
    mode(config, "check_dataset")
    mode(config, "train", *settings)
    mode(config, "evaluate", f"Evaluate.weight_path={OUTPUT}/best_model/best_model.pdparams")
    mode(config, "export", f"Export.weight_path={OUTPUT}/best_model/best_model.pdparams", output=f"{OUTPUT}/export")
    mode(
        config,
        "predict",
        f"Predict.model_dir={OUTPUT}/export",
        f"Predict.input={DATA}/images/s21",
        "Predict.batch_size=10",
        output=f"{OUTPUT}/predict",
        show_output=False,  # ten times a feature
    )
    model_dir = f"Predict.model_dir={OUTPUT}/best_model/inference"
    for file in Path(OUTPUT).glob("images.gallery*"):  # of an earlier run, with the features of other weights
        file.unlink()
    mode(config, "index", model_dir)
    asked = f"Search.input=[{', '.join(f'{DATA}/images/s{person}/05.pgm' for person in (21, 28, 35))}]"
    mode(config, "search", model_dir, asked, "Search.threshold=evaluation")
    training, evaluated = result("train"), result("evaluate")
    start = start_recall1()
    trained = float(evaluated["metrics"]["recall1"])
    rows = [("raw pixels", f"{evaluated['baseline']['recall1']:.3f}")]
    if model == STARTER:
        adapted = training["adapted"]
        rows.append(("start", f"{start:.3f}"))
        rows.append(("adapted", f"{adapted['recall1']:.3f}" if adapted else "no map is better than the start"))
        rows.append(("fine-tuned", f"{trained:.3f}   ({trained - start:+.3f})"))
    else:
        rows += [("untrained", f"{start:.3f}"), ("trained", f"{trained:.3f}   ({trained - start:+.3f})")]
    print(f"""
  report         {OUTPUT}/evaluate/report.html
  data set       {OUTPUT}/check_dataset/report.html
  curves         {OUTPUT}/curves.png
  weights        {OUTPUT}/best_model/best_model.pdparams
  inference      {OUTPUT}/best_model/inference
  features       {OUTPUT}/predict/*_res.json
  search         {OUTPUT}/search.html
  results        {OUTPUT}/*_result.json
  time           {time.perf_counter() - started:.0f} s

recall@1 on 180 photographs of 20 people whom training never saw:""")
    for name, figure in rows:
        print(f"  {name:<13}  {figure}")
    if trained < start + (0 if model == STARTER else LEAST_GAIN):
        print("Training has gained less than it should: something is wrong.", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Read the command line and run the demo."""
    parser = argparse.ArgumentParser(description="The main job on the ORL faces.")
    parser.add_argument("--model", choices=CONFIGS, default=STARTER, help="the start's model, or the one from scratch")
    return run_all(parser.parse_args().model)


if __name__ == "__main__":
    sys.exit(main())
