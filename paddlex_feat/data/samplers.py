"""Samplers: which images form a batch. A sampler is a pure function of (seed, epoch, rank)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from paddlex_feat.data.images.source import file_of
from paddlex_feat.data.lists.columns import Files
from paddlex_feat.errors import ConfigError


def pk_error(
    num_classes: int, batch_size: int, samples_per_class: int, title: str = "train.txt"
) -> tuple[str, str] | None:
    """Find out why P x K sampling cannot fill a batch.

    Args:
        num_classes: classes of the training images.
        batch_size: P * K.
        samples_per_class: K.
        title: of the list of the training images.

    Returns:
        What is wrong, and what to do; None if a batch can be filled.
    """
    k = samples_per_class
    largest = num_classes * k
    fit = max(k, min(batch_size // k * k, largest))
    fix = f"Use -o Train.batch_size={fit}, the largest that fits" + ("." if fit <= largest else ", with more classes.")
    if batch_size % k:
        return f"Train.batch_size {batch_size} is not a multiple of Train.samples_per_class {k}.", fix
    if largest < batch_size:
        return (
            f"Train.batch_size {batch_size} needs {batch_size // k} classes of {k} images; "
            f"{title} has {num_classes} classes.",
            fix,
        )
    return None


class PKSampler:
    """Batches of P classes with K images each.

    Classes are drawn without replacement, then K images of each: without replacement where the
    class has K, else with. Batches are independent draws; an epoch has as many as a pass over
    the data would have. If a batch is to have hard classes, fewer are drawn, and these bring their
    neighbours along: see `with_neighbours`.

    Args:
        labels: class of every image, any integers.
        batch_size: P * K.
        samples_per_class: K.
        seed: together with the epoch and the rank it determines every draw.
        rank: of this process; each process draws its own batches, and they share an epoch.
        size: number of processes.
        uniform: draw all classes with the same probability, not in proportion to their size.
        hard_classes: share of the P classes that are neighbours of the others; at least one class is drawn.

    Attributes:
        num_classes: number of classes.
        classes_per_batch: P.
        hard_per_batch: how many of them are neighbours of the others.

    Raises:
        ConfigError: a batch cannot be filled.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        batch_size: int,
        samples_per_class: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        uniform: bool = False,
        hard_classes: float = 0.0,
    ):
        _, inverse, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        error = pk_error(len(counts), batch_size, samples_per_class)
        if error:
            raise ConfigError(error[0], where="Train.batch_size", fix=error[1], code="batch-impossible")
        self._members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(counts)[:-1])
        self._probability = np.full(len(counts), 1 / len(counts)) if uniform else counts / counts.sum()
        self._bounds = _cumulated(self._probability)
        self.num_classes = len(counts)
        self.classes_per_batch = batch_size // samples_per_class
        self.hard_per_batch = min(math.floor(hard_classes * self.classes_per_batch + 0.5), self.classes_per_batch - 1)
        self._k = samples_per_class
        self._key = (seed, rank)
        self.batches_per_epoch = math.ceil(math.ceil(len(inverse) / size) / batch_size)

    def epoch(self, number: int, neighbours: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The batches of an epoch, each int64 [batch_size] of image indices, drawn as they are asked for.

        Args:
            number: of the epoch.
            neighbours: the nearest other classes of each class, nearest first, int64 [num_classes, P - 1]; without
                them there are no hard classes. Classes are counted in the order of their labels.
        """
        seed, rank = self._key
        rng = np.random.default_rng((seed, number, 1, rank))
        return (self._draw(rng, neighbours) for _ in range(self.batches_per_epoch))

    def _draw(self, rng: np.random.Generator, neighbours: np.ndarray | None) -> np.ndarray:
        groups, count = [], self.classes_per_batch
        classes = self._draw_classes(rng, count if neighbours is None else count - self.hard_per_batch)
        for c in classes if neighbours is None else with_neighbours(classes, neighbours, count):
            members = self._members[c]
            groups.append(rng.choice(members, self._k, replace=len(members) < self._k))
        return np.concatenate(groups)

    def _draw_classes(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw the same classes as `rng.choice(classes, count, replace=False, p=…)`, faster.

        Draw as many, keep the first of each class, and draw the missing ones among the others. NumPy goes over all
        classes for each batch: with 200,000 classes that takes a minute in an epoch of a million images.
        """
        drawn, left, bounds = np.empty(0, np.int64), self._probability, self._bounds
        while len(drawn) < count:
            if len(drawn):
                left = left.copy()
                left[drawn] = 0
                bounds = _cumulated(left)
            found = bounds.searchsorted(rng.random(count - len(drawn)), side="right")
            drawn = np.concatenate([drawn, found[np.sort(np.unique(found, return_index=True)[1])]])
        return drawn


def with_neighbours(classes: np.ndarray, neighbours: np.ndarray, count: int) -> np.ndarray:
    """Fill a batch with the nearest classes of those in it.

    In turn, each of `classes` adds its nearest class that is not there yet, until there are `count`. Classes near each
    other by their vectors: as in Suh et al., "Stochastic Class-Based Hard Example Mining", CVPR 2019.

    Args:
        classes: drawn, int64 [A], A >= 1.
        neighbours: the nearest other classes of each class, nearest first, int64 [C, at least count - 1]: with as many
            no class can run out of them.
        count: classes of the batch.

    Returns:
        `classes`, then the added ones, int64 [count].
    """
    found = dict.fromkeys(classes.tolist())
    lists = [iter(neighbours[c].tolist()) for c in classes]
    while len(found) < count:
        for nearest in lists[: count - len(found)]:
            found[next(c for c in nearest if c not in found)] = None
    return np.array(list(found), np.int64)


def _cumulated(probability: np.ndarray) -> np.ndarray:
    total = np.cumsum(probability)
    bounds: np.ndarray = total / total[-1]
    return bounds


class ShuffleSampler:
    """Every image once an epoch in random order; the last batch may be smaller.

    Several processes share one order, each taking every size-th image. If its length is not a multiple of their number,
    the order is continued from its start, so that all have the same number of images.

    Args:
        labels: class of every image; only their number counts.
        batch_size: images of a batch.
        seed: together with the epoch it determines the order.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, labels: Sequence[int] | np.ndarray, batch_size: int, seed: int, rank: int = 0, size: int = 1):
        self._n = len(labels)
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._size = rank, size
        self._share = -(-self._n // size)
        self.batches_per_epoch = -(-self._share // batch_size)

    def epoch(self, number: int) -> Iterator[np.ndarray]:
        """The batches of an epoch, each int64 [<= batch_size] of image indices."""
        order = np.random.default_rng((self._seed, number, 1)).permutation(self._n)
        own = np.resize(order, self._share * self._size)[self._rank :: self._size]
        return (own[i : i + self._batch_size] for i in range(0, self._share, self._batch_size))


class WindowSampler:
    """Every image once an epoch, in an order that reads large files nearly from their beginning to their end.

    An epoch puts the blocks, as the images of a tar shard (`blocks_of`), into random order, and then moves each image
    by less than `window` places: image i of that order is sorted by i plus a random number of 0 to `window`. So at any
    time a pass reads within a stretch of two windows, and images that are further apart in a block than a window do
    not change places within an epoch. With a window as long as the list the order is nearly a shuffled one.

    Args:
        blocks: where blocks of images that lie together begin, from 0, and the number of images, int64 [B + 1].
        window: in images, at least 1.
        batch_size: images of a batch.
        seed: together with the epoch it determines the order.
        rank: of this process; as for ShuffleSampler.
        size: number of processes.
    """

    def __init__(self, blocks: np.ndarray, window: int, batch_size: int, seed: int, rank: int = 0, size: int = 1):
        self._blocks, self._window, self._seed = blocks, window, seed
        self._batch_size, self._rank, self._size = batch_size, rank, size
        self._share = -(-int(blocks[-1]) // size)
        self.batches_per_epoch = -(-self._share // batch_size)

    def epoch(self, number: int) -> Iterator[np.ndarray]:
        """The batches of an epoch, each int64 [<= batch_size] of image indices."""
        random = np.random.default_rng((self._seed, number, 2))
        starts, lengths = self._blocks[:-1], np.diff(self._blocks)
        drawn = random.permutation(len(starts))
        ends = np.cumsum(lengths[drawn])
        order = np.arange(ends[-1]) + np.repeat(starts[drawn] - (ends - lengths[drawn]), lengths[drawn])
        places = np.arange(len(order)) + random.uniform(0, self._window, len(order))
        order = order[np.argsort(places, kind="stable")]
        own = np.resize(order, self._share * self._size)[self._rank :: self._size]
        return (own[i : i + self._batch_size] for i in range(0, self._share, self._batch_size))


Sampler = PKSampler | ShuffleSampler | WindowSampler


def blocks_of(files: Sequence[str], window: int) -> np.ndarray:
    """Where blocks of a list begin, for WindowSampler: int64 [B + 1].

    A block are the images of a file, or of so many files in turn that there are at least `window` images.
    """
    if isinstance(files, Files):  # of an image each
        return np.array([*range(0, len(files), window), len(files)])
    bounds, before = [0], None
    for place, holder in enumerate(map(file_of, files)):
        if holder != before and place - bounds[-1] >= window:
            bounds.append(place)
        before = holder
    return np.array([*bounds, len(files)])


def build(
    labels: Sequence[int] | np.ndarray,
    batch_size: int,
    samples_per_class: int | None,
    seed: int,
    rank: int = 0,
    size: int = 1,
    uniform: bool = False,
    hard_classes: float = 0.0,
) -> PKSampler | ShuffleSampler:
    """A P x K sampler, or a shuffling one if samples_per_class is None. Arguments as of the classes."""
    if samples_per_class is None:
        return ShuffleSampler(labels, batch_size, seed, rank, size)
    return PKSampler(labels, batch_size, samples_per_class, seed, rank, size, uniform, hard_classes)
