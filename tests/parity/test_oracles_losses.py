"""Losses and heads against pytorch-metric-learning: values and gradients on the same batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.oracles import ask

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.parts import imported
from paddlex_feat.losses import LOSSES, LossContext
from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
from paddlex_feat.losses.memory import FeatureMemory
from paddlex_feat.models import HEADS, NetworkSpec

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
CLASSES, SIZE = 12, 16
FORMS = {
    "supcon": [{"temperature": 0.1}, {"temperature": 0.2}],
    "proxy_anchor": [{"margin": 0.1, "alpha": 32.0}, {"margin": 0.3, "alpha": 8.0}],
    "multi_similarity": [
        {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1},
        {"alpha": 5.0, "beta": 20.0, "base": 0.3, "epsilon": None},
    ],
    "circle": [{"m": 0.4, "gamma": 80.0}, {"m": 0.25, "gamma": 20.0}],
    "triplet_batch_hard": [
        {"margin": margin, "distance": distance} for margin in (0.2, None) for distance in ("cosine", "euclidean")
    ],
    "cosine": [{"temperature": 0.05}, {"temperature": 0.5}],
    "cosface": [{"margin": 0.35, "scale": 64.0}, {"margin": 0.1, "scale": 16.0}],
    "subcenter_arcface": [
        {"margin": 0.5, "scale": 64.0, "sub_centers": 3},
        {"margin": 1.2, "scale": 16.0, "sub_centers": 1},
    ],
}
BATCHES = {
    "pxk": np.repeat(np.arange(6), 4),
    "large": np.repeat(np.arange(12), 5),
    "pairs": np.repeat(np.arange(8), 2),
    "unequal": np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 3]),
    "one_class": np.full(6, 4),
    "all_different": np.arange(7),
    "one_image": np.array([3]),
}
# With references they compare a single image with itself, and count a single pair as none.
FEW_PAIRS = ("all_different", "one_image")
NOISE = {"mixed": 3.0, "near": 0.5, "solved": 0.1}  # against class centres of about length 4


def cases() -> list[dict]:
    return [
        {
            "name": f"{loss}{number}_{batch}_{spread}{'_memory' if remembers else ''}",
            "loss": loss,
            "keys": keys,
            "batch": batch,
            "spread": spread,
            "remembers": remembers,
        }
        for remembers in (False, True)
        for loss, forms in FORMS.items()
        if not remembers or (loss in LOSSES and LOSSES.get(loss).takes_references)
        for number, keys in enumerate(forms)
        for batch in BATCHES
        for spread in NOISE
        if not (remembers and batch in FEW_PAIRS)
    ]


def batch_of(case: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Features around class centres, labels, and class vectors near those centres."""
    labels = BATCHES[case["batch"]]
    centres = rng.standard_normal((CLASSES, SIZE))
    features = centres[labels] + NOISE[case["spread"]] * rng.standard_normal((len(labels), SIZE))
    vectors = np.repeat(centres, case["keys"].get("sub_centers", 1), axis=0)
    vectors = vectors + NOISE[case["spread"]] * rng.standard_normal(vectors.shape)
    weight = vectors if case["loss"] == "proxy_anchor" else vectors.T
    given = {"features": features.astype("float32"), "labels": labels, "weight": weight.astype("float32")}
    if case["remembers"]:
        past = rng.integers(0, CLASSES, 30)
        memory = centres[past] + NOISE[case["spread"]] * rng.standard_normal((len(past), SIZE))
        given |= {"memory": memory.astype("float32"), "memory_labels": past}
    return given


def references_of(given: dict[str, np.ndarray]) -> list:
    if "memory" not in given:
        return []
    memory = FeatureMemory(len(given["memory"]), SIZE)
    memory.add(paddle.to_tensor(given["memory"]), paddle.to_tensor(given["memory_labels"]))
    return [memory.references]


def ours(case: dict, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    features = paddle.to_tensor(given["features"], stop_gradient=False)
    labels = paddle.to_tensor(given["labels"])
    if case["loss"] in HEADS:
        spec = HEADS.get(case["loss"])
        head = imported(spec.build)(NetworkSpec(embedding_size=SIZE), CLASSES, spec.params(**case["keys"]))
        head.weight.set_value(given["weight"])
        own, value = head.weight, LabelSmoothingCrossEntropy(0.0)(head(features, labels), labels)
    else:
        spec = LOSSES.get(case["loss"])
        layer = imported(spec.make)(spec.params(**case["keys"]), LossContext(CLASSES, SIZE))
        own = next(iter(layer.parameters()), None)
        if own is not None:
            own.set_value(given["weight"])
        value = layer(features, labels, *references_of(given))
    value.backward()
    found = {"value": value.numpy(), "features": features.grad.numpy()}
    if case["remembers"]:
        found["cross_batch"] = found["value"]
    return found if own is None else {**found, "weight": own.grad.numpy()}


def test_values_and_gradients_are_theirs(tmp_path):
    """To 1e-5, of the greatest gradient where that is above 1."""
    rng = np.random.default_rng(0)
    listed = cases()
    given = {case["name"]: batch_of(case, rng) for case in listed}
    for case in listed:
        trained = case["loss"] == "proxy_anchor" or case["loss"] in HEADS
        case["shape"] = {"num_classes": CLASSES, "embedding_size": SIZE} if trained else {}
    (tmp_path / "cases.json").write_text(json.dumps(listed))
    np.savez(tmp_path / "given.npz", **{f"{n}.{k}": v for n, arrays in given.items() for k, v in arrays.items()})
    ask("metrics", "other_losses.py", tmp_path)
    theirs = np.load(tmp_path / "theirs.npz")
    above_zero = set()
    for case in listed:
        found = ours(case, given[case["name"]])
        assert {f"{case['name']}.{key}" for key in found} == {n for n in theirs if n.startswith(f"{case['name']}.")}
        for key, value in found.items():
            expected = theirs[f"{case['name']}.{key}"]
            assert np.abs(value - expected).max() <= 1e-5 * max(1, np.abs(expected).max()), (case["name"], key)
        if found["value"] > 0.01:
            above_zero.add((case["loss"], str(case["keys"])))
    assert len(above_zero) == sum(map(len, FORMS.values()))  # no loss is compared at 0 alone
