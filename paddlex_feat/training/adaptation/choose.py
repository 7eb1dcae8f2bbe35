"""Choose a map by cross-validation over classes: fitted on some classes, measured on others.

The score is recall@1 with one gallery image of the query's own class: of every pair of images of a held-out class, how
often is one the nearest to the other among itself and all images of the other held-out classes? Leave-one-out recall@1,
which may take the easiest of several images, is reported too; it is 1 for nearly every map where classes are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.training.adaptation.maps import AffineMap, Family, arrange, closed_forms, evened, principal
from paddlex_feat.training.adaptation.statistics import ClassStatistics

IDENTITY = "identity"
FOLDS = 5
MAX_SCORED = 1500  # images of a fold that are measured, whole classes: the rest only takes part in fitting
_BLOCK = 512  # queries compared at a time
Hits = np.ndarray  # of each query, 1 or 0: float64 [Q]
Features = tuple[np.ndarray, np.ndarray | None]  # of images, and of their mirror images: float32 [N, D]


@dataclass(frozen=True)
class Candidate:
    """One map in the table of candidates.

    Attributes:
        kind: IDENTITY or the kind of a `Family`.
        strength: of the family; 0 for the identity.
        score: mean over the held-out classes of recall@1 with one gallery image of the own class.
        recall1: mean over the held-out classes of leave-one-out recall@1.
        gain: score minus that of the identity.
        noise: standard error of `gain`, from its spread over the held-out classes.
    """

    kind: str
    strength: float
    score: float
    recall1: float
    gain: float
    noise: float


@dataclass(frozen=True)
class Choice:
    """The result of `choose`.

    Attributes:
        map: the chosen map of D numbers to D, as `maps.arrange` gives it, fitted on all classes; None: the identity.
        variance: of each of its outputs, float64 [D]; None for the identity.
        candidate: its entry of the table.
        candidates: the table, the identity first, then as fitted.
        reason: one sentence, for people.
    """

    map: AffineMap | None
    variance: np.ndarray | None
    candidate: Candidate
    candidates: list[Candidate]
    reason: str


@threadpool_limits.wrap(limits=1, user_api="blas")  # sums of several threads differ with their number
def choose(
    features: np.ndarray, mirrored: np.ndarray | None, classes: np.ndarray, seed: int, dimension: int | None = None
) -> Choice:
    """Fit all maps, measure them on classes they were not fitted on, and take the best if it beats the identity.

    A map is taken if its score exceeds that of the identity by more than the standard error of the difference, and the
    one that exceeds it by most. Only classes with two images at least can be measured; where there are fewer than two
    of them, the identity remains.

    Args:
        features: of the training images, float32 [N, D], finite, as the network gives them.
        mirrored: of their mirror images, float32 [N, D], for fitting alone; None: none.
        classes: int64 [N].
        seed: of the division of the classes into folds.
        dimension: measure all maps, the identity too, by their leading outputs alone; None: by all.
    """
    choice: Choice = choose_among([(features, mirrored)], classes, seed, dimension)[1]
    return choice


@threadpool_limits.wrap(limits=1, user_api="blas")
def choose_among(
    views: Sequence[Features], classes: np.ndarray, seed: int, dimension: int | None = None
) -> tuple[int, Choice]:
    """As `choose`, for several features of the same images, of which one kind is taken too.

    Others than the first are taken if the score of their best map exceeds that of the first's by more than the standard
    error of the difference, and of these the kind that does by most.

    Args:
        views: features and those of mirror images, as of `choose`, of each kind.
        classes: int64 [N].
        seed: see `choose`.
        dimension: see `choose`.

    Returns the number of the kind, and the choice of its map.
    """
    found = [_chosen(features, mirrored, classes, seed, dimension) for features, mirrored in views]
    own = found[0][1]
    margins = [_mean_and_error(scores - own) for _, scores in found]
    number = max(range(len(found)), key=lambda n: margins[n][0] - margins[n][1] if n else 0.0)
    return number, found[number][0]


def _chosen(
    features: np.ndarray, mirrored: np.ndarray | None, classes: np.ndarray, seed: int, dimension: int | None
) -> tuple[Choice, np.ndarray]:
    """The choice of a map, and its score of each held-out class."""
    both = features if mirrored is None else np.concatenate([features, mirrored])
    twice = classes if mirrored is None else np.concatenate([classes, classes])
    groups = _folds(classes, seed)
    identity = Candidate(IDENTITY, 0.0, 0.0, 0.0, 0.0, 0.0)
    if len(groups) < 2:
        reason = "Fewer than two classes have two images or more, so no map can be measured: none is applied."
        return Choice(None, None, identity, [identity], reason), np.zeros(0)
    parts = [ClassStatistics.of(both[rows], twice[rows]) for rows in (np.isin(twice, group) for group in groups)]
    table = _measure(features, both, twice, groups, parts, dimension)
    choice = _decide(_summarise(table), ClassStatistics.merge(parts))
    of_folds = table[choice.candidate.kind, choice.candidate.strength]
    return choice, np.concatenate([scores for scores, _ in of_folds])


@threadpool_limits.wrap(limits=1, user_api="blas")
def best_measured(
    features: np.ndarray, mirrored: np.ndarray | None, classes: np.ndarray, measure: Callable[[AffineMap | None], Hits]
) -> Choice:
    """As `choose`, but all maps are fitted to all classes and measured on other images.

    Args:
        features: of the training images, float32 [N, D], finite, as the network gives them.
        mirrored: of their mirror images, float32 [N, D]; None: none.
        classes: int64 [N].
        measure: a map, or None for the identity -> of each query whether its nearest image is of its class, [Q].
    """
    both = features if mirrored is None else np.concatenate([features, mirrored])
    whole = ClassStatistics.of(both, classes if mirrored is None else np.concatenate([classes, classes]))
    own = measure(None)
    table: _Scores = {(IDENTITY, 0.0): [(own, own)]}
    families = closed_forms(whole)
    for family in families:
        for strength in family.scales:
            hits = measure(family.map(strength))
            table[family.kind, strength] = [(hits, hits)]
    return _decide(_summarise(table), whole, families)


def _decide(candidates: list[Candidate], whole: ClassStatistics, families: list[Family] | None = None) -> Choice:
    """Take the candidate with the largest gain over the first, the identity, less the standard error of the gain.

    Of maps that score alike, this takes the one whose gain is the surest; the identity, if no gain exceeds its error.
    """
    best = max(candidates, key=lambda c: c.gain - c.noise)  # the first of equal ones
    if best.kind == IDENTITY:
        return Choice(None, None, best, candidates, _reason_against(max(candidates, key=lambda c: c.gain)))
    fitted = next(f for f in families or closed_forms(whole) if f.kind == best.kind and best.strength in f.scales)
    arranged, variance = arrange(fitted.map(best.strength), whole)
    reason = f"It beats the network's own features by {best.gain:.4f}, standard error {best.noise:.4f}."
    return Choice(arranged, variance, best, candidates, reason)


def _reason_against(highest: Candidate) -> str:
    if highest.kind == IDENTITY:
        return "No map is better than the network's own features: none is applied."
    return (
        f"The best map, {highest.kind} {highest.strength:g}, is better by {highest.gain:.4f}, not more than the "
        f"standard error of {highest.noise:.4f}: none is applied."
    )


def _folds(classes: np.ndarray, seed: int) -> list[np.ndarray]:
    """Divide the classes at random into FOLDS groups, or as many as have two measurable classes each."""
    found, counts = np.unique(classes, return_counts=True)
    rng = np.random.default_rng(seed)
    pairs, singles = (rng.permutation(found[mask]) for mask in (counts > 1, counts == 1))
    folds = min(FOLDS, len(pairs) // 2)
    return [np.concatenate([pairs[i::folds], singles[i::folds]]) for i in range(folds)] if folds > 1 else []


_FoldScores = dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]  # see `_score`
_Scores = dict[tuple[str, float], list[tuple[np.ndarray, np.ndarray]]]  # of each fold


def _measure(
    features: np.ndarray,
    both: np.ndarray,
    twice: np.ndarray,
    groups: list[np.ndarray],
    parts: list[ClassStatistics],
    dimension: int | None,
) -> _Scores:
    """Measure the identity and all maps on each fold; they are fitted to `both`, whose classes are `twice`.

    The folds share the processors, and each is computed by one thread, so that no sum depends on their number.
    """
    classes = twice[: len(features)]

    def measure(number: int) -> _FoldScores:
        group, scores = groups[number], _FoldScores()
        rows = np.flatnonzero(np.isin(classes, _first_classes(group, classes)))
        held, labels = features[rows], classes[rows]
        own = held if dimension is None else _cut(principal(both[~np.isin(twice, group)]), held, dimension)
        scores[IDENTITY, 0.0] = _score(own, labels)
        statistics = ClassStatistics.merge([p for i, p in enumerate(parts) if i != number])
        for family in closed_forms(statistics):
            mapped = (held - family.mean) @ family.basis
            for strength, scale in family.scales.items():
                if dimension is None or dimension >= len(scale):
                    outputs = mapped * scale
                else:
                    outputs = _cut(arrange(family.map(strength), statistics), held, dimension)
                scores[family.kind, strength] = _score(outputs, labels)
        return scores

    with ThreadPoolExecutor(min(cpu_count(), len(groups))) as pool:
        folds = list(pool.map(measure, range(len(groups))))
    # The data of a fold may not determine every map.
    return {name: [fold[name] for fold in folds] for name in folds[0] if all(name in fold for fold in folds)}


def _cut(found: tuple[AffineMap, np.ndarray], features: np.ndarray, dimension: int) -> np.ndarray:
    whole, variance = found
    return AffineMap(whole.mean, evened(variance, dimension)[:, None] * whole.matrix[:dimension])(features)


def _first_classes(group: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the first classes of a group, which are in random order, with at most MAX_SCORED images; at least two."""
    counts = np.array([np.count_nonzero(classes == c) for c in group])
    return group[: max(2, int(np.count_nonzero(counts.cumsum() <= MAX_SCORED)))]


