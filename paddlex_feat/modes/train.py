"""Mode train."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddlex_feat import hub
from paddlex_feat.config import load as config_load
from paddlex_feat.config.schema import Config, LossSection
from paddlex_feat.dataset.records import ImageList, require_lists
from paddlex_feat.errors import ConfigError, DatasetError
from paddlex_feat.files import write_json, write_keeping
from paddlex_feat.modes.common import comparison_images, network_spec, preprocess_of
from paddlex_feat.pipeline import sampler as samplers
from paddlex_feat.pipeline.augment import Augment
from paddlex_feat.pipeline.loader import training_batches
from paddlex_feat.runtime import cpu_count, first_device, prepare_paddle, select_device

if TYPE_CHECKING:  # these import Paddle, which waits until data and configuration are known to be right
    from paddle.optimizer import Optimizer

    from paddlex_feat.inference.export import Exporter
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.models.recognizer import Recognizer
    from paddlex_feat.training.checkpoint import Progress
    from paddlex_feat.training.run_folder import RunFolder
    from paddlex_feat.training.trainer import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What is trained on.

    Attributes:
        classes: the data set's label of each class index.
        labels: class index of every training image, int64 [images].
        num_classes: width of the classifier.
    """

    lists: dict[str, ImageList]
    classes: list[int]
    labels: np.ndarray
    num_classes: int
    sampler: samplers.PKSampler | samplers.ShuffleSampler


def run(config: Config, output: Path) -> dict[str, Any]:
    """Train; all that can be wrong with data and configuration is found before Paddle is imported."""
    data = _read_data(config)
    on_cpu = not config.Global.device.startswith("gpu")
    prepare_paddle(config.Global.threads, onednn_training=on_cpu and config.Train.onednn_conv)
    return _train(config, output, data)


def _read_data(config: Config) -> Data:
    settings = config.Train
    lists = require_lists(config.Global.dataset_dir)
    classes, labels = np.unique(lists["train"].labels, return_inverse=True)
    if len(classes) == 1:
        raise DatasetError(
            "All images of train.txt have one label: there is nothing to tell apart.",
            where="train.txt",
            fix="Add images of other classes.",
        )
    return Data(
        lists=lists,
        classes=classes.tolist(),
        labels=labels.astype(np.int64),
        num_classes=_num_classes(settings.num_classes, len(classes)),
        sampler=samplers.build(labels.tolist(), settings.batch_size, settings.samples_per_class, settings.seed),
    )


def _num_classes(wanted: int | str | None, found: int) -> int:
    if not isinstance(wanted, int) or wanted == found:
        return found
    if wanted < found:
        raise ConfigError(
            f"train.txt has {found} classes, the classifier would have {wanted}.",
            where="Train.num_classes",
            fix=f"Use -o Train.num_classes=auto, or {found}.",
        )
    log.info("Train.num_classes is %d, train.txt has %d classes: the others stay without images.", wanted, found)
    return wanted


def _train(config: Config, output: Path, data: Data) -> dict[str, Any]:
    import paddle

    from paddlex_feat.inference.export import Exporter
    from paddlex_feat.models import cpu_conv, recognizer
    from paddlex_feat.retrieval.evaluator import Evaluator
    from paddlex_feat.training.run_folder import RunFolder
    from paddlex_feat.training.trainer import Trainer

    settings, name = config.Train, config.Global.model
    device, workers = select_device(first_device(config.Global.device)), settings.num_workers or cpu_count()
    preprocess = preprocess_of(config)
    paddle.seed(settings.seed)
    spec = network_spec(config)
    model = recognizer.build(spec, data.num_classes)
    optimizer = paddle.optimizer.Momentum(
        settings.learning_rate,
        settings.momentum,
        model.parameters(),
        weight_decay=settings.weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(settings.clip_norm) if settings.clip_norm else None,
    )
    folder = RunFolder(output, settings.keep_last)
    progress = _starting_point(config, data, model, optimizer)
    _open_folder(folder, config, progress)
    if device == "cpu" and settings.onednn_conv:
        cpu_conv.accelerate(model)
    evaluator = Evaluator(data.lists, config.Evaluate.batch_size, device, config.Global.threads, workers)
    trainer = Trainer(
        model=model,
        criterion=_criterion(settings.loss),
        optimizer=optimizer,
        batches=lambda epoch: _batches(config, data, epoch, workers),
        labels=data.labels,
        files=data.lists["train"].files(),
        preprocess=preprocess,
        exporter=Exporter(recognizer.build(spec, data.num_classes), name, preprocess),
        evaluate=lambda inference: evaluator(inference).headline(),
        folder=folder,
        plan=_plan(config, data.sampler.batches_per_epoch),
        progress=progress,
    )
    _say_what(config, device, data)
    trainer.fit()
    best = output / "best_model" / "best_model.pdparams"
    _check_inference_model(config, trainer.exporter, best, device)
    log.info("Best recall1 %.5f in epoch %d: %s", progress.best, progress.best_epoch, best)
    return folder.result(name, progress.best)


