"""Data of mode train, read before Paddle is imported: lists, classes, batches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.data import samplers
from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.augment.rand_augment import RandAugment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.images.source import grown
from paddlex_feat.data.lists.fingerprint import Fingerprint, fingerprint
from paddlex_feat.data.lists.holdout import hold_out
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.loading.loader import BATCHES_AHEAD, CorruptImageReplacer, training_batches
from paddlex_feat.data.loading.processes import HELD, DecodingProcesses, ProcessEnded
from paddlex_feat.errors import ConfigError, DatasetError
from paddlex_feat.evaluation.matches import find_self_pairs
from paddlex_feat.modes.build import preprocess_of
from paddlex_feat.modes.data import read_lists, require_images, self_pairs_of, warn_of_self_matches
from paddlex_feat.modes.parts import loss_terms
from paddlex_feat.modes.train_classes import require_classes_of
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime.cpu import memory_limit
from paddlex_feat.runtime.distributed import ProcessGroup

log = logging.getLogger(__name__)
MIN_PROCESSORS = 3  # for decoding processes; threads can use fewer processors fully
MAX_PROCESSES = 16
_PROCESS_BYTES = 50 * 2**20  # that a decoding process takes


@dataclass(frozen=True)
class Data:
    """What is trained on.

    Attributes:
        classes: the data set's label of each class index.
        labels: class index of every training image, int64 [images].
        num_classes: width of the classifier.
        bad: what replaces undecodable images, None if they stop the run.
        prints: identity of each list.
        own: pairs (query, gallery) that evaluation leaves out, int64 [P, 2]; None: none.
        held_out: the images of train.txt that are not trained on but choose the weights; None: gallery and query do.
    """

    lists: dict[str, ImageList]
    classes: list[int]
    labels: np.ndarray
    num_classes: int
    sampler: samplers.Sampler
    bad: CorruptImageReplacer | None
    prints: dict[str, Fingerprint]
    own: np.ndarray | None
    held_out: ImageList | None = None

    def evaluated(self) -> tuple[dict[str, ImageList], np.ndarray | None]:
        """The lists that weights are chosen on, and the pairs to leave out; of held-out images each is also a query."""
        if self.held_out is None:
            return self.lists, self.own
        lists = {"gallery": self.held_out, "query": self.held_out}
        return lists, find_self_pairs(self.held_out, self.held_out)


def read_data(config: Config, group: ProcessGroup, resumed: Path | None = None) -> Data:
    """Read the data set of a training and report what cannot work. Raises DatasetError, ConfigError.

    resumed: the checkpoint (.pdparams) to resume from. Its classes are compared first, because fewer classes may
        also break the batches.
    """
    settings = config.Train
    lists = read_lists(config)
    whole, held_out = lists, None
    if settings.validation == "split":
        lists, held_out = _hold_out(lists, settings)
    classes, labels = np.unique(lists["train"].labels, return_inverse=True)
    title = lists["train"].title
    if resumed is not None and group.rank == 0:
        require_classes_of(
            resumed, classes.tolist(), "Train.resume_path" if settings.resume_path else "Train.resume", title
        )
    if len(classes) == 1:
        raise DatasetError(
            f"All images of {title} have one label: there is nothing to tell apart.",
            where=lists["train"].source,
            fix="Add images of other classes.",
            code="one-class",
        )
    sampler = _sampler(settings, lists["train"], labels, group)
    own = self_pairs_of(config, lists)
    if group.rank == 0:
        warn_of_self_matches(config, lists)
    labels = labels.astype(np.int64)
    bad = CorruptImageReplacer(labels) if settings.skip_bad_images else None
    prints = {n: fingerprint(r.paths, r.files(), r.labels) for n, r in whole.items()}
    for name, found in prints.items():
        if not (bad and name == "train"):
            require_images(whole[name], found.missing)
    _warn_about_triplets(settings)
    num_classes = _num_classes(settings.num_classes, len(classes), title)
    return Data(lists, classes.tolist(), labels, num_classes, sampler, bad, prints, own, held_out)


def _sampler(settings: TrainSection, train: ImageList, labels: np.ndarray, group: ProcessGroup) -> samplers.Sampler:
    if settings.shuffle_window and settings.samples_per_class is None:
        window = settings.shuffle_window
        blocks = samplers.blocks_of(train.files(), window)
        return samplers.WindowSampler(blocks, window, settings.batch_size, settings.seed, group.rank, group.size)
    return samplers.build(
        labels,
        settings.batch_size,
        settings.samples_per_class,
        settings.seed,
        group.rank,
        group.size,
        settings.class_sampling == "uniform",
        settings.hard_classes,
    )


def _hold_out(lists: dict[str, ImageList], settings: TrainSection) -> tuple[dict[str, ImageList], ImageList]:
    """The lists with what is left of the training images, and the held-out images. Raises DatasetError."""
    trained, held_out = hold_out(lists["train"], settings.validation_percent, settings.validation_by, settings.seed)
    log.info(
        "Train.validation=split: %d of %d training images, of %d classes, are held out by %s to choose the weights.",
        len(held_out),
        len(lists["train"]),
        len(held_out.class_sizes()),
        settings.validation_by,
    )
    return {**lists, "train": trained}, held_out


def _warn_about_triplets(settings: TrainSection) -> None:
    """Warn if the batches suit no loss that compares their images."""
    names = " and ".join(t.spec.term for t in loss_terms(settings.loss) if t.weight and t.spec.mines_pairs)
    if not names:
        return
    if settings.samples_per_class is None:
        log.warning("Train.samples_per_class is null: shuffled batches hold few images of a class for %s.", names)
    elif settings.samples_per_class == settings.batch_size:
        log.warning("A batch holds one class: %s has no negatives. Raise Train.batch_size.", names)


def _num_classes(wanted: int | str | None, found: int, title: str) -> int:
    if not isinstance(wanted, int) or wanted == found:
        return found
    if wanted < found:
        raise ConfigError(
            f"{title} has {found} classes, the classifier would have {wanted}.",
            where="Train.num_classes",
            fix=f"Use -o Train.num_classes=auto, or {found}.",
            code="classifier-too-narrow",
        )
    log.info("Train.num_classes is %d but %s has %d classes; the extra classes get no images.", wanted, title, found)
    return wanted


class Loader:
    """(epoch, first batch) -> batches of this rank, as the trainer takes them; a context manager that ends processes.

    Decoding processes start at once, while the network is built. Threads take over, with the same bytes, if processes
    cannot be used or one of them ends.

    Args:
        config: the configuration.
        data: what is trained on.
        worker: this process.
        draw: (epoch, first batch) -> indices of the images of all batches of the epoch; None: the sampler's.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        worker: Worker,
        draw: Callable[[int, int], Iterator[np.ndarray]] | None = None,
    ):
        self._draw = draw or (lambda epoch, first: data.sampler.epoch(epoch))
        settings = self._settings = config.Train
        options = settings.augment.model_dump()
        margin = options.pop("box_margin")
        self._augment = Augment(**{**options, "rand_augment": RandAugment(**options["rand_augment"])})
        self._preprocess = self._preprocess_of(config, 0)
        self._config = config
        files = data.lists["train"].files()
        self._files = [grown(file, margin) for file in files] if margin else files
        self._data, self._worker = data, worker
        self._cache = _cache(settings.cache_mib * 2**20, worker.group)
        self._processes: DecodingProcesses | None = None
        self._count = _processes(settings, worker)
        self._start()

    @staticmethod
    def _preprocess_of(config: Config, epoch: int) -> Preprocess:
        return dataclasses.replace(preprocess_of(config), size=config.Train.training_size(epoch))

    def _start(self) -> None:
        """Start the decoding processes, if there are to be any."""
        if not self._count:
            return
        try:
            self._processes = DecodingProcesses(
                self._count, self._settings.batch_size, self._augment, self._preprocess, self._cache
            )
        except OSError as error:
            _warn_of_threads(error)

    def __call__(self, epoch: int, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch from number `first` on."""
        worker, bad = self._worker, self._data.bad
        key = (self._settings.seed, epoch, worker.group.rank)
        preprocess = self._preprocess_of(self._config, epoch)
        if preprocess != self._preprocess:  # the memory that the processes share is made for one size
            self._preprocess, restart = preprocess, self._processes is not None
            self.close()
            if restart:
                self._start()
        if self._processes is not None:
            try:
                self._processes.wait_until_ready()
                for batch in self._processes.batches(self._draw(epoch, first), self._files, key, first, bad):
                    yield batch
                    first += 1
                return
            except (OSError, ProcessEnded) as error:
                _warn_of_threads(error)
                self.close()
        own, workers = self._draw(epoch, first), worker.decoding_threads
        yield from training_batches(
            own, self._files, self._preprocess, self._augment, key, workers, first, bad, self._cache
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding processes."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None


def _processes(settings: TrainSection, worker: Worker) -> int:
    """Number of decoding processes, 0 for threads."""
    auto = worker.device.startswith("gpu") and worker.processors >= MIN_PROCESSORS
    if settings.loader == "threads" or (settings.loader == "auto" and not auto):
        return 0
    count = settings.num_workers or max(1, min(worker.processors - 1, MAX_PROCESSES))
    ring = (
        (BATCHES_AHEAD + 1 + HELD) * settings.batch_size * max(settings.input_size, settings.final_size or 0) ** 2 * 3
    )
    share = memory_limit() // worker.group.local_size
    if ring + count * _PROCESS_BYTES > share // 2:  # the system would kill somebody, not refuse
        reason = f"they would take more than half of this process's {share >> 20} MiB"
        _warn_of_threads(OSError(None, reason))
        return 0
    return count


def _warn_of_threads(error: OSError | ProcessEnded) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    log.warning("Decoding processes cannot be used (%s): threads decode instead.", reason)


def _cache(limit: int, group: ProcessGroup) -> ImageCache:
    """The cache that the ranks of a machine share, or a rank's part of it where they cannot."""
    if group.local_size == 1 or not limit:
        return ImageCache(limit)
    first = ImageCache(limit) if not group.local_rank else None
    addresses = group.all_gather_rows(np.array([first.address() if first else (0, 0, 0)], np.int64))
    if first is not None:
        return first
    address = addresses[group.rank - group.local_rank][0].tolist()
    return ImageCache.attached(limit, *address) or ImageCache(limit // group.local_size)
