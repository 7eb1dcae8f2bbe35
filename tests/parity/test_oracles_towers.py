"""Visual towers of other programs in CLIP_vit, against the same towers written plainly in PyTorch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import oracles

paddle = pytest.importorskip("paddle")

from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.spec import NetworkSpec

pytestmark = pytest.mark.slow
BASE = NetworkSpec("CLIP_vit", neck="linear", depth=2, activation="quick_gelu", pooling="cls")
LARGE = replace(BASE, patch_size=14, width=1024, heads=16)
SPECS = {
    "openai_b16": BASE,
    "open_clip_b32": replace(BASE, patch_size=32, activation="gelu"),
    "mlcd_b32": replace(BASE, patch_size=32, embedding_size=768),
    "hf_l14": replace(LARGE, embedding_size=768),
    "hf_mlcd_l14_336": replace(LARGE, embedding_size=1024, input_size=336),
    "openai_l14_336": replace(LARGE, embedding_size=768, input_size=336),
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A folder with the weight files, and PyTorch's features."""
    folder = tmp_path_factory.mktemp("towers")
    for size in (224, 336):
        images = np.random.default_rng(size).standard_normal((2, 3, size, size))
        np.save(folder / f"{size}.npy", images.astype(np.float32))
    oracles.ask("metrics", "torch_clip.py", folder)
    yield folder, np.load(folder / "features.npz")
    for file in folder.glob("*.pt"):
        file.unlink()


def features(folder, file, spec) -> np.ndarray:
    model = recognizer.build(spec, None)
    weights.load(model, file, head="ignored")
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(np.load(folder / f"{spec.input_size}.npy"))).numpy()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    print(f"largest difference {np.abs(a - b).max():.2e} of values up to {np.abs(b).max():.2f}")
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("name", SPECS)
def test_a_tower_gives_the_features_of_pytorch(towers, name):
    folder, theirs = towers
    assert difference(features(folder, folder / f"{name}.pt", SPECS[name]), theirs[name]) <= 1e-4
    assert np.abs(theirs[name]).max() > 0.5


def test_a_safetensors_file_gives_the_same(towers, tmp_path):
    folder, theirs = towers
    file = tmp_path / "model.safetensors"
    weights.write(file, weights.read(folder / "mlcd_b32.pt"))
    assert difference(features(folder, file, SPECS["mlcd_b32"]), theirs["mlcd_b32"]) <= 1e-4


def test_positions_are_resampled_as_open_clip_does(towers):
    folder, theirs = towers
    spec = replace(SPECS["openai_l14_336"], input_size=224)
    assert difference(features(folder, folder / "openai_l14_336.pt", spec), theirs["at 224"]) <= 1e-4


@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"pooling": "mean"}])
def test_the_keys_matter(towers, change):
    folder, theirs = towers
    spec = replace(BASE, **change)
    assert difference(features(folder, folder / "openai_b16.pt", spec), theirs["openai_b16"]) > 1e-2
