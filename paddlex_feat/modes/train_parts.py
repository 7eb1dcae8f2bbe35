"""What mode train puts together once Paddle is imported: state, folder, trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

from paddlex_feat.config.schema import Config
from paddlex_feat.config.train_schema import LossSection, TrainSection
from paddlex_feat.errors import ConfigError, EvaluationError
from paddlex_feat.evaluation.embed import Extractor
from paddlex_feat.hub.fetch import fetch_weights
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.losses.combined import CombinedLoss
from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
from paddlex_feat.losses.triplet_angular_margin import TripletAngularMarginLoss
from paddlex_feat.models import cpu_conv, recognizer, weights
from paddlex_feat.models.backbones import PADDLECLAS
from paddlex_feat.modes.build import evaluator_of, network_spec, preprocess_of
from paddlex_feat.modes.train_classes import has_other_classes, log_classifier, require_same_classes
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.train_kernels import choose_kernels, share_statistics
from paddlex_feat.modes.train_rate import explain_collapse, explain_failure
from paddlex_feat.modes.worker import Place
from paddlex_feat.provenance import run_record
from paddlex_feat.runtime.cpu import memory_limit
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.gpus import require_amp
from paddlex_feat.training import checkpoint
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.checkpoint import Progress, TrainingState
from paddlex_feat.training.ema import Ema
from paddlex_feat.training.freeze import freeze
from paddlex_feat.training.run_folder import RunFolder
from paddlex_feat.training.run_logger import Watch
from paddlex_feat.training.step import Precision, Step, TrainingNetwork
from paddlex_feat.training.stop import held_back
from paddlex_feat.training.trainer import Batches, Plan, Trainer

log = logging.getLogger(__name__)


def resume_from(config: Config, folder: RunFolder, group: ProcessGroup) -> Path | None:
    """The checkpoint to go on from, None for a new run; rank 0 decides whether there is one."""
    settings = config.Train
    if settings.resume_path:
        return Path(settings.resume_path)
    if settings.resume != "auto":
        log.info("Train.resume and Train.resume_path are null: a new run in %s.", folder.root)
        return None
    latest = folder.latest() if group.rank == 0 else None
    if not group.broadcast(np.array([latest is not None], np.int32))[0]:
        log.info("Train.resume=auto: nothing to resume in %s, the run begins.", folder.root)
        return None
    return folder.root / "latest" / "latest.pdparams"


def build_state(
    config: Config, num_classes: int, classes: list[int], start: Path | None, place: Place
) -> tuple[TrainingState, list[paddle.nn.Layer]]:
    """Network, optimizer and progress: from a checkpoint, from pretrained weights, or as initialised.

    Also returns the frozen layers that stay in evaluation mode.
    """
    settings = config.Train
    if settings.amp != "OFF":
        require_amp(place.device, settings.amp_dtype, "Train.amp")
    choose_kernels(settings, place)  # before run.json records the switches
    paddle.seed(settings.seed)
    model = recognizer.build(network_spec(config), num_classes)
    share_statistics(settings, model, place)
    # Without a classification loss the head gets no gradient: it stays as it is, without decay too.
    still = freeze(model, [*settings.freeze, *([] if settings.loss.ce_weight else ["head"])])
    optimizer = _optimizer(settings, model)
    state = TrainingState(model, optimizer, Progress(classes=classes, num_classes=num_classes))
    if start is None:
        _load_pretrained(settings, model, classes, place)
    if settings.ema_decay:
        state.ema = Ema(state.raw_weights(), settings.ema_decay)
    if start is not None:
        key = "Train.resume_path" if settings.resume_path else "Train.resume"
        require_same_classes(checkpoint.read_progress(start.with_suffix(".pdstates")), classes, num_classes, start, key)
        checkpoint.resume(start, state)
        _check_resumed(state.progress, config, start)
    if settings.amp == "O2" and model.head is not None:
        # DataParallel's buffers are float16: they cannot take gradients of which an earlier batch's part is float32.
        mixed = place.group.size > 1 and settings.accumulate > 1
        exact_gradients = settings.amp_dtype == "float16" and not mixed
        state.lower_precision(settings.amp_dtype, model.head.sublayers(include_self=True), exact_gradients)
    if start is not None:
        checkpoint.resume_momentum(start, state)
    place.group.any_rank(False)  # all have read before rank 0 moves folders
    return state, still


def _load_pretrained(settings: TrainSection, model: recognizer.Recognizer, classes: list[int], place: Place) -> None:
    """Fill the network of a new run, and log its source."""
    key, group = "Train.pretrain_weight_path", place.group
    if not settings.pretrain_weight_path:
        log.info("%s is null: training starts from random weights.", key)
        return
    fix = f"Give a local file with -o {key}=FILE, or null to train from scratch."
    if group.local_rank == 0:
        fetch_weights(settings.pretrain_weight_path, fix)
    group.any_rank(False)  # one process a machine downloads, the others wait for it
    path = fetch_weights(settings.pretrain_weight_path, fix)
    other = has_other_classes(path, classes)
    if group.broadcast(np.array([other is True], np.int32))[0]:  # only rank 0 may have the file
        other = True
    report = weights.load(model, path, head="fresh" if other else "optional")
    log.info("Pretrained weights %s: %s", path, report)
    log_classifier(other, any(name.startswith(weights.HEAD) for name in report.loaded))


def _optimizer(settings: TrainSection, model: recognizer.Recognizer) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(
        settings.learning_rate,
        settings.momentum,
        model.parameters(),
        weight_decay=settings.weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(settings.clip_norm) if settings.clip_norm else None,
        # One call for all tensors instead of one each; with float32 copies of low-precision weights it was never tried.
        use_multi_tensor=paddle.get_device().startswith("gpu") and settings.amp != "O2",
    )


def _check_resumed(progress: Progress, config: Config, start: Path) -> None:
    settings = config.Train
    stopped = settings.early_stopping is not None and progress.stale >= settings.early_stopping
    if stopped and settings.epochs_iters > progress.epochs > 0:  # more was asked for than before
        progress.stale, stopped = 0, False
    if progress.epoch < settings.epochs_iters and not (stopped and not progress.step_in_epoch):
        return
    done = f"{progress.epoch} epochs are done, Train.epochs_iters is {settings.epochs_iters}"
    if stopped:
        done += f", and the last {progress.stale} evaluations gave no better recall1 (Train.early_stopping)"
    if not settings.resume:
        raise ConfigError(
            f"Nothing is left to train: {done}.",
            where=str(start),
            fix=f"Ask for more than {max(progress.epoch, progress.epochs)} with -o Train.epochs_iters=N.",
        )
    log.info("Nothing is left to train: %s.", done)


def open_folder(folder: RunFolder, config: Config, progress: Progress, start: Path | None, group: ProcessGroup) -> None:
    """Make room for the run, or take up the one that is resumed; rank 0 does, the others learn of it."""
    if group.rank == 0:
        if start is None:
            folder.open_new()
        else:
            folder.take_up(start, progress)
            folder.complete(progress, config.Train.save_interval, config.Train.epochs_iters)
    best = group.broadcast(np.array([progress.best, progress.best_epoch], np.float64))
    progress.best, progress.best_epoch = float(best[0]), int(best[1])
    if start is not None:
        log.info("Resuming after epoch %d, step %d, from %s", progress.epoch, progress.step, start)


def _fit_steps(progress: Progress, steps_per_epoch: int, batching: str) -> None:
    """Count in this run's steps: other batches give an epoch other ones."""
    if progress.step_in_epoch and (progress.batching != batching or progress.step_in_epoch > steps_per_epoch):
        log.warning("Batches are others than those of the resumed run: the epoch that had begun begins anew.")
        progress.step_in_epoch = 0
    progress.batching = batching
    progress.step = progress.epoch * steps_per_epoch + progress.step_in_epoch


