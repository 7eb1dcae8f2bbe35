"""Parity with PyTorch: what torch.save writes, and EfficientNet-Lite0 with the starter's weights."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracles import ask
from support.starter import needs_starter

paddle = pytest.importorskip("paddle")

from paddlex_feat.hub.starter import starter_weights
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.spec import NetworkSpec

pytestmark = pytest.mark.slow


def test_what_torch_saves_is_read_in_both_forms(tmp_path):
    ask("metrics", "torch_save.py", tmp_path)
    expected = dict(np.load(tmp_path / "expected.npz"))
    assert len(expected) > 20
    for name in ("zip", "legacy", "zip_checkpoint", "legacy_checkpoint"):
        found = weights.read(tmp_path / f"{name}.pth")
        assert set(found) == set(expected), name
        for key, value in expected.items():
            assert found[key].dtype == value.dtype and found[key].shape == value.shape, (name, key)
            assert np.array_equal(found[key], value), (name, key)


@needs_starter
def test_the_starters_features_are_those_of_the_same_network_in_pytorch(tmp_path):
    network = recognizer.build(NetworkSpec(backbone="EfficientNet_Lite0", embedding_size=1280, neck="linear"), None)
    report = weights.load(network, starter_weights())
    assert not report.unused and not report.reinitialised
    network.eval()
    rng = np.random.default_rng(0)
    images = {size: rng.uniform(-1, 1, (4, 3, size, size)).astype(np.float32) for size in (224, 128)}
    for size, batch in images.items():
        np.save(tmp_path / f"{size}.npy", batch)
    ask("metrics", "torch_lite0.py", starter_weights(), tmp_path)
    for size, batch in images.items():
        theirs = np.load(tmp_path / f"{size}_features.npy")
        with paddle.no_grad():
            ours = network(paddle.to_tensor(batch)).numpy()
        assert ours.shape == theirs.shape == (4, 1280) and theirs.max() > 0.5
        assert np.abs(ours - theirs).max() <= 1e-4, size
