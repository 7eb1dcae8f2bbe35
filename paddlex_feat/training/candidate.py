"""The network between two epochs: what an evaluation measures and a checkpoint saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paddle

from paddlex_feat.errors import Interrupted
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.models.weights import HEAD
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.votes import Votes

_STATISTICS = ("._mean", "._variance")  # of BatchNorm: the only weights that differ among the ranks


class Candidate:
    """Weights at one moment, and their inference directory once it is needed.

    Attributes:
        weights: float32 tensors by name, on their device.
    """

    def __init__(
        self, weights: dict[str, paddle.Tensor], exporter: Exporter, group: ProcessGroup, folder: Path, votes: Votes
    ):
        self.weights = weights
        self._exporter = exporter
        self._group = group
        self._folder = folder
        self._votes = votes
        self._written = False

    def share(self) -> None:
        """Broadcast BatchNorm's statistics from rank 0; all other weights are equal on all ranks. All ranks call it."""
        names = [name for name in self.weights if name.endswith(_STATISTICS)]
        tensors = self._group.broadcast_tensors([self.weights[name] for name in names])
        self.weights = {**self.weights, **dict(zip(names, tensors, strict=True))}

    def inference(self) -> Path:
        """The inference directory; the first call writes it. It lives as long as the block of `candidate`."""
        if not self._written:
            weights = {name: t.numpy() for name, t in self.weights.items() if not name.startswith(HEAD)}
            self._exporter.write(weights, self._folder)
            self._written = True
        return self._folder

    def look(self) -> None:
        """Raise Interrupted, on all ranks alike, if one was told to end; all call it after each batch of images."""
        if self._votes.after_one():
            raise Interrupted("Interrupted during an evaluation.", where="train")


@contextmanager
def candidate(
    weights: dict[str, paddle.Tensor], exporter: Exporter, group: ProcessGroup, root: Path, votes: Votes
) -> Iterator[Candidate]:
    """A network with these weights. Rank 0 exports into the run's own folder `root`: checkpoints share the files."""
    with TemporaryFolder(root if group.rank == 0 else None) as temporary:
        yield Candidate(weights, exporter, group, temporary, votes)