def choose_convolutions(config: Config, model: paddle.nn.Layer, place: Place) -> str:
    """Route the convolutions of a training on a CPU through oneDNN where that works: "oneDNN", else "native"."""
    settings = config.Train
    if place.device != "cpu" or not settings.onednn_conv or settings.dy2st:
        return "native"
    share = memory_limit() * 9 // 10 // place.group.local_size
    with held_back():
        done = cpu_conv.accelerate(model, settings.batch_size, settings.input_size, share)
    return "oneDNN" if done else "native"


def build_trainer(
    config: Config,
    state: TrainingState,
    still: list[paddle.nn.Layer],
    exporter: Exporter,
    folder: RunFolder,
    data: Data,
    place: Place,
    batches: Batches,
) -> Trainer:
    """The loop with everything that it calls."""
    settings, group = config.Train, place.group
    plan = _plan(settings, data.sampler.batches_per_epoch, group)
    batches_are = f"{settings.batch_size} images x {settings.accumulate} x {group.size} processes"
    _fit_steps(state.progress, plan.steps_per_epoch, f"{batches_are}, {plan.steps_per_epoch} an epoch")
    step = _step(config, state, place)
    evaluator = evaluator_of(config, data.lists, data.own, place, folder.root)
    extractor = _extractors(config, exporter, place)

    def evaluate(network: Candidate) -> dict[str, float]:
        try:
            found = evaluator(extractor(network), network.look)
        except EvaluationError as error:
            raise explain_failure(error, settings, state) from error
        if found.collapsed:
            log.warning("%s", explain_collapse(settings, state))
        return found.headline()

    own = folder.root if group.rank == 0 else None
    return Trainer(
        state=state,
        step=step,
        batches=batches,
        labels=data.labels,
        files=data.lists["train"].files(),
        exporter=exporter,
        evaluate=evaluate,
        folder=folder,
        plan=plan,
        watch=Watch(own, plan.epochs, plan.steps_per_epoch, state.progress.step, settings.visualdl),
        group=group,
        resume_command=f"{run_record.program()} -c {folder.root / 'config.yaml'} -o Train.resume=auto",
        frozen=still,
        skipped=data.bad.files if data.bad is not None else (),
    )


