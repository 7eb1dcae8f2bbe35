"""Trainings from good weights that are set up to fail: what they deliver is not worse than the start.

The start is EfficientNet-Lite0 as ImageNet left it, at 64 px; the delivered weights are measured by their inference
directory, apart from the training.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.runs import train_here
from support.starter import needs_starter

pytest.importorskip("paddle")

from paddlex_feat.data.readers import require_lists
from paddlex_feat.evaluation.evaluator import Evaluator
from paddlex_feat.hub.starter import starter_weights
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.spec import NetworkSpec

pytestmark = [pytest.mark.slow, needs_starter]

NETWORK = ("Model.backbone=EfficientNet_Lite0", "Model.embedding_size=1280", "Model.neck=linear")
ALLOWED_LOSS = 0.005  # of recall1
CASES: dict[str, tuple[str, ...]] = {
    "rate x100": ("Train.learning_rate=1",),
    "overflow": ("Train.learning_rate=1e30",),
    "wrong labels": (),
    "wrong augmentation": (
        "Train.augment.rotation_prob=1",
        "Train.augment.rotation_degrees=180",
        "Train.augment.crop=random_resized_crop",
        "Train.augment.scale=[0.01, 0.02]",
    ),
}
LANDING = ("overflow", "wrong labels")  # the others are nightly
MORE: dict[str, tuple[str, ...]] = {
    "rate x10000": ("Train.learning_rate=100", "Train.epochs_iters=2"),
    "random labels": ("Train.learning_rate=0.1", "Train.epochs_iters=2"),
    "tiny images": ("Train.input_size=32", "Train.learning_rate=0.1"),
    "tiny batches": ("Train.batch_size=4", "Train.samples_per_class=2", "Train.learning_rate=0.1"),
    "decay": ("Train.weight_decay=10", "Train.learning_rate=0.1"),
    "one epoch with half of it warm-up": ("Train.warmup_steps=0.5",),
    "rate x1000": ("Train.learning_rate=10",),
    "rate of nothing": ("Train.learning_rate=1e-12",),
    "AdamW at 1": ("Train.optimizer=adamw", "Train.learning_rate=1"),
    "AdamW at 0.01": ("Train.optimizer=adamw", "Train.learning_rate=0.01", "Train.epochs_iters=3"),
    "AdamW with decay": ("Train.optimizer=adamw", "Train.weight_decay=100"),
    "momentum": ("Train.momentum=0.999", "Train.epochs_iters=4"),
    "clipped to nothing": ("Train.max_grad_norm=1e-8",),
    "moving average of ruins": ("Train.ema_decay=0.1", "Train.learning_rate=10"),
    "slow moving average": ("Train.ema_decay=0.9999", "Train.learning_rate=1"),
    "triplets alone": ("Train.loss.ce_weight=0", "Train.loss.triplet_weight=1000"),
    "all smoothed": ("Train.loss.label_smoothing=0.99", "Train.learning_rate=0.1"),
    "negatives attract": ("Train.loss.absolute_negative=1", "Train.loss.absolute_weight=100"),
    "ArcFace at an absurd scale": ("Model.head=arc_margin", "Model.arc_scale=10000", "Model.arc_margin=1.5"),
    "frozen backbone": ("Train.freeze=[backbone.*]", "Train.learning_rate=10"),
    "no sampling": ("Train.samples_per_class=null", "Train.learning_rate=0.1"),
    "one class a batch": ("Train.samples_per_class=16", "Train.learning_rate=0.1"),
    "all at once": ("Train.batch_size=80", "Train.samples_per_class=10", "Train.accumulate_steps=4"),
    "padding": ("Train.augment.pad=500", "Train.learning_rate=0.1"),
    "operations": ("Train.augment.rand_augment.num_ops=15", "Train.augment.rand_augment.prob=1"),
    "large images": ("Train.input_size=160",),
}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The starter's weights as a .pdparams file; the package that holds them is found, not imported."""
    file = starter_weights()
    network = recognizer.build(NetworkSpec(backbone="EfficientNet_Lite0", embedding_size=1280, neck="linear"), None)
    weights.load(network, file)
    path: Path = tmp_path_factory.mktemp("start") / "start.pdparams"
    weights.write(path, {name: tensor.numpy() for name, tensor in network.state_dict().items()})
    return path


@pytest.fixture(scope="module")
def data_sets(faces, small_faces, tmp_path_factory) -> dict[str, Path]:
    """80 training images of 8 people, with true labels, with 20 % wrong and with random ones; others as queries."""
    lines = [line.split() for line in (small_faces / "train.txt").read_text().splitlines()]
    labels, rng, found = [label for _, label in lines], np.random.default_rng(0), {}
    for name, share in (("true", 0.0), ("wrong labels", 0.2), ("random labels", 1.0)):
        folder = found[name] = tmp_path_factory.mktemp("data")
        (folder / "images").symlink_to(faces / "images")
        for part in ("gallery", "query"):
            (folder / f"{part}.txt").write_bytes((faces / f"{part}.txt").read_bytes())
        given = np.array(labels)
        chosen = rng.permutation(len(given))[: round(share * len(given))]
        given[chosen] = rng.permutation(given[chosen]) if share == 1 else rng.choice(given, len(chosen))
        text = "".join(f"{path} {label}\n" for (path, _), label in zip(lines, given, strict=True))
        (folder / "train.txt").write_text(text)
    return found


def recall1(inference: Path, data: Path) -> float:
    return Evaluator(require_lists(data), 8, 2)(FeatureExtractor(inference)).main_metrics()["recall1"]


def require_no_loss(name: str, settings: tuple[str, ...], start: Path, data: Path, output: Path) -> None:
    """Train and compare what is delivered with what the run measured of its start, also if it failed."""
    usual = (
        "Train.input_size=64",
        "Train.epochs_iters=1",
        "Train.warmup_steps=0",
        f"Train.pretrain_weight_path={start}",
    )
    done = train_here(data, output, *NETWORK, *usual, *settings)
    result = json.loads((output / "train_result.json").read_text())
    assert result["done_flag"] == (done.returncode == 0), done.stderr
    if done.returncode:
        assert "best_model holds" in done.stderr, done.stderr
    elif result["delivered"] == "start":
        assert "No epoch was better than the start" in done.stderr
    delivered, before = recall1(output / "best_model/inference", data), result["start"]["recall1"]
    print(f"{name}: {before:.4f} -> {delivered:.4f}, {result['delivered']}, exit code {done.returncode}")
    assert delivered >= before - ALLOWED_LOSS, name
    if name == "overflow":
        assert done.returncode == 1 and result["delivered"] == "start"
    if name == "rate x10000":
        assert result["delivered"] == "start" and (output / "best_model/best_model.pdparams").is_file()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in LANDING else pytest.mark.nightly) for name in CASES]
)
def test_a_sabotaged_training_delivers_no_less_than_its_start(name, start, data_sets, tmp_path):
    require_no_loss(name, CASES[name], start, data_sets.get(name, data_sets["true"]), tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("name", MORE)
def test_thirty_ways_to_ruin_a_training_deliver_no_less_than_the_start(name, start, data_sets, tmp_path):
    require_no_loss(name, MORE[name], start, data_sets.get(name, data_sets["true"]), tmp_path)
