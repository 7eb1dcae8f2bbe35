"""Linear maps of features: closed forms by second routes, their choice, and folding."""

from __future__ import annotations

import numpy as np
import pytest

from paddlex_feat.errors import ConfigError, WeightsError
from paddlex_feat.training.adaptation import fold, maps, record
from paddlex_feat.training.adaptation.choose import IDENTITY, Candidate, _decide, _score, choose, choose_among
from paddlex_feat.training.adaptation.maps import AffineMap, arrange, closed_forms, principal
from paddlex_feat.training.adaptation.statistics import ClassStatistics


def gaussian_classes(classes: int = 12, images: int = 8, dim: int = 10, seed: int = 0):
    """Features float32 [N, D] whose classes differ in three directions, and whose noise is large in the others."""
    rng = np.random.default_rng(seed)
    noise = np.r_[np.ones(3), np.full(dim - 3, 6.0)]
    means = np.zeros((classes, dim))
    means[:, :3] = rng.normal(0, 3, (classes, 3))
    labels = np.repeat(np.arange(classes), images)
    return (means[labels] + noise * rng.standard_normal((len(labels), dim)) + 5).astype(np.float32), labels


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def a_map(kind: str, strength: float, statistics: ClassStatistics) -> AffineMap:
    return next(f for f in closed_forms(statistics) if f.kind == kind and strength in f.scales).map(strength)