def _extractors(config: Config, exporter: Exporter, place: Place) -> Callable[[Candidate], Extractor]:
    """What computes the features of an evaluation: the exported graph on a CPU, the network itself on a GPU.

    On a GPU that is the exporter's network, which takes no memory beyond what there is, and no predictor is built.
    """
    if place.device == "cpu":
        return lambda network: FeatureExtractor(network.inference(), place.device, place.threads)
    extract = NetworkExtractor(exporter.network, preprocess_of(config))

    def filled(network: Candidate) -> Extractor:
        extract.load(network.weights)
        return extract

    return filled


def _step(config: Config, state: TrainingState, place: Place) -> Step:
    settings = config.Train
    precision = Precision(settings.amp, settings.amp_dtype)
    step = Step(
        TrainingNetwork(state.model, preprocess_of(config), precision.on, classify=settings.loss.ce_weight > 0),
        _criterion(settings.loss),
        state.optimizer,
        precision,
        place.group,
        settings.cross_device_negatives,
        settings.dy2st,
        unused_parameters=config.Model.backbone.startswith(PADDLECLAS),
    )
    state.scaler = step.scaler
    if state.progress.scaler and precision.dtype == "float16":
        step.scaler.load_state_dict(state.progress.scaler)
    return step


def _criterion(loss: LossSection) -> CombinedLoss:
    triplet = TripletAngularMarginLoss(
        loss.triplet_margin, loss.absolute_weight, loss.absolute_positive, loss.absolute_negative
    )
    return CombinedLoss(LabelSmoothingCrossEntropy(loss.label_smoothing), triplet, loss.ce_weight, loss.triplet_weight)


def _plan(settings: TrainSection, batches_per_epoch: int, group: ProcessGroup) -> Plan:
    times = group.size * settings.accumulate
    scale = {"none": 1.0, "linear": float(times), "sqrt": times**0.5}[settings.lr_scaling]
    if settings.lr_scaling == "none" and group.size > 1:
        hint = "Train.learning_rate %g is used as given for batches of %d devices together; Train.lr_scaling scales it."
        log.info(hint, settings.learning_rate, group.size)
    return Plan(
        epochs=settings.epochs_iters,
        steps_per_epoch=-(-batches_per_epoch // settings.accumulate),
        learning_rate=settings.learning_rate * scale,
        warmup_epochs=settings.warmup_steps,
        log_interval=settings.log_interval,
        eval_interval=settings.eval_interval,
        save_interval=settings.save_interval,
        eval_start=settings.eval_start,
        seed=settings.seed,
        accumulate=settings.accumulate,
        save_minutes=settings.save_minutes,
        early_stopping=settings.early_stopping,
    )
