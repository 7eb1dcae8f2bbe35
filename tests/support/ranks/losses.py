"""Every loss and head takes two steps on its share of fixed batches; the weights tell whether it is one job.

    python losses.py RESULT

Rank r of w computes on images r, r + w, … of each batch, so that all ranks together see it whole.
Each rank writes RESULT.<rank>.npz: the weights after the steps, as CASE/NAME.
"""

import sys
from dataclasses import replace

import numpy as np

from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle
from support.networks import TINY_CLIP

CASES = [
    ("linear", "supcon"),
    ("linear", "multi_similarity"),
    ("linear", "circle"),
    ("linear", "triplet_batch_hard"),
    ("linear", "proxy_anchor"),
    ("cosine", "cross_entropy"),
    ("cosface", "cross_entropy"),
    ("subcenter_arcface", "cross_entropy"),
]
REMEMBER = ("supcon", "triplet_batch_hard")  # are trained again with a memory of past batches
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 0, 3])  # one class of one image; the ranks have other counts


def main(result: str) -> None:
    """Train each case and save."""
    prepare_paddle(1)
    import paddle

    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.losses import LossContext, read_terms
    from paddlex_feat.losses.combined import CombinedLoss
    from paddlex_feat.losses.memory import FeatureMemory
    from paddlex_feat.models import recognizer
    from paddlex_feat.training.freeze import freeze
    from paddlex_feat.training.step import Step, TrainingNetwork

    group = ProcessGroup.from_environment()
    group.init()
    tensors = {}
    for head, loss, remembers in [(*c, False) for c in CASES] + [("linear", name, True) for name in REMEMBER]:
        paddle.seed(3 + group.rank)  # the ranks get the weights of rank 0
        model = recognizer.build(replace(TINY_CLIP, head=head), 4)
        criterion = CombinedLoss(read_terms([{"name": loss}]), LossContext(4, TINY_CLIP.embedding_size))
        if not criterion.needs_logits:
            freeze(model, ["head"])
        optimizer = paddle.optimizer.Momentum(0.01, 0.9, [*model.parameters(), *criterion.parameters()])
        network = TrainingNetwork(model, Preprocess(32), classify=criterion.needs_logits)
        memory = FeatureMemory(len(LABELS), TINY_CLIP.embedding_size) if remembers else None
        step = Step(network, criterion, optimizer, group=group, cross_device_negatives=True, memory=memory)
        before = {n: t.numpy() for n, t in model.state_dict().items()} if group.rank == 0 else {}
        rng = np.random.default_rng(0)
        for _ in range(2):
            images = rng.integers(0, 256, (len(LABELS), 32, 32, 3), dtype=np.uint8)
            step([(images[group.rank :: group.size], LABELS[group.rank :: group.size])])
        after = {n: t.numpy() for n, t in {**model.state_dict(), **criterion.losses.state_dict()}.items()}
        assert all(np.isfinite(t).all() for t in after.values()), (head, loss)
        assert not before or any(np.abs(after[n] - before[n]).max() > 1e-4 for n in before), (head, loss)
        tensors |= {f"{head} {loss} {remembers}/{n}": t for n, t in after.items()}
    # Without cross_device_negatives, too, every rank remembers the images of all.
    model, memory = recognizer.build(TINY_CLIP, 4), FeatureMemory(2 * len(LABELS), TINY_CLIP.embedding_size)
    criterion = CombinedLoss(read_terms([{"name": "supcon"}]), LossContext(4, TINY_CLIP.embedding_size))
    freeze(model, ["head"])
    network = TrainingNetwork(model, Preprocess(32), classify=False)
    step = Step(network, criterion, paddle.optimizer.SGD(0.01, model.parameters()), group=group, memory=memory)
    for _ in range(2):
        step([(images[group.rank :: group.size], LABELS[group.rank :: group.size])])
    assert memory.references is not None
    assert sorted(memory.references.labels.tolist()) == sorted([*LABELS, *LABELS])
    held = group.all_gather_rows(memory.references.unit.numpy())
    assert all(np.array_equal(rows, held[0]) for rows in held)
    np.savez(f"{result}.{group.rank}.npz", **tensors)


if __name__ == "__main__":
    main(sys.argv[1])
