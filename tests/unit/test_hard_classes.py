"""Classes that are alike in one batch: which are neighbours, how batches are drawn, what a resumed epoch repeats."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.data import samplers
from paddlex_feat.errors import ConfigError


def table(classes: int, count: int, seed: int = 0) -> np.ndarray:
    """Neighbours in random order."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation([c for c in range(classes) if c != own])[:count] for own in range(classes)]
    return np.array(rows, np.int64).reshape(classes, count)


def test_each_drawn_class_brings_its_nearest_in_turn():
    neighbours = np.array([[1, 2, 3, 4], [0, 2, 3, 4], [1, 0, 3, 4], [4, 2, 1, 0], [3, 2, 1, 0]])
    assert samplers.with_neighbours(np.array([0]), neighbours, 5).tolist() == [0, 1, 2, 3, 4]
    assert samplers.with_neighbours(np.array([3, 0]), neighbours, 4).tolist() == [3, 0, 4, 1]
    assert samplers.with_neighbours(np.array([1, 0]), neighbours, 4).tolist() == [1, 0, 2, 3]  # 2 is taken
    assert samplers.with_neighbours(np.array([1, 0]), neighbours, 2).tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(2, 12), p=st.integers(2, 6), share=st.floats(0.01, 1), seed=st.integers(0, 3))
