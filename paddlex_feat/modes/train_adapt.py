"""Train.method adapt: fit an affine map of the start's features, and put it into the model if it is better."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddlex_feat.config import load as config_load
from paddlex_feat.config.schema import Config
from paddlex_feat.data.lists.fingerprint import Fingerprint, fingerprint
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError
from paddlex_feat.evaluation.embed import embed
from paddlex_feat.fileio.atomic import write_json
from paddlex_feat.fileio.atomic_folder import atomic_folder
from paddlex_feat.fileio.backups import write_with_backup
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.inference.export.convert import require_forms
from paddlex_feat.inference.extractor import FeatureExtractor, unit_rows
from paddlex_feat.modes.adapt_dimension import require_dimension
from paddlex_feat.modes.build import evaluator_of
from paddlex_feat.modes.data import (
    comparison_images,
    read_lists,
    require_images,
    self_pairs_of,
    warn_of_self_matches,
    write_class_names,
)
from paddlex_feat.modes.worker import Worker, init_worker
from paddlex_feat.provenance import run_record
from paddlex_feat.runtime.device import first_device
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle
from paddlex_feat.training.adaptation import record as adaptation_file
from paddlex_feat.training.adaptation.choose import Choice, Features, choose_among
from paddlex_feat.training.adaptation.maps import MIRRORED, principal
from paddlex_feat.training.adaptation.record import Record

if TYPE_CHECKING:  # it imports Paddle, which waits until data and configuration are known to be right
    from paddlex_feat.evaluation.evaluator import Evaluator
    from paddlex_feat.modes.adapt_start import Start

log = logging.getLogger(__name__)
Metrics = dict[str, float]
Map = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Data:
    """The lists of an adaptation.

    Attributes:
        classes: the data set's label of each class index.
        labels: class index of every training image, int64 [images].
        prints: identity of each list.
        own: pairs (query, gallery) that evaluation leaves out, int64 [P, 2]; None: none.
    """

    lists: dict[str, ImageList]
    classes: list[int]
    labels: np.ndarray
    prints: dict[str, Fingerprint]
    own: np.ndarray | None


def run(config: Config, output: Path) -> dict[str, Any]:
    """Adapt the model of Train.pretrain_weight_path to the training images.

    Writes best_model/, config.yaml, class_map.json and run.json, and returns the content of train_result.json. Nothing
    is drawn at random but the folds of classes, from Train.seed, so a second run gives the same bytes.
    """
    require_forms(config.Export.format)
    data = _read(config)
    prepare_paddle(config.Global.threads)
    device = first_device(config.Global.device)
    single = config.model_copy(update={"Global": config.Global.model_copy(update={"device": device})})
    worker = init_worker(single, ProcessGroup(), config.Train.num_workers)

    from paddlex_feat.modes.adapt_start import start_of
    from paddlex_feat.training.run_folder import RunFolder

    start = start_of(config)
    folder = RunFolder(output, config.Train.keep_checkpoints)
    folder.start_new()
    _describe(config, output, data, worker)
    adapted = _adapt(config, output, data, worker, start)
    result = folder.result(config.Global.model, adapted["metrics"]["recall1"])
    return {**result, "adaptation": adapted}


def _read(config: Config) -> Data:
    """Read the lists. Raises DatasetError for what cannot work."""
    lists = read_lists(config)
    classes, labels = np.unique(lists["train"].labels, return_inverse=True)
    if len(classes) == 1:
        raise DatasetError(
            f"All images of {lists['train'].title} have one label: there is nothing to tell apart.",
            where=lists["train"].source,
            fix="Add images of other classes.",
            code="one-class",
        )
    own = self_pairs_of(config, lists)
    warn_of_self_matches(config, lists)
    prints = {name: fingerprint(r.paths, r.files(), r.labels) for name, r in lists.items()}
    for name, found in prints.items():
        require_images(lists[name], found.missing)
    return Data(lists, classes.tolist(), labels.astype(np.int64), prints, own)


def _describe(config: Config, output: Path, data: Data, worker: Worker) -> None:
    prints = {name: {"images": p.images, "sha256": p.sha256} for name, p in data.prints.items()}
    write_with_backup(output / "config.yaml", config_load.dump(config_load.without_resume(config)).encode())
    write_json(output / "class_map.json", {str(index): label for index, label in enumerate(data.classes)})
    trained = data.lists["train"]
    write_class_names(output, trained)
    run_record.write_start(output, run_record.command_line(), worker.device, "oneDNN", 1, prints, origin=trained.origin)


def _adapt(config: Config, output: Path, data: Data, worker: Worker, start: Start) -> dict[str, Any]:
    """Measure the start, fit, write best_model and measure it; return what train_result.json tells about it."""
    with TemporaryFolder(output) as folder:
        start.write_graph(folder)
        extract = FeatureExtractor(folder, worker.device, worker.threads, raw=True)
        evaluation = _Evaluation(evaluator_of(config, data.lists, data.own, worker, output), extract)
        pooling = _Pooling(start.exponents)
        before = evaluation.metrics(pooling.features)
        log.info("Start: %s", _text(before))
        files = data.lists["train"].files()
        views = pooling.views(*training_features(extract, files, config.Evaluate.batch_size, worker))
        features = views[0][0]
        require_dimension(config.Export.dimension, features.shape[1])
        number, choice = choose_among(views, data.labels, config.Train.seed, config.Export.dimension)
        _log_table(choice, start.exponents, number)
        writer = _Writer(config, worker, start, extract, evaluation)
        with atomic_folder(output / "best_model") as best:
            delivered = _deliver(writer, best, choice, views, number, before)
    log.info("%s model: %s", "Adapted" if delivered.applied else "Unchanged", _text(delivered.metrics))
    return {
        "applied": delivered.applied,
        "reason": delivered.reason,
        "start": before,
        "metrics": delivered.metrics,
        "dimension": config.Export.dimension or features.shape[1],
        "images": len(data.labels),
        "classes": len(data.classes),
        "exponent": start.exponents[delivered.number] if start.exponents else None,
        "chosen": asdict(choice.candidate),
        "candidates": [asdict(candidate) for candidate in choice.candidates],
    }


def training_features(
    extract: FeatureExtractor, files: Sequence[str], batch_size: int, worker: Worker
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the features of images and of their mirror images, float32 [N, D] each, not normalized.

    Each image is decoded once. Of more than MIRRORED images no mirror images are computed: None. Raises ImageError, and
    EvaluationError for features that are not finite.
    """
    views = 2 if len(files) <= MIRRORED else 1

    class Views:
        preprocess = extract.preprocess

        def __call__(self, images: np.ndarray) -> np.ndarray:
            seen = (images, np.ascontiguousarray(images[:, :, ::-1]))[:views]
            return np.concatenate([extract.raw(view) for view in seen], axis=1)

    found = np.split(embed(Views(), files, batch_size, worker.decoding_threads), views, axis=1)
    return found[0], found[1] if views == 2 else None