def _score(features: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two scores of each class with two images or more, in the order of their labels: float64 [C] each."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    one_shot, recall1 = np.zeros(len(unit)), np.zeros(len(unit))
    for first in range(0, len(unit), _BLOCK):
        queries = np.arange(first, min(first + _BLOCK, len(unit)))
        similar = unit[queries] @ unit.T
        same = classes[queries, None] == classes
        nearest_other = np.where(same, -np.inf, similar).max(axis=1, keepdims=True)
        same[np.arange(len(queries)), queries] = False
        hits = np.count_nonzero(same & (similar > nearest_other), axis=1)  # ties count against the map
        one_shot[queries] = hits / np.maximum(np.count_nonzero(same, axis=1), 1)
        recall1[queries] = hits > 0
    _, index, counts = np.unique(classes, return_inverse=True, return_counts=True)
    measured = counts > 1
    return tuple((np.bincount(index, values) / counts)[measured] for values in (one_shot, recall1))  # type: ignore[return-value]


def _summarise(table: _Scores) -> list[Candidate]:
    merged = {name: [np.concatenate(part) for part in zip(*folds, strict=True)] for name, folds in table.items()}
    own = merged[IDENTITY, 0.0][0]
    rows = []
    for (kind, strength), (scores, recall1) in merged.items():
        gain, noise = _mean_and_error(scores - own)
        rows.append(Candidate(kind, strength, float(scores.mean()), float(recall1.mean()), gain, noise))
    return rows


def _mean_and_error(gains: np.ndarray) -> tuple[float, float]:
    """The mean of the classes' gains and its standard error, which is infinite for fewer than two."""
    if len(gains) < 2:
        return float(gains.sum()), float("inf")
    return float(gains.mean()), float(gains.std(ddof=1)) / len(gains) ** 0.5
