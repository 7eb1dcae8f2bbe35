"""The weighted sum of the terms of a training's loss."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

from paddlex_feat.config.parts import broken_part, build_part
from paddlex_feat.losses import LossContext, LossTerm, read_terms
from paddlex_feat.losses.memory import References


class CombinedLoss(nn.Layer):
    """Weighted sum of any number of losses on logits and on features.

    A term of weight 0 is neither built, computed nor reported.

    Args:
        terms: from `read_terms`.
        context: what the losses may need to know.

    Attributes:
        terms: those of a weight above 0.
        losses: their layers by name; its state_dict holds the parameters of the losses.
    """

    def __init__(self, terms: Sequence[LossTerm], context: LossContext):
        super().__init__()
        self.terms = [term for term in terms if term.weight]
        self.losses = nn.LayerDict({term.spec.name: _build(term, context) for term in self.terms})

    @property
    def needs_logits(self) -> bool:
        """Whether a term looks at the classifier's output."""
        return any(term.spec.needs == "logits" for term in self.terms)

    def forward(
        self,
        features: paddle.Tensor,
        logits: paddle.Tensor | None,
        labels: paddle.Tensor,
        metric_features: paddle.Tensor | None = None,
        metric_labels: paddle.Tensor | None = None,
        references: References | None = None,
    ) -> dict[str, paddle.Tensor]:
        """Compute all terms.

        Args:
            features: float32 [N, D], not normalized.
            logits: float32 [N, C]; None if no term needs them.
            labels: class indices, int64 [N].
            metric_features: float32 [M, D], for losses on features in the place of `features`.
            metric_labels: their labels, int64 [M].
            references: images of past batches, for the losses that take them.

        Returns:
            Scalars by the terms' names in logs; "loss" is their weighted sum.
        """
        pairs = (features, labels) if metric_features is None else (metric_features, metric_labels)
        values: dict[str, paddle.Tensor] = {}
        total = paddle.zeros([])
        for term in self.terms:
            inputs = (logits, labels) if term.spec.needs == "logits" else pairs
            more = (references,) if references is not None and term.spec.takes_references else ()
            value = _scalar(term, self.losses[term.spec.name](*inputs, *more))
            values[term.spec.term] = value
            total = total + term.weight * value
        values["loss"] = total
        return values


def _build(term: LossTerm, context: LossContext) -> nn.Layer:
    layer = build_part("loss", term.spec.name, term.spec.make, nn.Layer, term.params, context)
    for parameter in layer.parameters():
        parameter.optimize_attr["learning_rate"] *= term.lr_mult
    return layer


def _scalar(term: LossTerm, value: object) -> paddle.Tensor:
    """The value of a loss, of shape []. Raises DependencyError if it is anything else than one number."""
    if isinstance(value, paddle.Tensor) and list(value.shape) in ([], [1]):
        return value.reshape([]) if value.shape else value
    shape = f"of shape {list(value.shape)}" if isinstance(value, paddle.Tensor) else f"a {type(value).__name__}"
    what = f"cannot be used: its value is {shape}, not a scalar"
    make = term.spec.make
    where = make if isinstance(make, str) else str(getattr(make, "__module__", ""))
    raise broken_part("loss", term.spec.name, what, where)


def recipe_loss(label_smoothing: float = 0.1, ce_weight: float = 1.0, triplet_weight: float = 1.0) -> CombinedLoss:
    """The loss of the recipes: cross-entropy and TripletAngularMarginLoss with its default margins."""
    terms = [
        {"name": "cross_entropy", "weight": ce_weight, "label_smoothing": label_smoothing},
        {"name": "triplet_angular_margin", "weight": triplet_weight},
    ]
    return CombinedLoss(read_terms(terms), LossContext(num_classes=0, embedding_size=0))  # neither needs to know
