"""Keys of the losses on pairs and proxies. Importing this module does not import Paddle."""

from __future__ import annotations

from typing import Literal

from paddlex_feat.config.base import Section, key


class SupConParams(Section):
    """Keys of supcon."""

    temperature: float = key(0.1, "Divisor of the cosines; lower: harder negatives weigh more.", gt=0)


class ProxyAnchorParams(Section):
    """Keys of proxy_anchor."""

    margin: float = key(0.1, "Margin between image and proxy, to both sides.", "cosine", ge=0, le=1)
    alpha: float = key(32.0, "Scale of the cosines.", gt=0)


class MultiSimilarityParams(Section):
    """Keys of multi_similarity."""

    alpha: float = key(2.0, "Scale of the positive pairs.", gt=0)
    beta: float = key(50.0, "Scale of the negative pairs.", gt=0)
    base: float = key(0.5, "Cosine from which both are measured.", "cosine", ge=-1, le=1)
    epsilon: float | None = key(
        0.1,
        "Pairs count that are at most this much easier than the anchor's hardest pair of the other kind; null: all.",
        "cosine",
        ge=0,
        le=2,
    )


class CircleParams(Section):
    """Keys of circle."""

    m: float = key(0.4, "Relaxation: positives should be above 1 - m, negatives below m.", "cosine", ge=-1, le=1)
    gamma: float = key(80.0, "Scale of the weighted cosines.", gt=0)


class TripletBatchHardParams(Section):
    """Keys of triplet_batch_hard."""

    margin: float | None = key(0.2, "Margin of the hinge, as the distance; null: soft margin, a softplus.", ge=0, le=4)
    distance: Literal["cosine", "euclidean"] = key(
        "cosine", "1 - cosine, or the Euclidean distance of the features at length 1."
    )
