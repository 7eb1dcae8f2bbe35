"""The training loop."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from paddlex_feat.errors import TrainingError
from paddlex_feat.inference.export import Exporter
from paddlex_feat.losses.combined import CombinedLoss
from paddlex_feat.models.recognizer import Recognizer
from paddlex_feat.pipeline.preprocess import Preprocess
from paddlex_feat.training.checkpoint import Progress
from paddlex_feat.training.run_folder import BEST, RunFolder
from paddlex_feat.training.schedule import warmup_cosine
from paddlex_feat.training.watch import Watch

log = logging.getLogger(__name__)
Batches = Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Plan:
    """Length and pace of a run; epochs and warm-up in epochs, intervals as in the section Train."""

    epochs: int
    steps_per_epoch: int
    learning_rate: float
    warmup_epochs: float
    log_interval: int
    eval_interval: int
    save_interval: int
    eval_start: bool
    seed: int


class Trainer:
    """Trains a network epoch by epoch, keeps the best by recall1.

    Args:
        model, criterion, optimizer: in training form.
        batches: epoch (zero-based) -> (image indices int64 [N], images uint8 [N, S, S, 3]).
        labels: class index of every image, int64 [images].
        files: path of every image, for messages.
        evaluate: inference directory -> recall1, recall5, mAP.
    """

    def __init__(
        self,
        model: Recognizer,
        criterion: CombinedLoss,
        optimizer: paddle.optimizer.Optimizer,
        batches: Batches,
        labels: np.ndarray,
        files: Sequence[str],
        preprocess: Preprocess,
        exporter: Exporter,
        evaluate: Callable[[Path], dict[str, float]],
        folder: RunFolder,
        plan: Plan,
        progress: Progress,
    ):
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.batches = batches
        self.labels = labels
        self.files = files
        self.exporter = exporter
        self.evaluate = evaluate
        self.folder = folder
        self.plan = plan
        self.progress = progress
        self.watch = Watch(folder.root, plan.epochs, plan.steps_per_epoch, progress.step)
        factor, offset = preprocess.affine()
        self._factor = paddle.to_tensor(factor.reshape(1, 3, 1, 1))
        self._offset = paddle.to_tensor(offset.reshape(1, 3, 1, 1))

    def fit(self) -> None:
        """Train from where `progress` stands to the end of the plan."""
        try:
            if self.plan.eval_start and not self.progress.step:
                with self._exported() as inference:
                    self.watch.evaluated(0, 0, self.evaluate(inference))
            for epoch in range(self.progress.epoch, self.plan.epochs):
                self._train_epoch(epoch)
                self.progress.epoch = epoch + 1
                self.progress.score = None
                self._after_epoch(epoch + 1)
        finally:
            self.watch.close()

    def _after_epoch(self, epoch: int) -> None:
        last = epoch == self.plan.epochs
        evaluate, save = last or epoch % self.plan.eval_interval == 0, last or epoch % self.plan.save_interval == 0
        if not (evaluate or save):
            return
        with self._exported() as inference:
            if evaluate:
                self._keep_best(epoch, self.evaluate(inference), inference)
            if save:
                self.folder.save_epoch(self.model, self.optimizer, self.progress, inference)

    @contextmanager
    def _exported(self) -> Iterator[Path]:
        """The network as it stands, as an inference directory that lives as long as the block."""
        with tempfile.TemporaryDirectory(prefix="paddlex_feat_") as temporary:
            self.exporter.write(self.model.state_dict(), Path(temporary))
            yield Path(temporary)

    def _keep_best(self, epoch: int, metrics: dict[str, float], inference: Path) -> None:
        progress = self.progress
        progress.score = metrics["recall1"]
        if progress.score >= progress.best:  # a tie goes to the newer one
            progress.best, progress.best_epoch = progress.score, epoch
            self.folder.save(BEST, self.model, self.optimizer, progress, inference)
        self.watch.evaluated(epoch, progress.step, metrics)
        log.info("best recall1: %.5f in epoch %d", progress.best, progress.best_epoch)

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        # Dropout draws from Paddle's generator. Seeded by epoch, a resumed run repeats the uninterrupted one.
        paddle.seed(int(np.random.default_rng((self.plan.seed, epoch, 3)).integers(2**31)))
        self.watch.resume_clock()
        interval: list[tuple[np.ndarray, dict[str, paddle.Tensor]]] = []
        for indices, images in self.batches(epoch):
            rate = self._set_rate()
            terms = self._step(images, self.labels[indices])
            self.progress.step += 1
            interval.append((indices, terms))
            if self.progress.step % self.plan.log_interval == 0:
                self._log(epoch + 1, rate, interval)
                interval = []
        if interval:
            self._log(epoch + 1, rate, interval)

    def _set_rate(self) -> float:
        plan = self.plan
        rate = warmup_cosine(
            plan.learning_rate, self.progress.step, plan.steps_per_epoch, plan.epochs, plan.warmup_epochs
        )
        self.optimizer.set_lr(rate)
        return rate

    def _step(self, images: np.ndarray, labels: np.ndarray) -> dict[str, paddle.Tensor]:
        pixels = paddle.to_tensor(images).transpose([0, 3, 1, 2]).astype("float32")
        features = self.model(pixels * self._factor + self._offset)
        terms = self.criterion(features, self.model.logits(features), paddle.to_tensor(labels))
        terms["loss"].backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return {name: term.detach() for name, term in terms.items()}

    def _log(self, epoch: int, rate: float, interval: list[tuple[np.ndarray, dict[str, paddle.Tensor]]]) -> None:
        """Fetch the losses of an interval, the only synchronisation with the device."""
        values = [{name: float(term) for name, term in terms.items()} for _, terms in interval]
        first_step = self.progress.step - len(interval) + 1
        for step, ((indices, _), terms) in enumerate(zip(interval, values, strict=True), first_step):
            if not all(math.isfinite(v) for v in terms.values()):
                self._stop(step, terms, indices)
        mean = {name: sum(v[name] for v in values) / len(values) for name in values[0]}
        self.watch.steps(epoch, self.progress.step, rate, mean, sum(len(i) for i, _ in interval))

    def _stop(self, step: int, terms: dict[str, float], indices: np.ndarray) -> None:
        names = ", ".join(f"{name} {value}" for name, value in terms.items())
        files = "\n    ".join(self.files[i] for i in indices)
        raise TrainingError(
            f"The loss is not finite in step {step}: {names}. Files of the batch:\n    {files}",
            where=f"step {step}, learning rate {self.optimizer.get_lr():g}",
            fix="Lower Train.learning_rate or lengthen Train.warmup_steps; checkpoints of earlier epochs are whole.",
        )