def test_statistics_are_those_of_numpy_and_merge():
    x, y = gaussian_classes()
    whole = ClassStatistics.of(x, y)
    parts = [ClassStatistics.of(x[y % 3 == k], y[y % 3 == k]) for k in range(3)]
    for statistics in (whole, ClassStatistics.merge(parts)):
        np.testing.assert_allclose(statistics.mean, x.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(statistics.covariance(), np.cov(x.T.astype(float), bias=True), rtol=1e-6)
        within = np.mean([np.cov(x[y == c].T.astype(float), bias=True) for c in range(12)], axis=0)
        np.testing.assert_allclose(statistics.within_covariance(), within, rtol=1e-6)


def test_whitening_gives_features_of_equal_variance():
    x, y = gaussian_classes(images=40)
    statistics = ClassStatistics.of(x, y)
    covariance = np.cov(a_map(maps.PCA, 1.0, statistics)(x).T)
    variance = np.linalg.eigvalsh(statistics.covariance())[::-1]
    np.testing.assert_allclose(covariance, np.diag(variance / (variance + 0.1 * variance.mean())), atol=0.01)


def test_pca_of_strength_0_is_centring():
    x, y = gaussian_classes()
    mapped = a_map(maps.PCA, 0.0, ClassStatistics.of(x, y))(x)
    np.testing.assert_allclose(cosines(mapped), cosines(x - x.mean(axis=0)), atol=1e-6)


def test_within_whitening_is_the_mahalanobis_distance_of_the_shrunk_covariance():
    x, y = gaussian_classes()
    statistics = ClassStatistics.of(x, y)
    within = statistics.within_covariance()
    shrunk = 0.7 * within + 0.3 * np.trace(within) / 10 * np.eye(10)
    mapped = a_map(maps.WITHIN, 0.3, statistics)(x)
    difference = (x[0] - x[50]).astype(float)
    expected = difference @ np.linalg.solve(shrunk, difference)
    assert np.sum((mapped[0] - mapped[50]) ** 2) == pytest.approx(expected, rel=1e-5)


def test_lda_maximises_the_ratio_of_between_to_within_variance():
    x, y = gaussian_classes()
    statistics = ClassStatistics.of(x, y)
    within = statistics.within_covariance()
    shrunk = 0.9 * within + 0.1 * np.trace(within) / 10 * np.eye(10)
    # Second route: the eigenvectors of the generalised problem B v = l W v.
    values, vectors = np.linalg.eig(np.linalg.solve(shrunk, statistics.between_covariance()))
    vectors = vectors[:, np.argsort(-values.real)].real
    matrix = a_map(maps.LDA, 0.1, statistics).matrix
    for own, other in zip(matrix[:3], vectors.T, strict=False):
        assert abs(own @ other) / np.linalg.norm(own) / np.linalg.norm(other) == pytest.approx(1, abs=1e-6)


def test_lda_has_one_direction_less_than_classes():
    x, y = gaussian_classes(classes=4)
    assert a_map(maps.LDA, 0.5, ClassStatistics.of(x, y)).matrix.shape == (3, 10)


def test_ridge_is_the_regression_to_class_means():
    x, y = gaussian_classes()
    statistics = ClassStatistics.of(x, y)
    centred = x - statistics.mean
    penalty = 0.1 * np.trace(statistics.covariance()) / 10 * len(x)
    targets = statistics.means[y] - statistics.mean
    solution = np.linalg.solve(centred.T @ centred + penalty * np.eye(10), centred.T @ targets)
    np.testing.assert_allclose(cosines(a_map(maps.RIDGE, 0.1, statistics)(x)), cosines(centred @ solution), atol=1e-5)


def test_arranged_maps_keep_cosines_and_put_the_largest_variance_first():
    x, y = gaussian_classes()
    statistics = ClassStatistics.of(x, y)
    for kind in (maps.WITHIN, maps.LDA):
        chosen = a_map(kind, 0.5, statistics)
        arranged, variance = arrange(chosen, statistics)
        mapped = arranged(x)
        np.testing.assert_allclose(cosines(mapped), cosines(chosen(x)), atol=1e-6)
        np.testing.assert_allclose(np.cov(mapped.T, bias=True), np.diag(variance), atol=1e-4)
        assert mapped.shape == x.shape
        assert (np.diff(variance) <= 1e-9).all()
        assert variance.sum() == pytest.approx(np.trace(statistics.covariance()))


def test_principal_directions_keep_all_cosines_and_the_first_ones_most_of_them():
    x, _ = gaussian_classes()
    rotation, variance = principal(x)
    np.testing.assert_allclose(cosines(rotation(x)), cosines(x), atol=1e-6)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    _, singular, _ = np.linalg.svd(unit.astype(float), full_matrices=False)
    np.testing.assert_allclose(variance, singular**2 / len(x), rtol=1e-5)


def test_scores_by_hand():
    angles = np.deg2rad([0, 10, 60, 40, 130])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    one_shot, recall1 = _score(features, np.array([0, 0, 0, 1, 2]))
    # 0 deg: both 10 and 40 are ahead of 60; 10 deg: 0 is the nearest, 60 behind 40; 60 deg: 40 is nearer than any.
    assert one_shot == pytest.approx([(0.5 + 0.5 + 0) / 3])
    assert recall1 == pytest.approx([2 / 3])


def test_the_best_map_is_chosen_where_noise_hides_the_classes():
    x, y = gaussian_classes(classes=30)
    choice = choose(x, None, y, seed=1)
    assert choice.map is not None
    assert choice.candidate.score > choice.candidates[0].score + choice.candidate.noise
    fresh, labels = gaussian_classes(classes=30, seed=1)
    assert np.mean(_score(choice.map(fresh), labels)[0]) > np.mean(_score(fresh, labels)[0]) + 0.05


def test_maps_are_measured_by_their_leading_outputs_where_features_will_be_cut():
    x, y = gaussian_classes(classes=30)
    whole, cut = choose(x, None, y, 1), choose(x, None, y, 1, dimension=3)
    assert cut.candidates[0].score != whole.candidates[0].score
    same = {(c.kind, c.strength) for c in cut.candidates} == {(c.kind, c.strength) for c in whole.candidates}
    assert same
    assert choose(x, None, y, 1, dimension=10).candidates[1:] == whole.candidates[1:]


def test_of_several_features_those_with_the_best_map_are_taken():
    x, y = gaussian_classes(classes=30)
    worse = (x + np.random.default_rng(5).normal(0, 2 * x.std(), x.shape)).astype(np.float32)
    number, choice = choose_among([(worse, None), (x, None)], y, 1)
    assert number == 1 and choice.candidate == choose(x, None, y, 1).candidate
    for views in ([(x, None), (worse, None)], [(x, None), (x, None)], [(x, None)]):
        number, choice = choose_among(views, y, 1)
        assert number == 0 and choice.candidate == choose(x, None, y, 1).candidate
    alone = np.arange(len(x))  # nothing can be measured
    assert choose_among([(worse, None), (x, None)], alone, 1)[0] == 0


def test_the_identity_remains_where_no_map_is_better():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 4)
    directions = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    choice = choose((directions[labels] + 0.01 * rng.standard_normal((80, 20))).astype(np.float32), None, labels, 0)
    assert choice.map is None
    assert choice.candidate.kind == IDENTITY
    assert "none is applied" in choice.reason


def test_a_choice_repeats_bit_for_bit_and_mirrored_features_are_never_measured():
    x, y = gaussian_classes()
    mirrored = x + np.float32(0.1)
    first, second = (choose(x, mirrored, y, 3) for _ in range(2))
    assert first.candidates == second.candidates
    assert (first.map is None) == (second.map is None)
    other = choose(x, np.full_like(x, 1e3), y, 3)
    assert other.candidates[0] == first.candidates[0]  # of the identity, which fits nothing


@pytest.mark.parametrize("labels", [np.arange(24), np.r_[0, 0, np.arange(1, 23)]], ids=["singles", "one pair"])
def test_classes_of_one_image_leave_nothing_to_measure(labels):
    x, _ = gaussian_classes(classes=3)
    choice = choose(x, None, labels, 0)
    assert choice.map is None
    assert "Fewer than two classes" in choice.reason


def test_classes_of_one_image_among_others_are_distractors():
    x, y = gaussian_classes()
    y[::8] = np.arange(100, 112)  # the first image of each class becomes one of its own
    assert len(choose(x, None, y, 0).candidates) > 1


def test_features_without_variance_are_left_as_they_are():
    choice = choose(np.ones((12, 5), np.float32), None, np.repeat(np.arange(4), 3), 0)
    assert choice.map is None
    assert [c.kind for c in choice.candidates] == [IDENTITY]


