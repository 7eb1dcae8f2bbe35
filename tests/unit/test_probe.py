"""Class means and the linear probe, on features of small networks and made-up ones."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.networks import TINY_CLIP

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError, Interrupted, TrainingError
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import recognizer
from paddlex_feat.modes.train_build import make_optimizer
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.cached_features import CachedFeatures, cache_features
from paddlex_feat.training.class_means import class_means, start_at_means
from paddlex_feat.training.probe import Probe, ProbePlan

DIM, CLASSES = TINY_CLIP.embedding_size, 4


def cached(views: int = 2) -> CachedFeatures:
    """Features of four classes, 12 images each, around four random centres."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % CLASSES
    centres = rng.normal(size=(CLASSES, DIM))
    rows = centres[labels] + rng.normal(size=(views, 48, DIM))
    return CachedFeatures(rows.astype("float32"), labels)


def model_of(**spec) -> recognizer.Recognizer:
    paddle.seed(0)
    return recognizer.build(dataclasses.replace(TINY_CLIP, **spec), CLASSES)


def train(model: recognizer.Recognizer, look=lambda: None, rate: float = 0.01) -> None:
    settings = TrainSection(optimizer="adamw")
    Probe(model, recipe_loss(0, 1.0, 0.0)).train(
        cached(),
        lambda epoch: np.random.default_rng(epoch).permutation(48).reshape(4, 12),
        lambda parameters: make_optimizer(settings, parameters),
        ProbePlan(5, rate, 1),
        look,
    )


def weights_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_class_means_are_directions_of_mean_unit_features():
    features = cached()
    means = class_means(features, CLASSES + 1, seed=3)
    rows = features.features / np.linalg.norm(features.features, axis=2, keepdims=True)
    for label in range(CLASSES):
        mean = rows[:, features.labels == label].mean(axis=(0, 1))
        assert np.allclose(means[label], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.linalg.norm(means[CLASSES]) == pytest.approx(1)  # of the class without images
    assert np.array_equal(means, class_means(features, CLASSES + 1, seed=3))


@pytest.mark.parametrize("head", ["linear", "arc_margin"])
def test_a_head_at_class_means_knows_the_classes(head):
    model, features = model_of(head=head), cached()
    start_at_means([model.head], class_means(features, CLASSES, 0))
    model.eval()
    unit = features.features[0] / np.linalg.norm(features.features[0], axis=1, keepdims=True)
    logits = model.logits(paddle.to_tensor(unit)).numpy()
    assert (logits.argmax(1) == features.labels).mean() > 0.95


def test_nothing_with_class_vectors_is_an_error():
    with pytest.raises(ConfigError) as caught:
        start_at_means([None, paddle.nn.Linear(2, 2)], np.eye(2, dtype="float32"))
    assert caught.value.code == "class-means-unused"


@pytest.mark.parametrize("neck", ["linear", "bn"])
def test_a_probe_trains_what_follows_the_backbone_and_repeats(neck):
    models = [model_of(neck=neck) for _ in range(2)]
    before = weights_of(models[0])
    for model in models:
        train(model)
    after = weights_of(models[0])
    changed = {name.partition(".")[0] for name in after if not np.array_equal(after[name], before[name])}
    assert changed == ({"neck", "head"} if neck == "linear" else {"head"})
    assert all(np.array_equal(value, after[name]) for name, value in weights_of(models[1]).items())
    models[0].eval()
    source = cached()
    logits = models[0].logits(models[0].neck(paddle.to_tensor(source.features[1]))).numpy()
    assert (logits.argmax(1) == source.labels).mean() > 0.95


def test_a_probe_that_cannot_work_is_an_error():
    model = model_of(neck="bn")
    for parameter in model.head.parameters():
        parameter.stop_gradient = True
    with pytest.raises(ConfigError) as caught:
        Probe(model, recipe_loss(0, 0.0, 1.0))
    assert caught.value.code == "probe-nothing"
    with pytest.raises(TrainingError) as failed:
        train(model_of(), rate=1e38)
    assert failed.value.code == "probe-not-finite"

    def told() -> None:
        raise Interrupted("told to end", where="train")

    with pytest.raises(Interrupted):
        train(model_of(), told)


class MeanColours:
    """Features that a person can check: the mean of each channel of the left half, and of the right one."""

    preprocess = Preprocess(8)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        halves = images.reshape(len(images), 8, 2, 4, 3).astype("float32").mean(axis=(1, 3))
        return halves.reshape(len(images), 6)


def test_features_are_cached_in_order_with_those_of_mirror_images(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    files, looks = [str(tmp_path / f"{n}.png") for n in range(5)], []
    found = cache_features(
        MeanColours(),
        files,
        np.arange(5),
        mirrored=True,
        batch_size=2,
        workers=2,
        group=ProcessGroup(),
        bad=None,
        look=lambda: looks.append(1),
    )
    assert found.features.shape == (2, 5, 6) and len(looks) == 3
    assert np.allclose(found.features[0], MeanColours()(pixels), atol=1e-4)
    assert np.allclose(found.features[1], found.features[0][:, [3, 4, 5, 0, 1, 2]], atol=1e-4)


class Rank(ProcessGroup):
    """One of two ranks, each in a thread of its own, that must exchange rows of one kind as gloo demands."""

    barrier, given = threading.Barrier(2, timeout=20), [None, None]

    def all_gather_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        self.given[self.rank] = rows
        self.barrier.wait()
        one, other = self.given
        assert (one.dtype, one.shape[1:]) == (other.dtype, other.shape[1:])
        found = [one, other]
        self.barrier.wait()
        return found


@pytest.mark.parametrize("batch_size", [2, 8])
def test_ranks_cache_all_features_also_where_one_has_no_batch(batch_size, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")

    def cache(rank: int) -> CachedFeatures:
        return cache_features(
            MeanColours(),
            [str(tmp_path / f"{n}.png") for n in range(5)],
            np.arange(5),
            mirrored=False,
            batch_size=batch_size,
            workers=1,
            group=Rank(rank, 2),
            bad=None,
            look=lambda: None,
        )

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(cache, range(2)):
            assert np.allclose(found.features[0], MeanColours()(pixels), atol=1e-4)
