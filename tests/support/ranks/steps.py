"""Every rank takes its share of fixed batches; the weights after some steps tell whether it is one job.

    python steps.py RESULT ACCUMULATE CE_WEIGHT

Rank r of w computes on images r, r + w, … of each batch, so that all ranks together see it whole.
Each rank writes RESULT.<rank>.npz: the weights.
"""

import sys

import numpy as np

from paddlex_feat.runtime.distributed import Group
from paddlex_feat.runtime.paddle_import import prepare_paddle

STEPS, IMAGES = 3, 12


def main(result: str, accumulate: int, ce_weight: float) -> None:
    """Train and save."""
    prepare_paddle(1)
    import paddle

    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
    from paddlex_feat.losses.triplet_angular_margin import TripletAngularMarginLoss
    from paddlex_feat.models import recognizer
    from paddlex_feat.training.freeze import freeze
    from paddlex_feat.training.step import Step, TrainingNetwork
    from support.networks import TINY_CLIP

    group = Group.from_environment()
    group.join()
    paddle.seed(3 + group.rank)  # DataParallel gives all ranks the weights of rank 0
    model = recognizer.build(TINY_CLIP, 4)
    if not ce_weight:
        freeze(model, ["head"])
    optimizer = paddle.optimizer.Momentum(0.05, 0.9, model.parameters(), weight_decay=1e-3)
    criterion = CombinedLoss(LabelSmoothingCrossEntropy(0.1), TripletAngularMarginLoss(), ce_weight, 1.0)
    network = TrainingNetwork(model, Preprocess(32), classify=ce_weight > 0)
    step = Step(network, criterion, optimizer, group=group, cross_device_negatives=True)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        batches = []
        for _ in range(accumulate):
            images = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
            labels = np.arange(IMAGES) % 4
            batches.append((images[group.rank :: group.size], labels[group.rank :: group.size]))
        step(batches)
    np.savez(f"{result}.{group.rank}.npz", **{n: t.numpy() for n, t in model.state_dict().items()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
