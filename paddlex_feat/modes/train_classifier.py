"""The classifier of Model.head_sample, built from the configuration."""

from __future__ import annotations

import logging

import numpy as np

from paddlex_feat.config.parts import imported, read_params
from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError
from paddlex_feat.losses.combined import CombinedLoss
from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
from paddlex_feat.models import recognizer
from paddlex_feat.models.class_scores import ClassScores
from paddlex_feat.models.recognizer import Recognizer
from paddlex_feat.models.registry import HEADS
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime.cpu import cpu_threads
from paddlex_feat.training.classifier.class_rows import ClassRows
from paddlex_feat.training.classifier.gpu_rows import GpuClassifier, GpuRows
from paddlex_feat.training.classifier.part import Part
from paddlex_feat.training.classifier.protocols import Classifier
from paddlex_feat.training.classifier.row_rules import RowRule
from paddlex_feat.training.classifier.sampled import SampledClassifier, SampledCrossEntropy
from paddlex_feat.training.optimizers import OPTIMIZERS, OptimizerContext

log = logging.getLogger(__name__)
# Up to 1 GiB of class vectors start as a head in the network does with the same seed; more, block by block.
_LIKE_A_HEAD = 2**28
_BLOCK = 2**13  # classes whose random vectors are drawn together


def build_network(config: Config, num_classes: int) -> Recognizer:
    """The network, with the head that it needs for training or for the start of its class vectors."""
    model = config.Model
    drawn = model.head_sample is not None and num_classes * model.embedding_size > _LIKE_A_HEAD
    return recognizer.build(network_spec(config), None if drawn else num_classes)


def take_classifier(
    config: Config, network: Recognizer, criterion: CombinedLoss, num_classes: int, worker: Worker,
    context: OptimizerContext,
) -> tuple[Recognizer, Classifier | None]:  # fmt: skip
    """The network without its head, and the classifier that takes the head's place in the losses; None if none does."""
    rate, settings = config.Model.head_sample, config.Train
    if rate is None:
        return network, None
    bare = Recognizer(network.backbone, network.neck, None)
    if not criterion.needs_logits:
        log.warning("Model.head_sample has no effect: no loss needs a classifier.")
        return bare, None
    part = Part(num_classes, worker.group)
    scores = _scores(config)
    vectors = _vectors(network, scores, part, config.Model.embedding_size, settings.seed)
    rule, how = _rule(config, context), (part, rate, settings.seed, settings.head_lr_mult)
    classifier: Classifier
    if worker.device == "cpu":
        classifier = SampledClassifier(ClassRows(vectors, scores, rule, cpu_threads(worker.threads)), *how)
    else:
        classifier = GpuClassifier(GpuRows(vectors, scores, rule), *how)
    for name, layer in criterion.losses.items():
        if isinstance(layer, LabelSmoothingCrossEntropy):
            if layer.epsilon and worker.device != "cpu":
                raise ConfigError(
                    "On a GPU, Model.head_sample works without label smoothing: Paddle's operator has none.",
                    where="Model.head_sample",
                    fix="Use -o Train.loss.label_smoothing=0, or label_smoothing: 0 in the term cross_entropy.",
                    code="head-sample-smoothing",
                )
            criterion.losses[name] = SampledCrossEntropy(classifier, layer.epsilon)
    log.info(
        "Model.head_sample: each step draws %g of %d classes; %d processes hold %d of them each.",
        rate, num_classes, worker.group.size, part.size,
    )  # fmt: skip
    return bare, classifier


def _scores(config: Config) -> ClassScores:
    head = HEADS.get(config.Model.head)
    params, _ = read_params(head.params, config.Model.head_params, "Model.head_params")
    assert head.scores is not None, "find_problems has refused it"
    scores: ClassScores = imported(head.scores)(network_spec(config), params)
    return scores


def _rule(config: Config, context: OptimizerContext) -> RowRule:
    spec = OPTIMIZERS.get(config.Train.optimizer)
    params, _ = read_params(spec.params, config.Train.optimizer_params, "Train.optimizer_params")
    assert spec.rows is not None, "find_problems has refused it"
    rule: RowRule = imported(spec.rows)(context, params)
    return rule


def _vectors(network: Recognizer, scores: ClassScores, part: Part, dim: int, seed: int) -> np.ndarray:
    """Random vectors of this process's classes: float32 [count, K, D]."""
    if network.head is not None:
        return np.ascontiguousarray(network.head.class_vectors()[part.first : part.first + part.count])
    vectors = np.empty((part.count, scores.centers, dim), np.float32)
    deviation = np.float32(scores.deviation(part.classes, dim))
    for block in range(part.first // _BLOCK, -(-(part.first + part.count) // _BLOCK)):
        drawn = np.random.default_rng((seed, block, 7)).standard_normal((_BLOCK, scores.centers, dim), np.float32)
        first, last = max(block * _BLOCK, part.first), min((block + 1) * _BLOCK, part.first + part.count)
        vectors[first - part.first : last - part.first] = drawn[first - block * _BLOCK : last - block * _BLOCK]
    vectors *= deviation
    return vectors
