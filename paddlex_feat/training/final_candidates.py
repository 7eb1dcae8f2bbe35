"""What may be better than the last epoch: averages of weights, and a map of the features, chosen by measurement.

Averages of the last checkpoints: Izmailov et al., "Averaging Weights Leads to Wider Optima", arXiv:1803.05407. With the
start: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), arXiv:2109.01903. Statistics of BatchNorm
are averaged like all other tensors: checkpoints this near to each other, or with frozen statistics, have nearly the
same ones, and the measurement decides in any case.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from paddlex_feat.models import weights
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.delivery import describe_delivery
from paddlex_feat.training.ema import Ema
from paddlex_feat.training.run_folder import BEST, LATEST, epoch_name
from paddlex_feat.training.trainer import METRICS, Trainer

log = logging.getLogger(__name__)
Weights = Mapping[str, np.ndarray]
Adapt = Callable[[Weights], tuple[str, Weights] | None]
START_SHARES = (0.25, 0.5, 0.75)


def mean_of(parts: Sequence[Weights]) -> dict[str, np.ndarray]:
    """Mean of tensors by name, float32, added up in float64."""
    return {n: np.asarray(np.mean([part[n] for part in parts], axis=0, dtype=np.float64), np.float32) for n in parts[0]}


def mix(start: Weights, end: Weights, share: float) -> dict[str, np.ndarray]:
    """Return share * start + (1 - share) * end; what `start` lacks, such as the head, is that of `end`."""
    return {n: (share * start[n] + (1 - share) * t).astype(np.float32) if n in start else t for n, t in end.items()}


class FinalCandidates:
    """Callable: measures what may be better than the last epoch; the best becomes best_model if it is better than that.

    A run that is killed meanwhile does it again when it is resumed. Progress, moving average and raw weights stay those
    of the last epoch, so that a longer run goes on from there.

    Args:
        trainer: of the run. All its epoch_N checkpoints that still exist can take part.
        last: how many of the last epochs are averaged; half of them are a candidate too. Less than 2: none.
        start: gives the weights that training started from, to be mixed with the end; None: they are not.
        adapt: weights -> the name of a map of their features and the weights with it, if one seems better. It gets the
            best of the end and its averages.
    """

    def __init__(
        self, trainer: Trainer, last: int, start: Callable[[], Weights] | None = None, adapt: Adapt | None = None
    ):
        self._trainer, self._last, self._start, self._adapt = trainer, last, start, adapt
        self._improved = False

    def __call__(self) -> None:
        """All ranks call it. Raises Interrupted, once everything is as it was after the last epoch."""
        trainer, progress = self._trainer, self._trainer.state.progress
        before, self._improved = replace(progress), False
        try:
            self._measure_all()
        finally:
            progress.last_recall1 = before.last_recall1
        if self._improved:
            with trainer.candidate_by(trainer.exporter) as network:
                self._save(LATEST, network)  # which knows the new best
        else:
            log.info("No final candidate is better than %s.", describe_delivery(progress))

    def _measure_all(self) -> None:
        trainer = self._trainer
        trainer.folder.finish()
        end, end_score = self._weights_of(1), self._recorded()
        kept = int(trainer.group.broadcast(np.array([len(trainer.folder.scores)], np.int32))[0])
        most = min(self._last, kept)
        for count in (n for n in dict.fromkeys((most, -(-most // 2))) if n > 1):
            averaged = self._weights_of(count)
            score = self._measure(averaged, f"mean of the last {count} epochs")
            if score > end_score:
                end, end_score = averaged, score
        best, best_score, start = end, end_score, self._start() if self._start is not None else None
        for share in START_SHARES if start is not None else ():
            mixed = mix(start or {}, end, share)
            score = self._measure(mixed, f"{share:.0%} start, {1 - share:.0%} end")
            if score > best_score:
                best, best_score = mixed, score
        if self._adapt is not None:
            found = self._adapt(best)
            if found is not None:
                self._measure(found[1], f"map {found[0]}")

    def _save(self, name: str, network: Candidate) -> None:
        if self._trainer.group.rank == 0:
            self._trainer.folder.save([name], self._trainer.state, network.inference())

    def _recorded(self) -> float:
        """recall1 of the last epoch; -1 if it was not evaluated."""
        score = self._trainer.state.progress.last_recall1
        return -1.0 if score is None else score

    def _weights_of(self, count: int) -> dict[str, np.ndarray]:
        """Mean weights of the last `count` epochs that rank 0 has kept, on every rank."""
        trainer = self._trainer
        names = trainer.state.weights()
        found: dict[str, np.ndarray] = {n: np.zeros(t.shape, np.float32) for n, t in names.items()}
        if trainer.group.rank == 0:
            epochs = sorted(trainer.folder.scores)[-count:]
            places = [trainer.folder.root / epoch_name(n) / f"{epoch_name(n)}.pdparams" for n in epochs]
            found = mean_of([weights.read(place) for place in places])
        return {name: trainer.group.broadcast(found[name]) for name in names}

    def _measure(self, values: Weights, what: str) -> float:
        """recall1 of weights, which are saved if it is a new best."""
        trainer, progress = self._trainer, self._trainer.state.progress
        with trainer.candidate_by(trainer.exporter, values) as network:
            own = trainer.evaluate(network)
            metrics = trainer.group.broadcast(np.array([own[name] for name in METRICS], np.float64)).tolist()
            text = ", ".join(f"{name}: {value:.5f}" for name, value in zip(METRICS, metrics, strict=True))
            log.info("[Eval][%s]%s", what, text)
            if metrics[0] > progress.best:
                progress.best = progress.last_recall1 = metrics[0]
                progress.best_epoch, self._improved = progress.epoch, True
                self._save_best(network)
        return float(metrics[0])

    def _save_best(self, network: Candidate) -> None:
        """Save a network as best_model, with the raw weights of the last epoch beside it."""
        state = self._trainer.state
        ema = state.ema
        state.ema = Ema(network.weights, decay=0.5)
        try:
            self._save(BEST, network)
        finally:
            state.ema = ema