@dataclass(frozen=True)
class _Pooling:
    """Features by several exponents of the pooling, side by side; by one where there are none.

    Attributes:
        exponents: as of `Start`.
    """

    exponents: tuple[float, ...]

    def features(self, rows: np.ndarray, number: int = 0) -> np.ndarray:
        """Those by one exponent: [N, P * D] -> [N, D]."""
        return np.split(rows, max(1, len(self.exponents)), axis=1)[number]

    def views(self, features: np.ndarray, mirrored: np.ndarray | None) -> list[Features]:
        """The features by each exponent, and those of mirror images."""
        return [
            (self.features(features, n), None if mirrored is None else self.features(mirrored, n))
            for n in range(max(1, len(self.exponents)))
        ]


class _Evaluation:
    """Evaluates maps of the start's features, which are computed once.

    Args:
        evaluator: of the data set.
        extract: pixels to features that are not normalized.
    """

    def __init__(self, evaluator: Evaluator, extract: FeatureExtractor):
        self._evaluator = evaluator
        self._features = evaluator.embed(extract)

    def metrics(self, function: Map) -> Metrics:
        """The metrics of the features after a map, float64 [n, P * D] -> [n, D'], of rows at unit length."""

        def unit(rows: np.ndarray) -> np.ndarray:
            return unit_rows(function(rows.astype(np.float64)).astype(np.float32))

        return self._evaluator.measure(self._evaluator.mapped(self._features, unit)).main_metrics()


@dataclass(frozen=True)
class _Delivered:
    applied: bool
    metrics: Metrics
    reason: str
    number: int = 0  # of the exponent


