"""Batches of classes that the network confuses, for Train.hard_classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from paddlex_feat.config.parts import GivesClassVectors
from paddlex_feat.config.schema import Config
from paddlex_feat.data.samplers import PKSampler, Sampler
from paddlex_feat.errors import ConfigError
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.checkpoint import TrainingState
from paddlex_feat.training.class_neighbours import nearest_classes

log = logging.getLogger(__name__)


class HardClasses:
    """(epoch, first batch) -> image indices of the epoch's batches, as `train_data.Loader` draws them.

    The table of neighbours is made from the class vectors at the beginning of an epoch. Checkpoints hold it: in the
    middle of an epoch the vectors are no longer those it was made from.
    """

    def __init__(self, state: TrainingState, source: GivesClassVectors, sampler: PKSampler, group: ProcessGroup):
        self._state, self._source, self._sampler, self._group = state, source, sampler, group
        self._epoch: int | None = None  # of the table; the same epoch may be drawn again

    def __call__(self, epoch: int, first: int) -> Iterator[np.ndarray]:
        """The batches of an epoch, all of them; the first call for an epoch is made by all ranks."""
        shape = self._sampler.num_classes, self._sampler.classes_per_batch - 1
        table = self._state.neighbours
        resumed = self._epoch is None and first > 0 and table is not None and table.shape == shape
        if table is None or not (resumed or epoch == self._epoch):
            vectors = self._source.class_vectors()[: shape[0]]  # the classifier may be wider
            table = self._state.neighbours = self._group.broadcast(nearest_classes(vectors, shape[1]))
        self._epoch = epoch
        return self._sampler.epoch(epoch, table)


def hard_classes_of(config: Config, state: TrainingState, sampler: Sampler, group: ProcessGroup) -> HardClasses | None:
    """What draws the batches of this run, None if that is the sampler alone.

    Raises:
        ConfigError: nothing that is trained has class vectors.
    """
    if config.Train.hard_classes and isinstance(sampler, PKSampler):
        text = "Train.hard_classes: %d of the %d classes of a batch are the nearest of the others."
        level = logging.INFO if sampler.hard_per_batch else logging.WARNING
        log.log(level, text, sampler.hard_per_batch, sampler.classes_per_batch)
    if not isinstance(sampler, PKSampler) or not sampler.hard_per_batch:
        state.neighbours = None  # perhaps that of a resumed run
        return None
    head = state.model.head if state.criterion.needs_logits else None  # else it stays as it was initialised
    found = [layer for layer in (head, *state.criterion.losses.values()) if isinstance(layer, GivesClassVectors)]
    if not found:
        raise ConfigError(
            "hard_classes needs class vectors, and no trained head or loss has any.",
            where="Train.hard_classes",
            fix="Use -o Train.hard_classes=0, cross_entropy with a head of this package and without "
            "Model.head_sample, or the loss proxy_anchor.",
            code="hard-classes-without-vectors",
        )
    return HardClasses(state, found[0], sampler, group)