def _check_inference_model(config: Config, exporter: Exporter, best: Path, device: str) -> None:
    """The exported best model answers as its weight file does. Raises WeightsError."""
    from paddlex_feat.inference.export import require_agreement
    from paddlex_feat.models import weights

    images, source = comparison_images(config.Global.dataset_dir, preprocess_of(config))
    folder = best.parent / "inference"
    difference = exporter.largest_difference(weights.read(best), folder, images, device, config.Global.threads)
    log.info("Inference model of the best epoch: largest difference to its weights on %s %.2e", source, difference)
    require_agreement(difference, config.Export.tolerance, folder)


def _say_what(config: Config, device: str, data: Data) -> None:
    settings, images, steps = config.Train, len(data.labels), data.sampler.batches_per_epoch
    log.info("Training %s on %s at %d px", config.Global.model, device, settings.input_size)
    log.info("%d images, %d classes; %d epochs of %d steps", images, len(data.classes), settings.epochs_iters, steps)


def _batches(config: Config, data: Data, epoch: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    settings = config.Train
    augment = Augment(**settings.augment.model_dump())
    files, batches = data.lists["train"].files(), data.sampler.epoch(epoch)
    return training_batches(batches, files, preprocess_of(config), augment, settings.seed, epoch, workers)


def _criterion(loss: LossSection) -> CombinedLoss:
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
    from paddlex_feat.losses.triplet_angular_margin import TripletAngularMarginLoss

    triplet = TripletAngularMarginLoss(
        loss.triplet_margin, loss.absolute_weight, loss.absolute_positive, loss.absolute_negative
    )
    return CombinedLoss(LabelSmoothingCrossEntropy(loss.label_smoothing), triplet, loss.ce_weight, loss.triplet_weight)


def _plan(config: Config, steps_per_epoch: int) -> Plan:
    from paddlex_feat.training.trainer import Plan

    settings = config.Train
    return Plan(
        epochs=settings.epochs_iters,
        steps_per_epoch=steps_per_epoch,
        learning_rate=settings.learning_rate,
        warmup_epochs=settings.warmup_steps,
        log_interval=settings.log_interval,
        eval_interval=settings.eval_interval,
        save_interval=settings.save_interval,
        eval_start=settings.eval_start,
        seed=settings.seed,
    )


def _starting_point(config: Config, data: Data, model: Recognizer, optimizer: Optimizer) -> Progress:
    """Fill the network from a checkpoint, from pretrained weights, or leave it as initialised."""
    from paddlex_feat.models import weights
    from paddlex_feat.training.checkpoint import Progress, resume

    settings = config.Train
    if settings.resume_path:
        progress = resume(Path(settings.resume_path), model, optimizer)
        _check_resumed(progress, config, data)
        # Checkpoints stand at the ends of epochs, which another batch size gives another number of steps.
        progress.step = progress.epoch * data.sampler.batches_per_epoch
        log.info("Resuming after epoch %d from %s", progress.epoch, settings.resume_path)
        return progress
    if settings.pretrain_weight_path:
        fix = "Give a local file with -o Train.pretrain_weight_path=FILE, or null to train from scratch."
        path = hub.local_file(settings.pretrain_weight_path, "weights", fix)
        log.info("Pretrained weights %s: %s", path, weights.load(model, path, head="optional"))
    return Progress(classes=data.classes)


def _check_resumed(progress: Progress, config: Config, data: Data) -> None:
    where = f"Train.resume_path={config.Train.resume_path}"
    if progress.classes != data.classes:
        raise ConfigError(
            "train.txt has other classes than the run that is resumed.",
            where=where,
            fix="Resume with the same data set, or start anew with Train.pretrain_weight_path.",
        )
    if progress.epoch >= config.Train.epochs_iters:
        raise ConfigError(
            f"Nothing is left to train: {progress.epoch} epochs are done, Train.epochs_iters is "
            f"{config.Train.epochs_iters}.",
            where=where,
            fix=f"Ask for more than {progress.epoch} with -o Train.epochs_iters=N.",
        )


def _open_folder(folder: RunFolder, config: Config, progress: Progress) -> None:
    """Make room for the run, or take up the one that is resumed."""
    if config.Train.resume_path:
        folder.take_up(Path(config.Train.resume_path), progress)
    else:
        folder.open_new()
    write_keeping(folder.root / "config.yaml", config_load.dump(config).encode())
    classes = {str(index): label for index, label in enumerate(progress.classes)}
    write_json(folder.root / "class_map.json", classes)