@dataclass(frozen=True)
class _Writer:
    """Writes, checks and measures best_model."""

    config: Config
    worker: Worker
    start: Start
    extract: FeatureExtractor
    evaluation: _Evaluation

    def write(self, folder: Path, record: Record, number: int = 0) -> Metrics:
        """Write best_model's files into `folder`; return the metrics of the map that its inference model is."""
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        exponents = self.start.exponents
        digest = self.start.write_best(folder, record, exponents[number] if exponents else None)
        self._check(folder / "inference", record, number)
        adaptation_file.write(folder / adaptation_file.NAME, replace(record, weights=digest))
        metrics = self.evaluation.metrics(partial(self._mapped, record, number))
        write_json(folder / "best_model.info.json", {"metric": metrics["recall1"], "epoch": 0})
        return metrics

    def _mapped(self, record: Record, number: int, rows: np.ndarray) -> np.ndarray:
        """What the inference model gives before normalization, of the start's: float64 [n, P * D] -> [n, D']."""
        rows = _Pooling(self.start.exponents).features(rows, number)
        rows = record.map(rows) if record.folded else rows
        dimension = self.config.Export.dimension
        return record.cut(dimension)(rows) if dimension else rows

    def _check(self, folder: Path, record: Record, number: int) -> None:
        """Raise WeightsError if a form of the inference model gives anything but the map of the start's features."""
        from paddlex_feat.inference.export.exporter import require_agreement

        config, worker = self.config, self.worker
        images, source = comparison_images(config, self.extract.preprocess)
        expected = self._mapped(record, number, self.extract.raw(images).astype(np.float64))
        for form in config.Export.format:
            device = worker.device if form == "paddle" else "cpu"
            found = FeatureExtractor(folder, device, worker.threads, engine=form, unit=True)(images)
            difference = float(np.abs(found - unit_rows(expected.astype(np.float32))).max())
            log.info("Inference model (%s): largest difference to the map on %s %.2e", form, source, difference)
            require_agreement(difference, config.Export.tolerance, folder, form)


def _deliver(
    writer: _Writer, folder: Path, choice: Choice, views: list[Features], number: int, before: Metrics
) -> _Delivered:
    """Write the adapted model if cross-validation prefers it and the queries do not contradict, else the start."""
    metrics = None
    adapted = None if number == 0 else _directions(views[number])
    if choice.map is not None and choice.variance is not None:
        adapted = Record(choice.map, choice.variance, folded=True)
    if adapted is not None:
        metrics = writer.write(folder, adapted, number)
        if metrics["recall1"] >= before["recall1"]:
            return _Delivered(True, metrics, choice.reason, number)
    unchanged = _directions(views[0])
    own = writer.write(folder, unchanged)
    if metrics is None or adapted is None:
        return _Delivered(False, own, choice.reason)
    if metrics["recall1"] > own["recall1"]:  # both cut to Export.dimension, which costs the start more
        return _Delivered(True, writer.write(folder, adapted, number), choice.reason, number)
    reason = (
        f"Cross-validation prefers {choice.candidate.kind} {choice.candidate.strength:g}, but recall1 of the queries "
        f"falls from {before['recall1']:.5f} to {metrics['recall1']:.5f}: it is not applied."
    )
    log.warning("%s", reason)
    return _Delivered(False, own, reason)


def _directions(features: Features) -> Record:
    """No map; the directions by which the features themselves are cut."""
    return Record(*principal(features[0]), folded=False)


def _log_table(choice: Choice, exponents: tuple[float, ...], number: int) -> None:
    if len(exponents) > 1:
        compared = ", ".join(f"{exponent:g}" for exponent in exponents)
        log.info("Pooling: of the exponents %s, %g is taken.", compared, exponents[number])
    log.info("Maps, measured on classes that they were not fitted to:")
    for c in choice.candidates:
        text = "  %-8s %4g  recall1 with one image of the class %.4f (%+.4f, error %.4f), with all others %.4f"
        log.info(text, c.kind, c.strength, c.score, c.gain, c.noise, c.recall1)
    log.info("Chosen: %s %g. %s", choice.candidate.kind, choice.candidate.strength, choice.reason)


def _text(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.5f}" for name, value in metrics.items())