def test_batches_keep_their_form_and_their_share(classes, p, share, seed):
    p, labels = min(p, classes), np.repeat(np.arange(classes), 3) * 5 + 2
    neighbours = table(classes, p - 1, seed)
    sampler = samplers.PKSampler(labels, 2 * p, 2, seed, hard_classes=share)
    assert sampler.hard_per_batch == min(int(share * p + 0.5), p - 1)
    drawn = p - sampler.hard_per_batch
    batches = list(sampler.epoch(1, neighbours))
    assert len(batches) == sampler.batches_per_epoch
    for batch in batches:
        assert set(Counter(labels[batch].tolist()).values()) == {2} and len(batch) == 2 * p
        order = list(dict.fromkeys(((labels[batch] - 2) // 5).tolist()))
        assert order == samplers.with_neighbours(np.array(order[:drawn]), neighbours, p).tolist()


def test_an_epoch_follows_from_seed_epoch_and_table():
    labels = np.repeat(np.arange(9), 4)

    def epoch(number: int, seed: int, table_seed: int, rank: int = 0) -> list[list[int]]:
        sampler = samplers.PKSampler(labels, 8, 2, seed, rank, hard_classes=0.5)
        return [batch.tolist() for batch in sampler.epoch(number, table(9, 3, table_seed))]

    assert epoch(0, 0, 0) == epoch(0, 0, 0)
    others = [epoch(1, 0, 0), epoch(0, 1, 0), epoch(0, 0, 1), epoch(0, 0, 0, rank=1)]
    assert all(other != epoch(0, 0, 0) for other in others)


def test_without_a_share_batches_are_what_they_were():
    labels = np.repeat(np.arange(9), 4)
    plain, share = (samplers.PKSampler(labels, 8, 2, 3, hard_classes=h) for h in (0.0, 0.5))
    for sampler in (plain, share):
        assert np.array_equal(list(sampler.epoch(2)), list(samplers.PKSampler(labels, 8, 2, 3).epoch(2)))


def test_shuffled_batches_have_no_classes_to_choose():
    with pytest.raises(ValidationError, match="samples_per_class has to be set"):
        TrainSection(hard_classes=0.5, samples_per_class=None)


@pytest.mark.parametrize("each", [1, 3])
def test_the_nearest_classes_are_those_of_the_greatest_cosine(each, monkeypatch):
    pytest.importorskip("paddle")
    from paddlex_feat.training import class_neighbours

    vectors = (np.random.default_rng(0).standard_normal((11, each, 6)) * [[[4.0]]]).astype("float32")
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    cos = np.einsum("akd,bjd->akbj", unit, unit).max(axis=(1, 3))
    np.fill_diagonal(cos, -9)
    expected = np.argsort(-cos, axis=1)[:, :4]
    assert np.array_equal(class_neighbours.nearest_classes(vectors, 4), expected)
    monkeypatch.setattr(class_neighbours, "_COSINES", 11 * each * each * 2)  # two classes at a time
    assert np.array_equal(class_neighbours.nearest_classes(vectors, 4), expected)


def test_all_heads_and_proxies_give_their_class_vectors():
    """A feature along a vector of a class is classified as that class."""
    paddle = pytest.importorskip("paddle")
    from paddlex_feat.config.parts import GivesClassVectors, imported
    from paddlex_feat.losses import LossContext, read_terms
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.models import HEADS, NetworkSpec

    for name in ("linear", "arc_margin", "cosine", "cosface", "subcenter_arcface"):
        spec = HEADS.get(name)
        head = imported(spec.build)(NetworkSpec(embedding_size=64), 7, spec.params())
        head.eval()
        vectors = head.class_vectors()
        assert isinstance(head, GivesClassVectors) and vectors.dtype == np.float32
        assert vectors.shape == (7, 3 if name == "subcenter_arcface" else 1, 64)
        for centre in range(vectors.shape[1]):
            assert head(paddle.to_tensor(vectors[:, centre])).argmax(axis=1).tolist() == list(range(7))
    loss = CombinedLoss(read_terms([{"name": "proxy_anchor"}]), LossContext(7, 64)).losses["proxy_anchor"]
    assert np.array_equal(loss.class_vectors()[:, 0], loss.proxies.numpy())


class Vectors:
    """Class vectors that are others whenever they are asked for."""

    def __init__(self):
        self.asked = 0

    def class_vectors(self) -> np.ndarray:
        self.asked += 1
        return np.random.default_rng(self.asked).standard_normal((8, 1, 4)).astype("float32")


def drawn(state: SimpleNamespace, source: Vectors, *calls: tuple[int, int]) -> list[list[list[int]]]:
    from paddlex_feat.modes.train_hard import HardClasses
    from paddlex_feat.runtime.distributed import ProcessGroup

    sampler = samplers.PKSampler(np.repeat(np.arange(6), 4), 8, 2, 0, hard_classes=0.5)
    hard = HardClasses(state, source, sampler, ProcessGroup())  # of 8 classes two have no images
    return [[batch.tolist() for batch in hard(*call)] for call in calls]


def test_a_table_holds_for_an_epoch_and_a_resumed_epoch_repeats_it():
    pytest.importorskip("paddle")
    state, source = SimpleNamespace(neighbours=None), Vectors()
    first, again, second = drawn(state, source, (0, 0), (0, 2), (1, 0))
    assert first == again and source.asked == 2 and state.neighbours.shape == (6, 3) and state.neighbours.max() < 6
    saved = state.neighbours.copy()
    assert drawn(state, source, (1, 1)) == [second] and source.asked == 2  # resumed within the epoch
    drawn(state, source, (2, 0))
    assert source.asked == 3 and not np.array_equal(state.neighbours, saved)  # at its beginning
    state.neighbours = saved[:, :1]  # of batches of another form
    drawn(state, source, (1, 1))
    assert source.asked == 4 and state.neighbours.shape == (6, 3)


def test_without_class_vectors_that_are_trained_it_is_an_error():
    pytest.importorskip("paddle")
    from paddlex_feat.config.schema import Config
    from paddlex_feat.losses import LossContext, read_terms
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.modes.train_hard import hard_classes_of
    from paddlex_feat.runtime.distributed import ProcessGroup

    labels = np.repeat(np.arange(6), 4)

    def chosen(share: float, *names: str):
        config = Config.model_validate({"Train": {"hard_classes": share}})
        criterion = CombinedLoss(read_terms([{"name": n} for n in names]), LossContext(6, 4))
        model, saved = SimpleNamespace(head=Vectors()), np.zeros((6, 3), np.int64)
        state = SimpleNamespace(model=model, criterion=criterion, neighbours=saved)
        sampler = samplers.PKSampler(labels, 8, 2, 0, hard_classes=share)
        return hard_classes_of(config, state, sampler, ProcessGroup()), state

    with pytest.raises(ConfigError) as caught:
        chosen(0.5, "supcon")  # the head is not trained
    assert caught.value.code == "hard-classes-without-vectors"
    hard, state = chosen(0.5, "cross_entropy", "proxy_anchor")
    assert hard._source is state.model.head and state.neighbours is not None
    hard, state = chosen(0.5, "proxy_anchor")
    assert hard._source is state.criterion.losses["proxy_anchor"]
    for share in (0.0, 0.1):  # a tenth of 4 classes is none
        hard, state = chosen(share, "supcon")
        assert hard is None and state.neighbours is None
