"""What all checks share: lines of the report, calls of main.py, data, the trained runs that several checks read."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
OK, FAIL, NOT_RUN = "ok", "FAIL", "not run"
NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}  # environment: cuBLAS and cuDNN compute float32 in float32
SHITU, CLIP = "PP-ShiTuV2_rec", "PP-ShiTuV2_rec_CLIP_vit_base"
METRICS = ("recall1", "recall5", "mAP")
SWAPPED = 2  # queries that rounding may rank otherwise
TINY_CLIP = ("Model.patch_size=8", "Model.width=64", "Model.depth=2", "Model.heads=2")


class NotRun(Exception):
    """This machine cannot run the check; the text is the reason."""


class Failed(Exception):
    """The check could not be completed; the text is the reason."""


@dataclass(frozen=True)
class Line:
    """One line of the report.

    Attributes:
        figure: what was measured. bound: what it has to be; empty: it is only reported.
        verdict: OK, FAIL or NOT_RUN. reason: why, unless it is OK.
    """

    item: int
    name: str
    figure: str = ""
    bound: str = ""
    verdict: str = OK
    reason: str = ""

    def __str__(self) -> str:
        measured = f"{self.figure}  ({self.bound})" if self.bound else self.figure
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.item:>2}  {self.name:<58} {measured:<44} {self.verdict}{reason}"


@dataclass(frozen=True)
class Bench:
    """Where the checks run.

    Attributes:
        item: number of the item that runs.
        device: "gpu:0", or "cpu" for what a machine without GPU can try of the checks.
        gpus: visible ones; 0 on the CPU.
        folder: for data and outputs, shared by all items.
    """

    item: int
    device: str
    gpus: int
    folder: Path

    @property
    def gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.gpus > 0

    def line(self, name: str, figure: object, bound: str = "", ok: bool = True) -> Line:
        """A line of a check that ran."""
        text = f"{figure:.3g}" if isinstance(figure, float) else str(figure)
        return Line(self.item, name, text, bound, OK if ok else FAIL)

    def not_run(self, name: str, reason: str) -> Line:
        """A line of a check that this machine cannot run."""
        return Line(self.item, name, verdict=NOT_RUN, reason=reason)

    def require_gpus(self, count: int = 1) -> None:
        """Raise NotRun if fewer GPUs are there."""
        if self.gpus < count:
            raise NotRun("needs a GPU" if count == 1 else f"needs {count} GPUs")

    @cached_property
    def size(self) -> int:
        """Side of the images in pixels: small, but the convolutions' usual kernels on a GPU."""
        return 64 if self.gpu else 32

    @cached_property
    def data(self) -> Path:
        """The ORL faces as a data set."""
        folder = self.folder / "data"
        if not (folder / "query.txt").is_file():
            import prepare_orl

            with contextlib.redirect_stdout(io.StringIO()):
                prepare_orl.main(folder)
            if not self.gpu:  # a part is enough to try the checks
                for name, every in (("train", 2), ("query", 3)):
                    lines = (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
                    (folder / f"{name}.txt").write_text("".join(lines[::every]), encoding="utf-8")
        return folder

    def metrics_agree(self, metrics: dict[str, float], others: dict[str, float]) -> bool:
        """Whether as few queries are ranked otherwise as rounding explains.

        After two epochs the features of PP-ShiTuV2_rec are so alike that differences of 1e-4 exchange neighbours in the
        ranking of a query or two, and each changes mAP by half a query or less.
        """
        queries = len((self.data / "query.txt").read_text(encoding="utf-8").splitlines())
        away = max(abs(metrics[name] - others[name]) for name in METRICS)
        return round(away * queries, 6) <= SWAPPED

    def photographs(self, count: int = 8) -> list[str]:
        """Some images of the data set."""
        return [str(file) for file in sorted(self.data.glob("images/s3*/01.pgm"))[:count]]

    def command(self, mode: str, output: Path, *settings: str, config: str = SHITU) -> list[str]:
        """The command line of main.py; `settings` come last and win."""
        small = [
            f"Train.input_size={self.size}",
            "Train.pretrain_weight_path=null",
            "Train.batch_size=16",
            "Train.epochs_iters=2",
            "Train.learning_rate=0.01",
            "Train.warmup_steps=1",
            "Train.log_interval=1",
            "Train.augment.pad=2",
            f"Global.mode={mode}",
            f"Global.device={self.device}",
            f"Global.dataset_dir={self.data}",
            f"Global.output={output}",
        ]
        options = [word for setting in (*small, *settings) for word in ("-o", setting)]
        return [sys.executable, str(ROOT / "main.py"), "-c", config, *options]

    def main(
        self,
        mode: str,
        output: Path,
        *settings: str,
        config: str = SHITU,
        code: int = 0,
        env: dict[str, str] | None = None,
    ) -> str:
        """Run main.py; its standard error. Raises Failed if it ends with another exit code than `code`."""
        return run(self.command(mode, output, *settings, config=config), code, env)

    def trained(
        self, name: str = "run", *settings: str, config: str = SHITU, env: dict[str, str] | None = None
    ) -> Path:
        """The output of a finished training, made by the first check that needs it."""
        output = self.folder / name
        if not result(output, "train").get("done_flag"):
            self.main("train", output, *settings, config=config, env=env)
        return output

    def run_folder(self) -> Path:
        """The training that items 5 to 8 are about: two epochs, deterministic kernels."""
        return self.trained("run", "Train.deterministic=True", f"Export.format=[{','.join(forms())}]")

    def clip_folder(self) -> Path:
        """A training of a small CLIP."""
        return self.trained("clip", *TINY_CLIP, f"Export.format=[{','.join(forms())}]", config=CLIP)


def run(command: Sequence[str], code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run a command; its standard error. Raises Failed if it ends with another exit code than `code`."""
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode != code:
        raise Failed(f"exit code {done.returncode} of {' '.join(command[1:4])} …: {last_words(done.stderr)}")
    return done.stderr


def last_words(text: str) -> str:
    """The error that a command ended with, in one line."""
    position = max(text.rfind("ERROR"), text.rfind("Traceback"), len(text) - 600, 0)
    return " ".join(text[position:].split())


def result(output: Path, mode: str) -> dict[str, Any]:
    """<mode>_result.json; empty if it is not there."""
    file = output / f"{mode}_result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def records(output: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of one kind."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == kind]


def forms() -> list[str]:
    """Forms of Export.format that can be written here."""
    converter = importlib.util.find_spec("paddle2onnx")
    return ["paddle", *["onnx"] * bool(converter and importlib.util.find_spec("onnxruntime"))]


def installed_engines() -> Iterator[tuple[str, bool]]:
    """Engines that run an export on a CPU, and whether they and their converter are installed."""
    yield "paddle", True
    converter = bool(importlib.util.find_spec("paddle2onnx"))
    for engine, package in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        yield engine, converter and bool(importlib.util.find_spec(package))


def features(folder: Path, files: Sequence[str], device: str, model: str = SHITU, **options: Any) -> Any:
    """Unit features of files by an inference directory, float32 [N, D]; options as create_model's."""
    import numpy as np

    from paddlex_feat import create_model

    predictor = create_model(model, folder, device, batch_size=len(files), **options)
    return np.stack([row.feature for row in predictor.predict(list(files))])
