"""Averages of weights at the end of a run: of its last epochs, and with the start, chosen by measurement.

Averages of the last checkpoints: Izmailov et al., "Averaging Weights Leads to Wider Optima", arXiv:1803.05407. With the
start: Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), arXiv:2109.01903. Statistics of BatchNorm
are averaged like all other tensors: checkpoints this near to each other, or with frozen statistics, have nearly the
same ones, and the measurement decides in any case.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import paddle

from paddlex_feat.models import weights
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.ema import Ema
from paddlex_feat.training.run_folder import BEST, LATEST, epoch_name
from paddlex_feat.training.trainer import METRICS, Trainer

log = logging.getLogger(__name__)
Weights = Mapping[str, np.ndarray]
START_SHARES = (0.25, 0.5, 0.75)


def mean_of(parts: Sequence[Weights]) -> dict[str, np.ndarray]:
    """Mean of tensors by name, float32, added up in float64."""
    return {n: np.asarray(np.mean([part[n] for part in parts], axis=0, dtype=np.float64), np.float32) for n in parts[0]}


def mix(start: Weights, end: Weights, share: float) -> dict[str, np.ndarray]:
    """Return share * start + (1 - share) * end; what `start` lacks, such as the head, is that of `end`."""
    return {n: (share * start[n] + (1 - share) * t).astype(np.float32) if n in start else t for n, t in end.items()}


class Averaging:
    """Callable: measures averages after the last epoch; the best of them becomes best_model if it is better than that.

    A run that is killed meanwhile does it again when it is resumed. Progress, moving average and raw weights stay those
    of the last epoch, so that a longer run goes on from there.

    Args:
        trainer: of the run. All its epoch_N checkpoints that still exist can take part.
        last: how many of the last epochs are averaged; half of them are a candidate too. Less than 2: none.
        start: the weights that training started from, to be mixed with the end; None: they are not.
    """

    def __init__(self, trainer: Trainer, last: int, start: Weights | None):
        self._trainer, self._last, self._start = trainer, last, start

    def __call__(self) -> None:
        """All ranks call it. Raises Interrupted, once everything is as it was after the last epoch."""
        trainer = self._trainer
        before, ema = replace(trainer.state.progress), trainer.state.ema
        try:
            improved = self._choose()
        finally:
            trainer.state.ema = ema
            trainer.state.progress.last_recall1 = before.last_recall1
        if improved:
            with trainer.candidate_by(trainer.exporter) as network:
                self._save(LATEST, network)  # which knows the new best
        else:
            log.info("No average of weights is better than epoch %d.", before.best_epoch)

    def _choose(self) -> bool:
        trainer, improved = self._trainer, False
        trainer.folder.finish()
        end, end_score = self._weights_of(1), self._recorded()
        kept = int(trainer.group.broadcast(np.array([len(trainer.folder.scores)], np.int32))[0])
        most = min(self._last, kept)
        for count in (n for n in dict.fromkeys((most, -(-most // 2))) if n > 1):
            averaged = self._weights_of(count)
            score, better = self._measure(averaged, f"mean of the last {count} epochs")
            improved |= better
            if score > end_score:
                end, end_score = averaged, score
        for share in START_SHARES if self._start is not None else ():
            mixed = mix(self._start or {}, end, share)
            improved |= self._measure(mixed, f"{share:.0%} start, {1 - share:.0%} end")[1]
        return improved

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

    def _measure(self, values: Weights, what: str) -> tuple[float, bool]:
        """recall1 of weights, and whether it is a new best, which is saved."""
        trainer = self._trainer
        state, progress, group = trainer.state, trainer.state.progress, trainer.group
        state.ema = Ema({name: paddle.to_tensor(value) for name, value in values.items()}, decay=0.5)
        with trainer.candidate_by(trainer.exporter) as network:
            own = trainer.evaluate(network)
            metrics = group.broadcast(np.array([own[name] for name in METRICS], np.float64)).tolist()
            text = ", ".join(f"{name}: {value:.5f}" for name, value in zip(METRICS, metrics, strict=True))
            log.info("[Eval][%s]%s", what, text)
            better = metrics[0] > progress.best
            if better:
                progress.best = progress.last_recall1 = metrics[0]
                progress.best_epoch = progress.epoch
                self._save(BEST, network)
        return metrics[0], better
