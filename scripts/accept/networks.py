"""Small networks and batches for steps that are made without a data set."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from accept.bench import Bench
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.runtime.gpus import exact_products
from paddlex_feat.runtime.paddle_import import prepare_paddle

CLASSES, IMAGES = 4, 16
SHITU = NetworkSpec(dropout=0.0, input_size=64)
CLIP_BASE = NetworkSpec(
    backbone="CLIP_vit", patch_size=8, width=64, depth=2, heads=2, neck="linear", head="arc_margin", input_size=64
)
CLIP_LARGE = replace(CLIP_BASE, patch_size=14, class_token=True, input_size=56)


def shitu(bench: Bench) -> NetworkSpec:
    """PP-ShiTuV2_rec; on a CPU with the smallest images, for speed."""
    return SHITU if bench.gpu else replace(SHITU, input_size=32)


@dataclass
class Training:
    """A network with what trains it, on one device."""

    model: Any
    network: Any
    criterion: Any
    optimizer: Any

    def step(self, precision: Any = None, **options: Any) -> Any:
        """The package's optimizer step."""
        from paddlex_feat.training.step import Step

        return Step(self.network, self.criterion, self.optimizer, precision, **options)


def build(
    spec: NetworkSpec, device: str, mixed: bool = False, triplet: float = 1.0, clip: float | None = None
) -> Training:
    """The same weights for the same spec, whatever the device."""
    prepare_paddle()
    import paddle

    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.losses.combined import recipe_loss
    from paddlex_feat.models import recognizer
    from paddlex_feat.training.step import TrainingNetwork

    paddle.set_device(device)
    model = recognizer.build(spec, CLASSES)
    rng = np.random.default_rng(0)
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            fan = int(np.prod(tensor.shape[1:])) if tensor.ndim == 4 else int(tensor.shape[-2])
            state[name] = rng.normal(0, fan**-0.5, tensor.shape).astype(np.float32)
        else:  # scales, shifts and statistics as they are initialised, the same everywhere
            state[name] = tensor.numpy()
    model.set_state_dict(state)
    criterion = recipe_loss(0.1, 1.0, triplet)
    limit = paddle.nn.ClipGradByGlobalNorm(clip) if clip else None
    rate = 0.01 if spec.backbone == SHITU.backbone else 0.001  # as in the recipes
    optimizer = paddle.optimizer.Momentum(rate, 0.9, model.parameters(), grad_clip=limit)
    model.train()
    return Training(model, TrainingNetwork(model, Preprocess(spec.input_size), mixed), criterion, optimizer)


def batch(size: int, images: int = IMAGES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, S, S, 3] with a pattern of their class, and their labels int64 [N]."""
    rng, labels = np.random.default_rng(seed), np.arange(images) % CLASSES
    colours = np.random.default_rng(1).integers(0, 256, (CLASSES, 4, 4, 3))
    pattern = colours[labels].repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    return np.clip(pattern // 2 + rng.integers(0, 128, pattern.shape), 0, 255).astype(np.uint8), labels


def exact() -> AbstractContextManager[None]:
    """Without TF32. Paddle may not have been imported before."""
    prepare_paddle()
    return exact_products()


def lowered(training: Training, level: str, dtype: str) -> None:
    """Lower the weights' precision for O2, as a training does."""
    if level == "O2":
        from paddlex_feat.training.checkpoint import Progress, TrainingState

        state = TrainingState(training.model, training.optimizer, Progress())
        state.cast_to(dtype, training.model.head.sublayers(include_self=True))
