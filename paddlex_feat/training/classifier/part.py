"""Which classes each process of a job holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paddlex_feat.errors import TrainingError
from paddlex_feat.runtime.distributed import ProcessGroup


@dataclass(frozen=True)
class Part:
    """The classes of one process: `first` to `first + count - 1` of `classes`.

    Attributes:
        classes: of the whole job.
        group: the processes, which hold equally many each, but for the last ones.
    """

    classes: int
    group: ProcessGroup

    @property
    def size(self) -> int:
        """How many classes a process holds at most."""
        return -(-self.classes // self.group.size)

    @property
    def first(self) -> int:
        """The first class of this process."""
        return min(self.group.rank * self.size, self.classes)

    @property
    def count(self) -> int:
        """How many classes this process holds."""
        return min(self.size, self.classes - self.first)

    def drawn(self, rate: float) -> int:
        """How many of this process's classes a share is, rounded up."""
        return math.ceil(rate * self.count - 1e-9)

    def require_classes(self, labels: np.ndarray) -> None:
        """Raise TrainingError unless all are classes of the job."""
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if len(wrong):
            raise TrainingError(
                f"A batch holds the class {int(wrong[0])}, the classifier has {self.classes} classes, from 0.",
                where="Model.head_sample",
                fix="Give the classifier as many classes as the labels need with Train.num_classes.",
                code="class-out-of-range",
            )
