"""Every rank takes its share of fixed batches; the weights after some steps tell whether it is one job.

    python steps.py RESULT ACCUMULATE CE_WEIGHT PROXIES

Rank r of w computes on images r, r + w, … of each batch, so that all ranks together see it whole.
Each rank writes RESULT.<rank>.npz: the weights. PROXIES: 1 adds a loss with parameters of its own.
"""

import sys
from typing import Any

import numpy as np

from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle
from support.networks import TINY_CLIP

STEPS, IMAGES = 3, 12


def with_proxies(paddle: Any, ce_weight: float) -> Any:
    """The recipe's loss and one that pulls features to a trained proxy of their class."""
    from paddlex_feat.losses import LOSSES, LossContext, LossSpec, read_terms
    from paddlex_feat.losses.combined import CombinedLoss

    class ProxyLoss(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.proxies = self.create_parameter([4, TINY_CLIP.embedding_size])

        def forward(self, features, labels):
            return ((features - self.proxies[labels]) ** 2).mean()

    LOSSES.add(LossSpec("proxy", "ProxyLoss", "features", lambda params, context: ProxyLoss()))
    terms = [{"name": "cross_entropy", "weight": ce_weight}, {"name": "proxy", "lr_mult": 2.0}]
    return CombinedLoss(read_terms(terms), LossContext(4, TINY_CLIP.embedding_size))


def main(result: str, accumulate: int, ce_weight: float, proxies: bool) -> None:
    """Train and save."""
    prepare_paddle(1)
    import paddle

    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.losses.combined import recipe_loss
    from paddlex_feat.models import recognizer
    from paddlex_feat.training.freeze import freeze
    from paddlex_feat.training.step import Step, TrainingNetwork
    from support.networks import TINY_CLIP

    group = ProcessGroup.from_environment()
    group.init()
    paddle.seed(3 + group.rank)  # DataParallel gives all ranks the weights of rank 0
    model = recognizer.build(TINY_CLIP, 4)
    if not ce_weight:
        freeze(model, ["head"])
    criterion = with_proxies(paddle, ce_weight) if proxies else recipe_loss(0.1, ce_weight, 1.0)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = paddle.optimizer.Momentum(0.05, 0.9, parameters, weight_decay=1e-3)
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
    tensors = {**model.state_dict(), **criterion.losses.state_dict()}
    np.savez(f"{result}.{group.rank}.npz", **{n: t.numpy() for n, t in tensors.items()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1")
