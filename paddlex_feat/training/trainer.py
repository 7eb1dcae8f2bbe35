"""The training loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import paddle

from paddlex_feat.errors import EvaluationError, FeatError, Interrupted, OutputError, TrainingError
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.runtime import heartbeat
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.candidate import Candidate, candidate
from paddlex_feat.training.checkpoint import TrainingState
from paddlex_feat.training.delivery import with_delivery
from paddlex_feat.training.loss_log import LossLog
from paddlex_feat.training.run_folder import BEST, LATEST, RunFolder, epoch_name
from paddlex_feat.training.run_logger import RunLogger
from paddlex_feat.training.schedule import warmup_cosine
from paddlex_feat.training.step import Step
from paddlex_feat.training.stop import StopSignal
from paddlex_feat.training.votes import Votes

log = logging.getLogger(__name__)
Batches = Callable[[int, int], Iterable[tuple[np.ndarray, np.ndarray]]]
METRICS = ("recall1", "recall5", "mAP")


@dataclass(frozen=True)
class TrainingPlan:
    """Length and schedule of a run; epochs and warm-up in epochs, intervals as in the section Train.

    Attributes:
        steps_per_epoch: optimizer steps, each of `accumulate` batches (fewer in the last step of an epoch).
        start_counts: the measured start is the first candidate for best_model, as epoch 0.
        validation: evaluations measure a held-out part of the training images, not gallery and query.
        head_save_interval: epochs between states with the class vectors of a sampled classifier, if there is one.
    """

    epochs: int
    steps_per_epoch: int
    learning_rate: float
    warmup_epochs: float
    log_interval: int
    eval_interval: int
    save_interval: int
    eval_start: bool
    seed: int
    accumulate: int = 1
    save_interval_minutes: float | None = None
    early_stopping: int | None = None
    start_counts: bool = False
    validation: bool = False
    head_save_interval: int = 1


class Trainer:
    """Trains a network epoch by epoch and keeps the best one by recall1.

    Args:
        state: network, optimizer, progress, in training form.
        step: makes one optimizer step.
        batches: (epoch, first batch), both zero-based -> (image indices int64 [N], images uint8 [N, S, S, 3]).
        labels: class index of every image, int64 [images].
        files: path of every image, for messages.
        evaluate: network -> recall1, recall5, mAP; every rank calls it.
        group: all ranks run the same loop; rank 0 alone writes.
        resume_command: what the message of an interrupted run says.
        frozen_bn_layers: BatchNorm layers that stay in evaluation mode.
        skipped: files that the loader had to replace; it grows during training.

    Attributes:
        prepare: called before the first step of a run; what it does must follow from the state and the seed.
        conclude: called after the last epoch, again if a run that had ended is resumed.
    """

    def __init__(
        self,
        state: TrainingState,
        step: Step,
        batches: Batches,
        labels: np.ndarray,
        files: Sequence[str],
        exporter: Exporter,
        evaluate: Callable[[Candidate], dict[str, float]],
        folder: RunFolder,
        plan: TrainingPlan,
        run_logger: RunLogger,
        group: ProcessGroup | None = None,
        resume_command: str = "the same command with -o Train.resume=auto",
        frozen_bn_layers: Sequence[paddle.nn.Layer] = (),
        skipped: Collection[str] = (),
    ):
        self.state = state
        self.step = step
        self.batches = batches
        self.labels = labels
        self.files = files
        self.exporter = exporter
        self.evaluate = evaluate
        self.folder = folder
        self.plan = plan
        self.run_logger = run_logger
        self.group = group or ProcessGroup()
        self.resume_command = resume_command
        self.frozen_bn_layers = frozen_bn_layers
        self.skipped = skipped
        self.prepare: Callable[[], None] = lambda: None
        self.conclude: Callable[[], None] = lambda: None
        self.stop = StopSignal(second_signal_raises=self.group.size == 1)
        # A vote among GPUs waits for them; among CPUs it costs next to nothing.
        self._votes = Votes(self.group, lambda: self.stop.received, always=not paddle.get_device().startswith("gpu"))
        self._losses = LossLog(run_logger, files, self.group.size)
        self._saved_at, self._saved_step = time.monotonic(), -1

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        progress, plan = self.state.progress, self.plan
        impatient = plan.early_stopping is not None and progress.evals_since_best >= plan.early_stopping
        return progress.epoch >= plan.epochs or (impatient and not progress.step_in_epoch)

    def fit(self) -> None:
        """Train from the current progress to the end of the plan.

        Raises:
            Interrupted: after a signal; the state is saved.
            TrainingError: a loss is not finite, or the loss scale of float16 has collapsed. This error and an
                EvaluationError say which weights best_model holds.
        """
        progress = self.state.progress
        progress.epochs = self.plan.epochs
        try:
            with self.stop.listening():
                if self.plan.eval_start and not (progress.step or progress.start):
                    self._measure_start()
                if not progress.step and not progress.epoch:
                    self._or_end(self.prepare)
                while not self.finished:
                    self._train_epoch(progress.epoch)
                    progress.epoch, progress.step_in_epoch, progress.last_recall1 = progress.epoch + 1, 0, None
                    self._after_epoch(progress.epoch)
                    if self._votes.now() and not self.finished:
                        self._end()
                self._or_end(self.conclude)
                self.folder.finish()
        except (EvaluationError, TrainingError) as error:
            self.folder.finish()
            if progress.best < 0:
                raise
            raise with_delivery(error, progress) from error.__cause__ or error
        finally:
            self.run_logger.close()

    def _measure_start(self) -> None:
        """Measure the weights before the first step; where they count, they are the best model so far."""
        progress = self.state.progress
        with self._candidate() as network:
            metrics = self._measure(network)
            self.run_logger.log_eval(0, 0, metrics, self.plan.validation)
            if self.plan.start_counts:
                progress.start, progress.last_recall1 = metrics, metrics["recall1"]
                progress.best, progress.best_map = self._score(metrics)
                self._save([BEST] if self.state.classifier else [BEST, LATEST], network)

    def measure_adapted(self) -> bool:
        """Measure the start once a map of its features is in it; if that is better it is the best model so far.

        Returns whether it is. Only best_model is saved: a resumed run fits the map again.
        """
        progress = self.state.progress
        with self._candidate() as network:
            metrics = self._metrics_of(network)  # the caller restores the start if this is interrupted
            log.info("[Eval][adapted start]%s", ", ".join(f"{name}: {metrics[name]:.5f}" for name in METRICS))
            score, best = self._score(metrics), (progress.best, progress.best_map)
            better = score > best
            if better:
                progress.adapted, (progress.best, progress.best_map) = metrics, score
                self._save([BEST], network)
        return better

    def _after_epoch(self, epoch: int) -> None:
        evaluate = epoch % self.plan.eval_interval == 0 or epoch == self.plan.epochs
        save = epoch % self.plan.save_interval == 0 or epoch == self.plan.epochs
        if not (evaluate or save or self._class_vectors_are_due(epoch)):
            return
        began = time.perf_counter()
        with self._candidate() as network:
            improved = evaluate and self._is_best(epoch, self._measure(network))
            if evaluate:
                began = time.perf_counter()
            save = save or self.finished
            latest = save or improved if self.state.classifier is None else self._class_vectors_are_due(epoch)
            names = _checkpoint_names(epoch, improved, save, latest)
            if names:
                self._save(names, network)
                self.run_logger.log_save(epoch, self.state.progress.step, time.perf_counter() - began)

    def _class_vectors_are_due(self, epoch: int) -> bool:
        """Whether a state with the class vectors of a sampled classifier is to be saved, if there is one."""
        due = epoch % self.plan.head_save_interval == 0 or self.finished
        return self.state.classifier is not None and due

    def _or_end(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Interrupted:
            self._end()

    def _candidate(self) -> AbstractContextManager[Candidate]:
        return self.candidate_by(self.exporter)

    def candidate_by(
        self, exporter: Exporter, weights: Mapping[str, np.ndarray] | None = None
    ) -> AbstractContextManager[Candidate]:
        """The network as it is now, or with other weights, to be exported by `exporter`, which may write a part."""
        votes = Votes(self.group, lambda: self.stop.received)
        own = self.state.weights() if weights is None else {n: paddle.to_tensor(v) for n, v in weights.items()}
        return candidate(own, exporter, self.group, self.folder.root, votes)

    def _measure(self, network: Candidate) -> dict[str, float]:
        """Metrics of a network, rank 0's figures on every rank.

        If the evaluation fails or is interrupted, what was trained is saved: a resumed run begins with the evaluation.
        """
        progress = self.state.progress
        try:
            return self._metrics_of(network)
        except FeatError as error:
            if progress.step:
                progress.epoch, progress.step_in_epoch = progress.epoch - 1, self.plan.steps_per_epoch
            if isinstance(error, Interrupted):
                self._end()
            together = self.state.classifier is not None and self.group.size > 1  # and the others may be well
            if progress.step and not together:
                self._save([LATEST])
                self.folder.finish()
            raise

    def _metrics_of(self, network: Candidate) -> dict[str, float]:
        network.share()
        own = self.evaluate(network)
        shared = self.group.broadcast(np.array([own[name] for name in METRICS], np.float64))
        return dict(zip(METRICS, shared.tolist(), strict=True))

    def _score(self, metrics: dict[str, float]) -> tuple[float, float]:
        """What the best weights have most of: recall1; of validation images, few and often all found, mAP too."""
        return metrics["recall1"], metrics["mAP"] if self.plan.validation else 0.0

    def _is_best(self, epoch: int, metrics: dict[str, float]) -> bool:
        progress = self.state.progress
        progress.last_recall1 = metrics["recall1"]
        score, best = self._score(metrics), (progress.best, progress.best_map)
        progress.evals_since_best = 0 if score > best else progress.evals_since_best + 1
        # A tie goes to the newer epoch, but not against the start: training has to earn its place.
        improved = score > best or (score == best and progress.best_epoch > 0)
        if improved:
            (progress.best, progress.best_map), progress.best_epoch = score, epoch
        self.run_logger.log_eval(epoch, progress.step, metrics, self.plan.validation)
        log.info("best recall1: %.5f in epoch %d", progress.best, progress.best_epoch)
        if self.finished and epoch < self.plan.epochs:
            log.info("No better recall1 in %d evaluations: the run ends here.", progress.evals_since_best)
        return improved

    def _save(self, names: Sequence[str], network: Candidate | None = None) -> None:
        self._losses.flush(self.step.scaler.scale_tensor)  # so that nothing is saved after a loss that was not finite
        self.state.progress.skipped = sorted(self.skipped)
        inference = network.inference() if network and self.group.rank == 0 else None
        classifier = self.state.classifier if LATEST in names else None
        try:
            head = self.folder.stage_head(classifier) if classifier else None
        except OutputError:
            others = [name for name in names if name != LATEST]
            if others:  # the network alone, which needs less room
                self.folder.save(others, self.state, inference)
                self.folder.finish()
            raise
        if self.group.rank == 0:
            self.folder.save(names, self.state, inference, head)
        if LATEST in names:
            self._saved_at, self._saved_step = time.monotonic(), self.state.progress.step

    def _train_epoch(self, epoch: int) -> None:
        self.state.model.train()
        for layer in self.frozen_bn_layers:
            layer.eval()
        self.run_logger.resume_clock()
        for batches, indices, waited in self._steps_of(epoch):
            rate = self._set_rate()
            self._seed_dropout()
            step = self.state.progress.step + 1
            log_due = step % self.plan.log_interval == 0
            terms = self.step(batches, measure=log_due)
            self._count_step()
            self._losses.add(epoch + 1, step, rate, indices, terms, waited, self.step.scaler.skipped)
            if log_due:
                self._losses.end_interval(self.step.scaler.scale_tensor, self.step.grad_norm)
            if self._save_is_due():
                self._save([LATEST])
            if self._votes.after_one() and not self.finished:
                self._end()
        self._losses.flush(self.step.scaler.scale_tensor)

    def _steps_of(self, epoch: int) -> Iterator[tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray, float]]:
        """For each step: its (images, labels), all its indices, and the seconds spent waiting for them."""
        accumulate = self.plan.accumulate
        stream = iter(self.batches(epoch, self.state.progress.step_in_epoch * accumulate))
        while True:
            began = time.perf_counter()
            group = [batch for _, batch in zip(range(accumulate), stream, strict=False)]
            if not group:
                return
            waited = time.perf_counter() - began
            indices = np.concatenate([i for i, _ in group])
            yield [(images, self.labels[i]) for i, images in group], indices, waited

    def _seed_dropout(self) -> None:
        """Dropout draws from Paddle's generator. Seeded by step, a resumed run repeats the uninterrupted one."""
        key = (self.plan.seed, self.state.progress.step, 3, self.group.rank)
        paddle.seed(int(np.random.default_rng(key).integers(2**31)))

    def _count_step(self) -> None:
        progress = self.state.progress
        progress.step += 1
        progress.step_in_epoch += 1
        if self.state.ema:
            self.state.ema.update(self.state.raw_weights(), progress.step)

    def _set_rate(self) -> float:
        plan = self.plan
        rate = warmup_cosine(
            plan.learning_rate, self.state.progress.step, plan.steps_per_epoch, plan.epochs, plan.warmup_epochs
        )
        self.state.optimizer.set_lr(rate)
        return rate

    def _save_is_due(self) -> bool:
        minutes = self.plan.save_interval_minutes
        if minutes is None:
            return False
        due = time.monotonic() - self._saved_at > 60 * minutes
        if self.state.classifier is None or self.group.size == 1:
            return due  # by this rank's own clock: no rank waits for another
        return self.state.progress.step % self.plan.log_interval == 0 and self.group.any_rank(due)

    def _end(self) -> NoReturn:
        """After a signal to any rank: save and raise Interrupted, on all ranks at the same step."""
        heartbeat.stop()
        progress = self.state.progress
        if self._saved_step != progress.step:
            self._save([LATEST])
        self.folder.finish()
        raise Interrupted(
            f"Interrupted in epoch {min(progress.epoch + 1, self.plan.epochs)} of {self.plan.epochs}, "
            f"after step {progress.step}; everything is saved in {self.folder.root / LATEST}.",
            where="train",
            fix=f"Go on with: {self.resume_command}",
        )


def _checkpoint_names(epoch: int, improved: bool, save: bool, latest: bool) -> list[str]:
    """The names under which an epoch is saved, in order.

    The best comes first: a run killed in between makes it again when `latest` is resumed.
    """
    names = [BEST] if improved else []
    if latest:
        names.append(LATEST)
    if save:
        names.append(epoch_name(epoch))
    return names
