"""Steps of a sampled classifier: each process has an equal share of every batch and of the classes.

Arguments: name of the head, output. Rank 0 writes OUTPUT.head.safetensors and OUTPUT.npz: losses [steps], gradients of
the features of all processes [steps, N, D].
"""

import sys
from pathlib import Path

import numpy as np

from paddlex_feat.runtime.paddle_import import prepare_paddle

prepare_paddle(1)

import paddle

from paddlex_feat.models import class_scores, heads
from paddlex_feat.models.registry import HEADS
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.classifier import head_file
from paddlex_feat.training.classifier.class_rows import ClassRows
from paddlex_feat.training.classifier.part import Part
from paddlex_feat.training.classifier.row_rules import MomentumRows
from paddlex_feat.training.classifier.sampled import SampledClassifier

CLASSES, DIM, BATCH, STEPS = 701, 16, 12, 200
kind, output = sys.argv[1], Path(sys.argv[2])
paddle.set_device("cpu")
group = ProcessGroup.from_environment()
group.init()
paddle.seed(3)
# Of a small scale: with one of 64, steps on random features and labels double a difference in the last bit each time.
spec, params = NetworkSpec(embedding_size=DIM, arc_scale=8.0), HEADS.get(kind).params()
if hasattr(params, "scale"):
    params = params.model_copy(update={"scale": 8.0})
part = Part(CLASSES, group)
vectors = getattr(heads, kind)(spec, CLASSES, params).class_vectors()[part.first : part.first + part.count].copy()
rows = ClassRows(vectors, getattr(class_scores, kind)(spec, params), MomentumRows(0.9, 1e-4), threads=1)
classifier = SampledClassifier(rows, part, 1.0, seed=0)
losses, gradients = [], []
for step in range(STEPS):
    random = np.random.default_rng(step)
    x, labels = random.standard_normal((BATCH, DIM), np.float32), random.integers(0, CLASSES, BATCH)
    share = BATCH // group.size
    own = slice(group.rank * share, (group.rank + 1) * share)
    halves = [(x[own][half::2], labels[own][half::2]) for half in range(2)]  # accumulated
    classifier.draw([target for _, target in halves])
    total, parts = 0.0, np.empty((share, DIM), np.float32)
    for half, (features, target) in enumerate(halves):
        leaf = paddle.to_tensor(features, stop_gradient=False)
        loss = classifier.loss(leaf, paddle.to_tensor(target), 0.1) * 0.5
        loss.backward()
        total += float(loss)
        parts[half::2] = leaf.grad.numpy() / group.size
    classifier.update(0.05)
    losses.append(np.mean([float(value[0]) for value in group.all_gather_rows(np.array([total]))]))
    gradients.append(np.concatenate(group.all_gather_rows(parts)))
head_file.write(output.with_suffix(f".{head_file.SUFFIX}"), classifier)
if group.rank == 0:
    np.savez(output.with_suffix(".npz"), losses=losses, gradients=gradients)
