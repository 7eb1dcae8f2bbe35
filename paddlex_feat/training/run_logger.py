"""What a person sees of a run: progress, log lines, metrics.jsonl, curves.png."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from paddlex_feat.errors import DependencyError, as_output_error
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.runtime.cpu import peak_resident_bytes
from paddlex_feat.runtime.logs import FILE_ONLY
from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)
to_file = logging.getLogger(FILE_ONLY)  # train.log: one line a log interval
METRICS, CURVES = "metrics.jsonl", "curves.png"
VISUALDL = "vdlrecords.training.log"  # its own choice tells the time, and the result names the file
# Of a line of metrics.jsonl, which anybody may have written: what each kind has, bytes, numbers; bytes of the file.
_OF_ALL = {"epoch", "step"}
_NEEDED = {"train": _OF_ALL | {"lr", "loss"}, "eval": _OF_ALL | {"recall1", "recall5", "mAP"}, "save": _OF_ALL}
_LONGEST, _LARGEST, _MOST = 4096, 1e30, 2**30
SLOW_LOADER = 0.2  # share of an epoch from which waiting for images is worth a word
HINT = (
    "The network waited for images during %.0f %% of this epoch. Raise Train.num_workers, try Train.loader=processes, "
    "keep the images on a faster disk or smaller, or leave Train.augment.fused and reduced_decode on."
)


class Watch:
    """Records one run.

    Args:
        folder: where metrics.jsonl and curves.png go; None on ranks that only log.
        epochs, steps_per_epoch: length of the run; done: steps that an earlier part has done.
        visualdl: write a VisualDL log too. Raises DependencyError if it is not installed.
    """

    def __init__(self, folder: Path | None, epochs: int, steps_per_epoch: int, done: int = 0, visualdl: bool = False):
        self._folder = folder
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
        """Training goes on after an evaluation or a save, whose time is not the step's."""
        self._mark = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call or `resume_clock`."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        return seconds

    def steps(
        self,
        epoch: int,
        step: int,
        steps: int,
        rate: float,
        terms: dict[str, float],
        images: int,
        waited: float,
        seconds: float,
        scale: float | None = None,
    ) -> None:
        """One log interval: mean losses of its `steps`; `step`, the last one, is one-based, `epoch` too.

        Args:
            seconds: its length. waited: seconds of it in which the network waited for the loader.
            scale: loss scale after it, in float16.
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
        if scale is not None:
            row["loss_scale"] = scale
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

    def evaluated(self, epoch: int, step: int, metrics: dict[str, float]) -> None:
        """One evaluation."""
        text = ", ".join(f"{name}: {value:.5f}" for name, value in metrics.items())
        log.info(f"[Eval][Epoch {epoch}][Avg]{text}")
        self._record("eval", {"epoch": epoch, "step": step, **metrics, "peak_memory_mib": peak_memory_mib()})

    def saved(self, epoch: int, step: int, seconds: float) -> None:
        """One checkpoint of a finished epoch, and the seconds that it held training up."""
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
                if name not in ("epoch", "step"):
                    self._visualdl.add_scalar(tag=f"{kind}/{name}", value=value, step=row["step"])

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
            fix="pip install 'paddlex_feat[visualdl]', or use metrics.jsonl and curves.png, which are always there.",
        ) from None
    return LogWriter(logdir=str(folder), file_name=VISUALDL)


def peak_memory_mib() -> float:
    """Most memory that this process has held: on a GPU if it computes there, else resident; 0 if unknown (Windows)."""
    import paddle

    if paddle.is_compiled_with_cuda() and paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    return peak_resident_bytes() / 2**20


def metrics_until(path: Path, epoch: int = sys.maxsize, step: int = sys.maxsize) -> list[str]:
    """The lines of a metrics.jsonl up to the end of `epoch`, and of the next one's training up to `step`.

    Lines of another form, such as a killed run leaves torn, are dropped, with one warning.
    """
    kept, dropped = [], 0
    for line in _lines(path) if path.is_file() else ():
        row = _row(line)
        if row is None:
            dropped += 1
            continue
        begun = row["kind"] == "train" and row["epoch"] == epoch + 1 and row["step"] <= step
        if row["epoch"] <= epoch or begun:
            kept.append(line)
    if dropped:
        log.warning("%s: %d lines are not readable and are left out.", path, dropped)
    return kept


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, whatever it holds; of one that is too long the pieces, and nothing behind _MOST bytes."""
    with path.open("rb") as stream:
        left = _MOST
        while left > 0 and (line := stream.readline(_LONGEST)):
            left -= len(line)
            yield line.decode(errors="replace").rstrip("\n") + "\n"


def _row(line: str) -> dict[str, Any] | None:
    """A line as `Watch` writes them: its kind, and finite numbers. None for another."""
    try:
        row = json.loads(line)
        numbers = {name: value for name, value in row.items() if name != "kind"}
        needed = _NEEDED[row["kind"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    sound = all(type(value) in (int, float) and abs(value) < _LARGEST for value in numbers.values())
    return row if sound and needed <= set(numbers) and numbers["epoch"] >= (row["kind"] == "train") else None


def _epoch_means(rows: list[dict[str, Any]], name: str) -> dict[int, float]:
    values: dict[int, list[float]] = {}
    for row in rows:
        if name in row:
            values.setdefault(row["epoch"], []).append(row[name])
    return {epoch: sum(v) / len(v) for epoch, v in values.items()}


def draw_curves(metrics: Path, path: Path) -> None:
    """Losses, retrieval metrics and learning rate over the epochs, from metrics.jsonl to a PNG."""
    if not metrics.is_file():
        return
    rows = [json.loads(line) for line in metrics_until(metrics)]
    train, evals = ([r for r in rows if r.get("kind") == kind] for kind in ("train", "eval"))
    if not train:
        return
    from matplotlib.figure import Figure

    steps_per_epoch = max(r["step"] / r["epoch"] for r in train)
    x = [r["step"] / steps_per_epoch for r in train]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, retrieval, rate = figure.subplots(1, 3)
    terms = [name for name in train[0] if name.lower().endswith("loss")]
    for i, name in enumerate(terms if len(terms) > 2 else ["loss"]):  # a single term is a multiple of the loss
        losses.plot(x, [r.get(name) for r in train], color=f"C{i}", linewidth=0.6, alpha=0.25)
        means = _epoch_means(train, name)
        losses.plot(list(means), list(means.values()), color=f"C{i}", label=name)
    losses.set(title="training losses", xlabel="epoch", ylim=(0, None))
    losses.legend(frameon=False, fontsize=8)
    for name in ("recall1", "recall5", "mAP"):
        retrieval.plot([r["epoch"] for r in evals], [r[name] for r in evals], marker=".", label=name)
    retrieval.set(title="retrieval", xlabel="epoch", ylim=(0, 1.02))
    if evals:
        retrieval.legend(frameon=False, fontsize=8)
    rate.plot(x, [r["lr"] for r in train], color="#555555")
    rate.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    for axes in (losses, retrieval, rate):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
