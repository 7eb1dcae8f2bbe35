"""Log a training run: progress bar, log lines, metrics.jsonl, VisualDL."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from paddlex_feat.errors import DependencyError, as_output_error
from paddlex_feat.runtime.cpu import peak_resident_bytes
from paddlex_feat.runtime.logs import FILE_ONLY
from paddlex_feat.runtime.progress import bar
from paddlex_feat.training.metrics_file import CURVES, METRICS, draw_curves

log = logging.getLogger(__name__)
to_file = logging.getLogger(FILE_ONLY)  # train.log: one line a log interval
VISUALDL = "vdlrecords.training.log"  # its own choice tells the time, and the result names the file
SLOW_LOADER = 0.2  # share of an epoch spent waiting for images that is worth a hint
HINT = (
    "The network waited for images during %.0f %% of this epoch. Raise Train.num_workers, try Train.loader=processes, "
    "keep the images on a faster disk or smaller, or leave Train.augment.fused and reduced_decode on."
)


OnRecord = Callable[[str, dict[str, Any]], None]  # (kind, values) of a line of metrics.jsonl


class RunLogger:
    """Records one run.

    Args:
        folder: of metrics.jsonl and curves.png; None on ranks that only log.
        epochs: length of the run.
        steps_per_epoch: optimizer steps of an epoch.
        done: steps that the run had completed when it was resumed.
        visualdl: whether to write a VisualDL log too.
        on_record: called after each line of metrics.jsonl with a copy of its values.

    Raises:
        DependencyError: VisualDL is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path | None,
        epochs: int,
        steps_per_epoch: int,
        done: int = 0,
        visualdl: bool = False,
        on_record: OnRecord | None = None,
    ):
        self._folder = folder
        self._on_record = on_record
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._total = epochs * steps_per_epoch
        self._bar = bar(self._total if folder else None, "training", "steps")
        self._bar.update(done)
        self._done_before = done
        self._images = 0
        self._train_seconds = 0.0  # without evaluation and saving
        self._epoch_seconds = self._epoch_waited = self._last_epoch_seconds = 0.0
        self._epoch_terms: list[tuple[int, dict[str, float]]] = []  # (steps, their mean losses)
        self._visualdl = open_visualdl(folder) if visualdl and folder else None
        self._started = self._mark = time.perf_counter()

    def resume_clock(self) -> None:
        """Restart the time of steps after an evaluation or a save."""
        self._mark = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call or `resume_clock`."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        return seconds

    def log_steps(
        self,
        epoch: int,
        step: int,
        steps: int,
        rate: float,
        terms: dict[str, float],
        images: int,
        waited: float,
        seconds: float,
        extras: Mapping[str, float] | None = None,
    ) -> None:
        """Log one interval of steps.

        Args:
            epoch: counted from 1.
            step: the last step of the interval, counted from 1.
            steps: number of steps.
            rate: learning rate of the last step.
            terms: mean losses by name.
            images: number of images, over all ranks.
            waited: seconds in which the network waited for the loader.
            seconds: length of the interval.
            extras: further numbers of its last step by name: "grad_norm", and in float16 "loss_scale" after it. Those
                that are not finite, as of a step in float16 that was skipped, are left out.
        """
        self._train_seconds += seconds
        self._epoch_seconds += seconds
        self._epoch_waited += waited
        self._images += images
        speed = images / seconds
        left = (self._total - step) * (time.perf_counter() - self._started) / max(step - self._done_before, 1)
        eta = str(timedelta(seconds=round(left)))
        losses = ", ".join(f"{name}: {value:.5f}" for name, value in terms.items())
        in_epoch = (step - 1) % self._steps_per_epoch + 1
        to_file.info(
            f"[Train][Epoch {epoch}/{self._epochs}][Iter: {in_epoch}/{self._steps_per_epoch}]"
            f"lr: {rate:.8f}, {losses}, ips: {speed:.1f} images/s, waited: {waited / seconds:.0%}, eta: {eta}"
        )
        row = {
            "epoch": epoch,
            "step": step,
            "lr": rate,
            **terms,
            "images_per_second": speed,
            "waited": waited / seconds,
        }
        row.update({name: value for name, value in (extras or {}).items() if math.isfinite(value)})
        self._record("train", row)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(f"epoch {epoch}/{self._epochs}, loss {terms['loss']:.3f}, {speed:.0f} images/s")
        self._epoch_terms.append((steps, terms))
        if step % self._steps_per_epoch == 0:
            self._end_epoch(epoch, eta)

    def _end_epoch(self, epoch: int, eta: str) -> None:
        count = sum(steps for steps, _ in self._epoch_terms)
        means = {n: sum(k * t[n] for k, t in self._epoch_terms) / count for n in self._epoch_terms[0][1]}
        losses = ", ".join(f"{name}: {value:.5f}" for name, value in means.items())
        log.info(f"epoch {epoch}/{self._epochs}  {losses}  {self.images_per_second:.1f} images/s  eta {eta}")
        self._epoch_terms = []
        self._last_epoch_seconds = self._epoch_seconds
        share = self._epoch_waited / max(self._epoch_seconds, 1e-9)
        to_file.info(f"[Epoch {epoch}] waited for images: {share:.0%}, peak memory: {peak_memory_mib():.0f} MiB")
        if share > SLOW_LOADER:
            log.info(HINT, 100 * share)
        self._epoch_seconds = self._epoch_waited = 0.0

    def log_eval(self, epoch: int, step: int, metrics: dict[str, float], validation: bool = False) -> None:
        """Log one evaluation, on gallery and query or on the held-out validation set."""
        text = ", ".join(f"{name}: {value:.5f}" for name, value in metrics.items())
        log.info(f"[{'Validation' if validation else 'Eval'}][Epoch {epoch}][Avg]{text}")
        row = {"epoch": epoch, "step": step, **metrics, "peak_memory_mib": peak_memory_mib()}
        self._record("eval", {**row, "set": "validation"} if validation else row)

    def log_save(self, epoch: int, step: int, seconds: float) -> None:
        """Log one checkpoint of a finished epoch, and the seconds for which training waited."""
        row = {"epoch": epoch, "step": step, "seconds": seconds, "epoch_seconds": self._last_epoch_seconds}
        self._record("save", row)

    def _record(self, kind: str, row: dict[str, Any]) -> None:
        if self._folder is None:
            return
        path = self._folder / METRICS
        with as_output_error(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, **row}) + "\n")
        if self._visualdl:
            for name, value in row.items():
                if name not in ("epoch", "step", "set"):
                    self._visualdl.add_scalar(tag=f"{kind}/{name}", value=value, step=row["step"])
        if self._on_record:
            self._on_record(kind, dict(row))

    def close(self) -> None:
        """End the bar and draw the curves."""
        self._bar.close()
        if self._visualdl:
            self._visualdl.close()
        if self._folder:
            draw_curves(self._folder / METRICS, self._folder / CURVES)

    @property
    def images_per_second(self) -> float:
        """Mean over the run, without evaluation and saving."""
        return self._images / max(self._train_seconds, 1e-9)


def open_visualdl(folder: Path) -> Any:
    """A VisualDL writer in `folder`. Raises DependencyError."""
    try:
        from visualdl import LogWriter
    except ImportError as error:
        raise DependencyError(
            f"Train.visualdl needs VisualDL, which cannot be imported ({error}).",
            where="Train.visualdl",
            fix="pip install 'paddlex_feat[visualdl]', or use metrics.jsonl and curves.png, which are always written.",
            code="visualdl-missing",
        ) from None
    return LogWriter(logdir=str(folder), file_name=VISUALDL)


def peak_memory_mib() -> float:
    """Return the peak memory of this process: on a GPU if it computes there, else resident; 0 if unknown (Windows)."""
    import paddle

    if paddle.is_compiled_with_cuda() and paddle.get_device().startswith("gpu"):
        return int(paddle.device.cuda.max_memory_allocated()) / 2**20
    return peak_resident_bytes() / 2**20
