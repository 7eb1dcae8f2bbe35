"""GeM pooling: the formula, its gradient, and weights that were trained with the mean."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.pooling import GeM, compared_exponents
from paddlex_feat.models.projection import pooled_by
from paddlex_feat.models.spec import NetworkSpec

SPECS = {
    "lite": NetworkSpec(backbone="EfficientNet_Lite0", embedding_size=1280, neck="linear"),
    "lcnet": NetworkSpec(),
}


def test_gem_is_the_generalised_mean_and_its_exponent_has_the_slope_of_it():
    x = np.random.default_rng(0).uniform(0, 3, (2, 4, 5, 5))
    layer, step = GeM(), 1e-5

    def by_hand(p: float) -> np.ndarray:
        return (np.maximum(x, 1e-6) ** p).mean((2, 3)) ** (1 / p)

    y = layer(paddle.to_tensor(x.astype("float32")))
    assert list(y.shape) == [2, 4, 1, 1] and np.allclose(y.flatten(1).numpy(), by_hand(3.0), rtol=1e-5)
    y.sum().backward()
    slope = (by_hand(3 + step) - by_hand(3 - step)).sum() / (2 * step)
    assert float(layer.p.grad[0]) == pytest.approx(slope, rel=1e-3)
    layer.p.set_value(np.float32([1]))
    assert np.allclose(layer(paddle.to_tensor(x.astype("float32"))).flatten(1).numpy(), x.mean((2, 3)), rtol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_weights_of_the_mean_give_the_same_features_with_gem(name, tmp_path):
    spec = SPECS[name]
    paddle.seed(0)
    mean = recognizer.build(spec, None)
    assert not any("pool" in tensor for tensor in mean.state_dict())  # the tensor contract
    weights.write(tmp_path / "mean.pdparams", {n: t.numpy() for n, t in mean.state_dict().items()})
    gem = recognizer.build(dataclasses.replace(spec, pooling="gem"), None)
    weights.load(gem, tmp_path / "mean.pdparams")
    images = paddle.to_tensor(np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype("float32"))
    for model in (mean, gem):
        model.eval()
    expected = mean(images).numpy()
    assert np.abs(gem(images).numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    gem.backbone.pool.p.set_value(np.float32([2.5]))
    state = {n: t.numpy() for n, t in gem.state_dict().items()}
    exporter = Exporter(gem, "PP-ShiTuV2_rec", Preprocess(64))
    exporter.write(state, tmp_path)
    pixels = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    assert exporter.largest_difference(state, tmp_path, pixels, "cpu") <= 1e-5


@pytest.mark.parametrize("name", SPECS)
def test_features_by_several_exponents_are_those_of_a_network_with_each(name, tmp_path):
    paddle.seed(0)
    gem = recognizer.build(dataclasses.replace(SPECS[name], pooling="gem"), None)
    gem.eval()
    images = np.random.default_rng(1).normal(size=(3, 3, 64, 64)).astype("float32")
    expected, exponents = [], (1.0, 4.0, 2.5)
    for exponent in exponents:
        gem.backbone.pool.p.set_value(np.float32([exponent]))
        expected.append(gem(paddle.to_tensor(images)).numpy())
    both = pooled_by(gem, exponents)
    both.eval()
    found = np.split(both(paddle.to_tensor(images)).numpy(), 3, axis=1)
    for own, each in zip(found, expected, strict=True):
        assert np.abs(own - each).max() <= 1e-5 * np.abs(each).max()
    exporter = Exporter(both, "PP-ShiTuV2_rec", Preprocess(64))
    state = {n: t.numpy() for n, t in both.state_dict().items()}
    exporter.write(state, tmp_path)
    pixels = np.random.default_rng(2).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    assert exporter.largest_difference(state, tmp_path, pixels, "cpu") <= 1e-5


def test_exponents_are_compared_where_the_network_begins_with_the_mean():
    assert compared_exponents(None) == ()
    assert compared_exponents(np.float32([1])) == (1, 4)
    assert compared_exponents(np.float32([2.5])) == (2.5,)
