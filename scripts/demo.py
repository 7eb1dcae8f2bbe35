"""The main job on the ORL faces: data set, check, train, evaluate, export, predict.

Every step is the command a user would type; it is printed before it runs. What this file adds
is the data set, the two marks to compare with, and the summary. It fails if training did not
lift recall@1 by at least LEAST_GAIN.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import require_lists
from paddlex_feat.evaluation.metrics import retrieval_metrics

CONFIG = "configs/modules/image_feature/PP-ShiTuV2_rec_demo.yaml"
DATA = "dataset/ORL_faces"
OUTPUT = "output/demo"
LEAST_GAIN = 0.10


def step(*words: str, show_output: bool = True) -> None:
    """Print a command, run it, stop if it fails."""
    print(f"\n$ {shlex.join(['python', *words])}", flush=True)
    code = subprocess.run([sys.executable, *words], stdout=None if show_output else subprocess.DEVNULL).returncode
    if code:
        sys.exit(f"The step failed with exit code {code}.")


def mode(name: str, *overrides: str, output: str = OUTPUT, show_output: bool = True) -> None:
    """One call of main.py."""
    settings = [f"Global.mode={name}", f"Global.dataset_dir={DATA}", f"Global.output={output}", *overrides]
    step("main.py", "-c", CONFIG, *(word for s in settings for word in ("-o", s)), show_output=show_output)


def evaluations() -> list[float]:
    """recall1 of every evaluation in training; the first, before any step, by the demo's Train.eval_start."""
    rows = map(json.loads, Path(OUTPUT, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [float(row["recall1"]) for row in rows if row["kind"] == "eval"]


def trained_recall1() -> float:
    """recall1 of mode evaluate."""
    result = json.loads(Path(OUTPUT, "evaluate_result.json").read_text(encoding="utf-8"))
    return float(result["metrics"]["recall1"])


def pixel_recall1() -> float:
    """The mark to beat: nearest neighbour on grey pixels, area-averaged to 32 x 32, less their mean."""
    import cv2

    def pixels(records: ImageList) -> np.ndarray:
        grey = [cv2.cvtColor(read_rgb(f), cv2.COLOR_RGB2GRAY) for f in records.files()]
        rows = np.stack([cv2.resize(g, (32, 32), interpolation=cv2.INTER_AREA).ravel() for g in grey]).astype(
            np.float32
        )
        rows -= rows.mean(axis=1, keepdims=True)
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    lists = require_lists(DATA, ("gallery", "query"))
    gallery, query = lists["gallery"], lists["query"]
    return retrieval_metrics(pixels(query), query.labels, pixels(gallery), gallery.labels).recall[1]


def main() -> int:
    """Run everything and say what came out."""
    started = time.perf_counter()
    step("scripts/prepare_orl.py", DATA)
    mode("check_dataset")
    mode("train")
    mode("evaluate", f"Evaluate.weight_path={OUTPUT}/best_model/best_model.pdparams")
    mode("export", f"Export.weight_path={OUTPUT}/best_model/best_model.pdparams", output=f"{OUTPUT}/export")
    mode(
        "predict",
        f"Predict.model_dir={OUTPUT}/export",
        f"Predict.input={DATA}/images/s21",
        "Predict.batch_size=10",
        output=f"{OUTPUT}/predict",
        show_output=False,  # ten times 512 numbers
    )
    untrained, *_, last = evaluations()
    trained = trained_recall1()
    print(f"""
recall@1 on 180 photographs of 20 people whom training never saw:
  untrained network   {untrained:.3f}
  trained network     {trained:.3f}   ({trained - untrained:+.3f}; best evaluation, the last is {last:.3f})
  nearest raw pixels  {pixel_recall1():.3f}

  reports        {OUTPUT}/evaluate/report.html, {OUTPUT}/check_dataset/report.html, {OUTPUT}/curves.png
  weights        {OUTPUT}/best_model/best_model.pdparams
  inference      {OUTPUT}/best_model/inference
  features       {OUTPUT}/predict/*_res.json
  results        {OUTPUT}/*_result.json
  time           {time.perf_counter() - started:.0f} s""")
    if trained - untrained < LEAST_GAIN:
        print(f"The gain is less than {LEAST_GAIN:.2f}: something is wrong.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