def test_two_classes_and_no_scatter_within_them_do_not_stop_the_choice():
    x = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    assert choose(x, None, np.repeat(np.arange(4), 2), 0).candidates[0].score == 1


def _folded(state: fold.State, dim: int, kept: float = 0.8):
    rng = np.random.default_rng(4)
    chosen = AffineMap(rng.standard_normal(dim), rng.standard_normal((dim, dim)))
    return chosen, fold.fold(state, chosen, np.r_[np.ones(dim - 1), 0], kept, 1e-5)


def test_a_map_folds_into_a_linear_neck():
    rng = np.random.default_rng(0)
    state = {"neck.fc.weight": rng.standard_normal((6, 6)), "neck.fc.bias": rng.standard_normal(6)}
    state = {name: value.astype(np.float32) for name, value in state.items()}
    chosen, new = _folded(state, 6)
    x = rng.standard_normal((5, 6))
    before = x @ state["neck.fc.weight"] + state["neck.fc.bias"]
    np.testing.assert_allclose(x @ new["neck.fc.weight"] + new["neck.fc.bias"], chosen(before), atol=1e-5)
    assert {n: v.dtype for n, v in new.items()} == {n: v.dtype for n, v in state.items()}


def test_a_map_folds_into_the_convolution_before_a_batch_norm():
    rng = np.random.default_rng(0)
    state = {
        "backbone.last_conv.weight": rng.standard_normal((6, 9, 1, 1)),
        "backbone.last_conv.bias": rng.standard_normal(6),
        "neck.feat_bn.weight": np.r_[0.0, rng.standard_normal(5)],  # a channel that was switched off
        "neck.feat_bn.bias": rng.standard_normal(6),
        "neck.feat_bn._mean": rng.standard_normal(6),
        "neck.feat_bn._variance": rng.random(6),
    }
    state = {name: value.astype(np.float32) for name, value in state.items()}

    def network(s: fold.State, x: np.ndarray) -> np.ndarray:
        y = 0.8 * (x @ s["backbone.last_conv.weight"][:, :, 0, 0].T + s["backbone.last_conv.bias"])
        scale = s["neck.feat_bn.weight"] / np.sqrt(s["neck.feat_bn._variance"] + np.float32(1e-5))
        return (y - s["neck.feat_bn._mean"]) * scale + s["neck.feat_bn.bias"]

    chosen, new = _folded(state, 6)
    x = rng.standard_normal((5, 9))
    np.testing.assert_allclose(network(new, x), chosen(network(state, x)), atol=2e-5)
    assert {n: (v.dtype, v.shape) for n, v in new.items()} == {n: (v.dtype, v.shape) for n, v in state.items()}


def test_a_network_without_a_layer_for_the_map_is_an_error():
    with pytest.raises(ConfigError) as caught:
        fold.require_foldable({"backbone.stem.weight", "neck.feat_bn.weight"})
    assert caught.value.code == "adapt-no-linear-layer"


def test_a_record_is_read_as_it_was_written_and_cuts_features(tmp_path):
    rng = np.random.default_rng(0)
    chosen = AffineMap(rng.standard_normal(5), rng.standard_normal((5, 5)))
    x = rng.standard_normal((3, 5))
    for folded in (True, False):
        own = record.Record(chosen, np.arange(5.0), folded, "ab" * 32)
        record.write(tmp_path / "a.npz", own)
        record.write(tmp_path / "b.npz", own)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        found = record.read(tmp_path / "a.npz")
        assert (found.folded, found.weights) == (folded, "ab" * 32)
        expected = x[:, :2] if folded else chosen(x)[:, :2]
        np.testing.assert_allclose(found.cut(2)(x), expected, atol=1e-5)


def test_a_damaged_record_is_an_error(tmp_path):
    file = tmp_path / record.NAME
    own = record.Record(AffineMap(np.zeros(2), np.eye(2)), np.ones(2), True)
    record.write(file, own)
    data = file.read_bytes()
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, mean=np.zeros(10**6))
    for damaged in (data[:40], b"", bomb.read_bytes()):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError) as caught:
            record.read(file)
        assert caught.value.code == "adaptation-damaged"


def test_of_maps_that_score_alike_the_one_with_the_surest_gain_is_taken():
    features, labels = gaussian_classes()
    table = [
        Candidate(IDENTITY, 0.0, 0.50, 1.0, 0.0, 0.0),
        Candidate("pca", 0.5, 0.61, 1.0, 0.11, 0.05),
        Candidate("within", 0.5, 0.60, 1.0, 0.10, 0.01),
    ]
    whole = ClassStatistics.of(features, labels)
    assert _decide(table, whole).candidate.kind == "within"
    unsure = _decide([table[0], Candidate("pca", 0.5, 0.61, 1.0, 0.11, 0.12)], whole)
    assert unsure.candidate.kind == IDENTITY and "none is applied" in unsure.reason and "0.1100" in unsure.reason
