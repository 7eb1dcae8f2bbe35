"""Objects of mode train, built from the configuration once Paddle is imported: state, folder, trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

from paddlex_feat.config.parts import build_part, read_params
from paddlex_feat.config.schema import Config
from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.errors import ConfigError, EvaluationError
from paddlex_feat.evaluation.baseline import NAME as BASELINE
from paddlex_feat.evaluation.baseline import figures
from paddlex_feat.evaluation.embed import Extractor
from paddlex_feat.hub.fetch import fetch_weights
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.losses import LossContext
from paddlex_feat.losses.combined import CombinedLoss
from paddlex_feat.losses.memory import FeatureMemory
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.registry import find_backbone
from paddlex_feat.modes.build import evaluator_of, extractor_of, preprocess_of
from paddlex_feat.modes.parts import loss_terms
from paddlex_feat.modes.train_classes import has_other_classes, log_classifier, require_same_classes
from paddlex_feat.modes.train_classifier import build_network, take_classifier
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.train_kernels import choose_kernels, share_statistics
from paddlex_feat.modes.train_rate import explain_collapse, explain_failure
from paddlex_feat.modes.worker import Worker
from paddlex_feat.provenance import run_record
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.gpus import require_amp
from paddlex_feat.training import checkpoint
from paddlex_feat.training.adaptation.fold import require_foldable, start_neck_as_identity
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.checkpoint import Progress, TrainingState
from paddlex_feat.training.ema import Ema
from paddlex_feat.training.freeze import batchnorms, freeze
from paddlex_feat.training.optimizers import OPTIMIZERS, OptimizerContext
from paddlex_feat.training.param_groups import Groups, set_groups
from paddlex_feat.training.resume import check_remaining, count_steps
from paddlex_feat.training.run_folder import BEST, RunFolder
from paddlex_feat.training.run_logger import OnRecord, RunLogger
from paddlex_feat.training.step import Precision, Step, TrainingNetwork
from paddlex_feat.training.trainer import Batches, Trainer, TrainingPlan

log = logging.getLogger(__name__)


def checkpoint_to_resume(config: Config, folder: RunFolder, group: ProcessGroup) -> Path | None:
    """Find the checkpoint to resume from, None for a new run; rank 0 decides whether there is one."""
    settings = config.Train
    if settings.resume_path:
        return Path(settings.resume_path)
    if settings.resume != "auto":
        log.info("Train.resume and Train.resume_path are null: a new run in %s.", folder.root)
        return None
    latest = folder.latest() if group.rank == 0 else None
    if not group.broadcast(np.array([latest is not None], np.int32))[0]:
        log.info("Train.resume=auto: nothing to resume in %s, the run begins.", folder.root)
        if config.Model.head_sample is not None and (folder.root / BEST).is_dir():
            log.warning(
                "%s holds the network of an earlier run without its class vectors, as none were due yet "
                "(Train.head_save_interval). It moves to previous_N; Train.pretrain_weight_path starts from it.",
                folder.root / BEST,
            )
        return None
    return folder.root / "latest" / "latest.pdparams"


def build_state(
    config: Config, num_classes: int, classes: list[int], start: Path | None, worker: Worker
) -> tuple[TrainingState, list[paddle.nn.Layer]]:
    """Build network, loss, optimizer and progress: from a checkpoint, pretrained weights, or freshly initialised.

    Returns:
        The state, and the frozen BatchNorm layers, which stay in evaluation mode.
    """
    settings = config.Train
    if settings.amp != "OFF":
        require_amp(worker.device, settings.amp_dtype, "Train.amp")
    choose_kernels(settings, worker)  # before run.json records the switches
    paddle.seed(settings.seed)
    model = build_network(config, num_classes)
    if settings.init_backbone != "recipe" and start is None and not settings.pretrain_weight_path:
        getattr(model.backbone, f"init_{settings.init_backbone}")()
    if settings.adapt:
        require_foldable(set(model.state_dict()))
    share_statistics(settings, model, worker)
    criterion = CombinedLoss(loss_terms(settings.loss), LossContext(num_classes, config.Model.embedding_size))
    # If no loss needs logits the head gets no gradient: it stays as it is, without decay too.
    model, classifier = take_classifier(config, model, criterion, num_classes, worker, optimizer_context(settings))
    unused_head = model.head is not None and not criterion.needs_logits
    frozen_bn_layers = freeze(model, [*settings.freeze, *(["head"] if unused_head else [])])
    frozen_bn_layers += _with_frozen_statistics(settings, model, start)
    set_groups(model, criterion, _groups(settings))
    optimizer = make_optimizer(settings, [*model.parameters(), *criterion.parameters()])
    progress = Progress(classes=classes, num_classes=num_classes, optimizer=settings.optimizer)
    state = TrainingState(model, optimizer, progress, criterion, classifier=classifier)
    if settings.memory_batches:
        images = settings.memory_batches * settings.batch_size * worker.group.size
        state.memory = FeatureMemory(images, config.Model.embedding_size)
    if start is None:
        _load_pretrained(settings, model, classes, worker)
    if settings.ema_decay or settings.ema_epochs:
        state.ema = Ema(state.raw_weights(), settings.ema_decay or 0.0)  # build_trainer knows how long an epoch is
    if start is not None:
        key = "Train.resume_path" if settings.resume_path else "Train.resume"
        require_same_classes(checkpoint.read_progress(start.with_suffix(".pdstates")), classes, num_classes, start, key)
        checkpoint.resume(start, state)
        if state.memory and state.memory.references is None and state.progress.step:
            log.info("Train.memory_batches: the checkpoint holds no past batches, so the memory begins empty.")
        auto = settings.resume is not None
        check_remaining(state.progress, epochs_of(settings), settings.early_stopping, start, optional=auto)
    if settings.amp == "O2" and model.head is not None:
        # DataParallel's buffers are float16: they cannot take gradients of which an earlier batch's part is float32.
        mixed = worker.group.size > 1 and settings.accumulate_steps > 1
        exact_gradients = settings.amp_dtype == "float16" and not mixed
        state.cast_to(settings.amp_dtype, model.head.sublayers(include_self=True), exact_gradients)
    if start is not None:
        checkpoint.resume_optimizer(start, state)
    worker.group.any_rank(False)  # all have read before rank 0 moves folders
    return state, frozen_bn_layers


def _load_pretrained(settings: TrainSection, model: recognizer.Recognizer, classes: list[int], worker: Worker) -> None:
    """Fill the network of a new run, and log its source."""
    key, group = "Train.pretrain_weight_path", worker.group
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
    if "start" in settings.adapt:
        start_neck_as_identity(model, report.reinitialised)
    log_classifier(other, any(name.startswith(weights.HEAD) for name in report.loaded))


def _groups(settings: TrainSection) -> Groups:
    return Groups(
        backbone=settings.backbone_lr_mult,
        neck=settings.neck_lr_mult,
        head=settings.head_lr_mult,
        layer_decay=settings.layer_decay,
        decay_vectors=settings.no_decay != "vectors",
    )


def _with_frozen_statistics(
    settings: TrainSection, model: recognizer.Recognizer, start: Path | None
) -> list[paddle.nn.Layer]:
    """BatchNorm layers that Train.bn_frozen keeps in evaluation mode. Raises ConfigError for random weights."""
    if not settings.bn_frozen:
        return []
    if start is None and not settings.pretrain_weight_path:
        raise ConfigError(
            "Random weights have no BatchNorm statistics that could be kept.",
            where="Train.bn_frozen",
            fix="Use -o Train.bn_frozen=False, or start from weights with Train.pretrain_weight_path.",
            code="bn-frozen-from-scratch",
        )
    return batchnorms(model.backbone)


def make_optimizer(settings: TrainSection, parameters: list[paddle.Tensor]) -> paddle.optimizer.Optimizer:
    """Build the optimizer of a list of parameters by the section Train. Raises ConfigError."""
    spec = OPTIMIZERS.get(settings.optimizer)
    params, problems = read_params(spec.params, settings.optimizer_params, "Train.optimizer_params")
    if params is None:
        message = "; ".join(f"{p.key}: {p.message}" for p in problems)
        raise ConfigError(message, where="Train.optimizer_params", fix="Correct the keys named.", code="part-params")
    context = optimizer_context(settings)
    return build_part("optimizer", spec.name, spec.build, paddle.optimizer.Optimizer, parameters, context, params)


def optimizer_context(settings: TrainSection) -> OptimizerContext:
    """What all optimizers of a run share."""
    return OptimizerContext(
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(settings.max_grad_norm) if settings.max_grad_norm else None,
        # One call for all tensors instead of one each; with float32 copies of low-precision weights it was never tried.
        multi_tensor=paddle.get_device().startswith("gpu") and settings.amp != "O2",
    )


def open_folder(folder: RunFolder, config: Config, progress: Progress, start: Path | None, group: ProcessGroup) -> None:
    """Make room for a new run, or continue the resumed one; rank 0 does it, and the others learn the best score."""
    if group.rank == 0:
        if start is None:
            folder.start_new()
        else:
            folder.resume_from(start, progress)
            folder.write_missing_epoch(progress, config.Train.save_interval, epochs_of(config.Train))
    best = group.broadcast(np.array([progress.best, progress.best_epoch], np.float64))
    progress.best, progress.best_epoch = float(best[0]), int(best[1])
    if start is not None:
        log.info("Resuming after epoch %d, step %d, from %s", progress.epoch, progress.step, start)


def build_trainer(
    config: Config,
    state: TrainingState,
    frozen_bn_layers: list[paddle.nn.Layer],
    exporter: Exporter,
    folder: RunFolder,
    data: Data,
    worker: Worker,
    batches: Batches,
    on_record: OnRecord | None = None,
) -> Trainer:
    """Build the training loop with everything that it calls."""
    settings, group = config.Train, worker.group
    probe_alone = settings.method == "probe"  # then the run is one epoch without steps: its evaluation and checkpoint
    plan = training_plan(settings, 0 if probe_alone else data.sampler.batches_per_epoch, group)
    batches_are = f"{settings.batch_size} images x {settings.accumulate_steps} x {group.size} processes"
    count_steps(state.progress, plan.steps_per_epoch, f"{batches_are}, {plan.steps_per_epoch} an epoch")
    if state.ema and settings.ema_epochs:
        state.ema.decay = 1 - 1 / max(1.0, settings.ema_epochs * plan.steps_per_epoch)
    step = _step(config, state, worker)
    evaluator = evaluator_of(config, *data.evaluated(), worker, folder.root)
    extractor = _extractors(config, exporter, worker)
    baseline = config.Evaluate.baseline  # computed by the first evaluation alone: it stays the same

    def evaluate(network: Candidate) -> dict[str, float]:
        nonlocal baseline
        try:
            found = evaluator(extractor_of(config, extractor(network)), network.look, baseline)
        except EvaluationError as error:
            raise explain_failure(error, settings, state) from error
        if found.collapsed:
            log.warning("%s", explain_collapse(settings, state))
        if found.baseline is not None:
            log.info("Baseline without a network (%s): %s", BASELINE, figures(found.baseline.main()))
        baseline = False
        return found.main_metrics()

    own = folder.root if group.rank == 0 else None
    return Trainer(
        state=state,
        step=step,
        batches=(lambda epoch, first: ()) if probe_alone else batches,
        labels=data.labels,
        files=data.lists["train"].files(),
        exporter=exporter,
        evaluate=evaluate,
        folder=folder,
        plan=plan,
        run_logger=RunLogger(own, plan.epochs, plan.steps_per_epoch, state.progress.step, settings.visualdl, on_record),
        group=group,
        resume_command=f"{run_record.program()} -c {folder.root / 'config.yaml'} -o Train.resume=auto",
        frozen_bn_layers=frozen_bn_layers,
        skipped=data.bad.files if data.bad is not None else (),
    )


def _extractors(config: Config, exporter: Exporter, worker: Worker) -> Callable[[Candidate], Extractor]:
    """Choose what computes the features of an evaluation: the exported graph on a CPU, the network itself on a GPU.

    On a GPU it is the exporter's network: no more memory is needed, and no predictor is built.
    """
    if worker.device == "cpu":
        return lambda network: FeatureExtractor(network.inference(), worker.device, worker.threads)
    extract = NetworkExtractor(exporter.network, preprocess_of(config))

    def filled(network: Candidate) -> Extractor:
        extract.load(network.weights)
        return extract

    return filled


def _step(config: Config, state: TrainingState, worker: Worker) -> Step:
    settings = config.Train
    precision = Precision(settings.amp, settings.amp_dtype)
    classify = state.criterion.needs_logits and state.classifier is None
    step = Step(
        TrainingNetwork(state.model, preprocess_of(config), precision.on, classify),
        state.criterion,
        state.optimizer,
        precision,
        worker.group,
        settings.cross_device_negatives,
        settings.dy2st,
        unused_parameters=find_backbone(config.Model.backbone).unused_parameters,
        memory=state.memory,
        classifier=state.classifier,
    )
    state.scaler = step.scaler
    if state.progress.scaler and precision.dtype == "float16":
        step.scaler.load_state_dict(state.progress.scaler)
    return step


def epochs_of(settings: TrainSection) -> int:
    """Length of a run in epochs."""
    return 1 if settings.method == "probe" else settings.epochs_iters


def training_plan(settings: TrainSection, batches_per_epoch: int, group: ProcessGroup) -> TrainingPlan:
    """Compute the length and schedule of a run by the section Train."""
    times = group.size * settings.accumulate_steps
    scale = {"none": 1.0, "linear": float(times), "sqrt": times**0.5}[settings.lr_scaling]
    if settings.lr_scaling == "none" and group.size > 1:
        hint = "Train.learning_rate %g is used as given for batches of %d devices together; Train.lr_scaling scales it."
        log.info(hint, settings.learning_rate, group.size)
    starts_from_weights = bool(settings.pretrain_weight_path)
    return TrainingPlan(
        epochs=epochs_of(settings),
        steps_per_epoch=-(-batches_per_epoch // settings.accumulate_steps),
        learning_rate=settings.learning_rate * scale,
        warmup_epochs=settings.warmup_steps,
        log_interval=settings.log_interval,
        eval_interval=settings.eval_interval,
        save_interval=settings.save_interval,
        eval_start=starts_from_weights if settings.eval_start == "auto" else settings.eval_start,
        seed=settings.seed,
        accumulate=settings.accumulate_steps,
        save_interval_minutes=settings.save_interval_minutes,
        early_stopping=settings.early_stopping,
        start_counts=starts_from_weights,
        validation=settings.validation == "split",
        head_save_interval=settings.head_save_interval,
    )
