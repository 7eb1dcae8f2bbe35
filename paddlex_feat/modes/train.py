"""Mode train."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat import hub
from paddlex_feat.config import load as config_load
from paddlex_feat.config.schema import Config
from paddlex_feat.dataset.records import ImageList, require_lists
from paddlex_feat.errors import ConfigError
from paddlex_feat.files import write_json, write_text
from paddlex_feat.modes.common import preprocess_of
from paddlex_feat.pipeline import sampler as samplers
from paddlex_feat.pipeline.augment import Augment
from paddlex_feat.pipeline.loader import training_batches
from paddlex_feat.runtime import cpu_count, prepare_paddle, select_device

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Train; all that can be wrong with data and configuration is found before Paddle is imported."""
    settings = config.Train
    lists = require_lists(config.Global.dataset_dir)
    classes, labels = np.unique(lists["train"].labels, return_inverse=True)
    num_classes = _num_classes(settings.num_classes, len(classes))
    sampler = samplers.build(labels.tolist(), settings.batch_size, settings.samples_per_class, settings.seed)

    on_cpu = not config.Global.device.startswith("gpu")
    prepare_paddle(config.Global.threads, onednn_training=on_cpu and settings.onednn_conv)
    return _train(config, output, lists, classes.tolist(), labels, num_classes, sampler)


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


def _train(
    config: Config,
    output: Path,
    lists: dict[str, ImageList],
    classes: list[int],
    labels: np.ndarray,
    num_classes: int,
    sampler: samplers.PKSampler | samplers.ShuffleSampler,
) -> dict[str, Any]:
    import paddle

    from paddlex_feat.inference.export import Exporter
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
    from paddlex_feat.losses.triplet_angular_margin import TripletAngularMarginLoss
    from paddlex_feat.models import cpu_conv, recognizer
    from paddlex_feat.retrieval.evaluator import Evaluator
    from paddlex_feat.training.checkpoint import Progress, RunFolder, resume
    from paddlex_feat.training.trainer import Plan, Trainer

    settings, loss = config.Train, config.Train.loss
    device = select_device(config.Global.device)
    workers = settings.num_workers or cpu_count()
    paddle.seed(settings.seed)
    model = recognizer.build(config.Global.model, num_classes)
    optimizer = paddle.optimizer.Momentum(
        settings.learning_rate, settings.momentum, model.parameters(), weight_decay=settings.weight_decay
    )
    folder = RunFolder(output, settings.keep_last)
    progress = Progress(classes=classes)
    if settings.resume_path:
        progress = resume(Path(settings.resume_path), model, optimizer)
        log.info("Resuming after epoch %d from %s", progress.epoch, settings.resume_path)
    elif settings.pretrain_weight_path:
        _load_pretrained(model, settings.pretrain_weight_path)
    if progress.classes != classes:
        raise ConfigError(
            "train.txt has other classes than the run that is resumed.",
            where=f"Train.resume_path={settings.resume_path}",
            fix="Resume with the same data set, or start anew with Train.pretrain_weight_path.",
        )
    _open_folder(folder, config, output, classes)
    if device == "cpu" and settings.onednn_conv:
        cpu_conv.accelerate(model)

    preprocess = preprocess_of(config)
    augment = Augment(**settings.augment.model_dump())
    files = lists["train"].files()
    evaluator = Evaluator(lists, config.Evaluate.batch_size, device, config.Global.threads, workers)
    trainer = Trainer(
        model=model,
        criterion=CombinedLoss(
            LabelSmoothingCrossEntropy(loss.label_smoothing),
            TripletAngularMarginLoss(
                loss.triplet_margin, loss.absolute_weight, loss.absolute_positive, loss.absolute_negative
            ),
            loss.ce_weight,
            loss.triplet_weight,
        ),
        optimizer=optimizer,
        batches=lambda epoch: training_batches(
            sampler.epoch(epoch), files, preprocess, augment, settings.seed, epoch, workers
        ),
        labels=labels.astype(np.int64),
        files=files,
        preprocess=preprocess,
        exporter=Exporter(recognizer.build(config.Global.model, num_classes), config.Global.model, preprocess),
        evaluate=lambda inference: evaluator(inference).headline(),
        folder=folder,
        plan=Plan(
            epochs=settings.epochs_iters,
            steps_per_epoch=sampler.batches_per_epoch,
            learning_rate=settings.learning_rate,
            warmup_epochs=settings.warmup_steps,
            log_interval=settings.log_interval,
            eval_interval=settings.eval_interval,
            save_interval=settings.save_interval,
            eval_start=settings.eval_start,
            seed=settings.seed,
        ),
        progress=progress,
    )
    log.info(
        "Training %s on %s: %d images, %d classes, %d px, %d steps an epoch, %d epochs",
        config.Global.model,
        device,
        len(files),
        len(classes),
        preprocess.size,
        sampler.batches_per_epoch,
        settings.epochs_iters,
    )
    trainer.fit()
    log.info(
        "Best recall1 %.5f in epoch %d: %s",
        progress.best,
        progress.best_epoch,
        output / "best_model/best_model.pdparams",
    )
    return folder.result(config.Global.model, progress.best)


def _load_pretrained(model: Any, path: str) -> None:
    from paddlex_feat.models import weights

    fix = "Give a local file with -o Train.pretrain_weight_path=FILE, or null to train from scratch."
    report = weights.load(model, hub.local_file(path, "weights", fix), new_head=True)
    log.info("Pretrained weights %s: %s", path, report)


def _open_folder(folder: Any, config: Config, output: Path, classes: list[int]) -> None:
    """Make room for the run, or take up the one that is resumed in its own folder."""
    resumed = Path(config.Train.resume_path).resolve() if config.Train.resume_path else None
    if resumed and output.resolve() in resumed.parents:
        folder.find_epochs()
    else:
        folder.set_aside_earlier_run()
    write_text(output / "config.yaml", config_load.dump(config))
    write_json(output / "class_map.json", {str(index): label for index, label in enumerate(classes)})
