"""Image size and number of epochs of Train.recipe=auto, by what Train.recipe_minutes allows.

Costs are counted in trained images of 224 px, not measured: a choice follows from the data and the kind of processor.
"""

from __future__ import annotations

from dataclasses import dataclass

from paddlex_feat.training.adaptation.maps import MIRRORED

SIZES = (224, 192, 160, 128, 96)  # px; features of larger images are better, whatever the size of the files
# What is seen in a random crop looks larger than in a whole image. A larger image at the end evens that out: Touvron et
# al., "Fixing the train-test resolution discrepancy", arXiv:1906.06423.
EVAL_LARGER = 32  # px
MIN_EPOCHS = 3
ENOUGH_EPOCHS = 6  # have to fit at a larger size, for epochs are worth more than pixels
MAX_EPOCHS = 8
FEW_IMAGES = 1000  # below which more than ENOUGH_EPOCHS teach nothing
# Images of 224 px that two processors without AVX-512 train in a minute, by backbone, and of another one.
TRAINED = {"EfficientNet_Lite0": 650, "PPLCNetV2_base_ShiTu": 370}
TRAINED_OF_OTHERS = 25  # CLIP's ViT-B/16
WITH_AVX512 = 1.6  # times as many: before training had channels last it was twice, since then it was not measured
FIXED_MINUTES = 0.5  # of starting, and of fitting maps
EMBEDDED = 0.25  # cost of an image's features
MAPS = 2  # which need features of the training images: one at the start and one at the end
CHEAP_EVALUATION = 1000  # images of gallery and query up to which averages of weights are worth measuring
SCRATCH_SIZE = 64  # px
SMALL_SCRATCH_SIZE = 48  # px; of many images
# Images of SCRATCH_SIZE that are trained from random weights, with evaluations, in the time of one of 224 px.
SCRATCH_IMAGES = 7
MAX_SCRATCH_EPOCHS = 200


@dataclass(frozen=True)
class Budget:
    """What a training may cost.

    Attributes:
        images: for training.
        evaluated: images of gallery and query.
        minutes: Train.recipe_minutes.
        backbone: name of the network.
        on_gpu: whether a GPU trains. Costs are not counted then.
        avx512: whether the processors have AVX-512.
        stride: what sizes must be a multiple of, in px.
        given_epochs: Train.epochs_iters, if the user sets it; None: it is chosen.
    """

    images: int
    evaluated: int
    minutes: float
    backbone: str
    on_gpu: bool
    avx512: bool
    stride: int = 1
    given_epochs: int | None = None

    @property
    def evaluates_cheaply(self) -> bool:
        """Whether evaluations cost little beside the training."""
        return self.on_gpu or self.evaluated <= CHEAP_EVALUATION

    @property
    def _trained(self) -> float:
        return TRAINED.get(self.backbone, TRAINED_OF_OTHERS) * (WITH_AVX512 if self.avx512 else 1)

    @property
    def most_epochs(self) -> int:
        """Epochs of fine-tuning after which more would change little."""
        return ENOUGH_EPOCHS if self.images < FEW_IMAGES else MAX_EPOCHS

    def size(self) -> int:
        """The largest size of which ENOUGH_EPOCHS fit, or those that are given, in px."""
        sizes, enough = [self.fit(size) for size in SIZES], self.given_epochs or ENOUGH_EPOCHS
        return next((size for size in sizes if self._epochs(size) >= enough), sizes[-1])

    def fit(self, size: int) -> int:
        """The multiple of the stride that is nearest to a size, in px."""
        return max(self.stride, round(size / self.stride) * self.stride)

    def eval_size(self, size: int) -> int:
        """Size of evaluation and export for a size of training, in px."""
        return max(size, self.fit(min(SIZES[0], size + EVAL_LARGER)))

    def epochs(self, size: int) -> int:
        """Epochs of fine-tuning at this size."""
        return int(min(self.most_epochs, max(MIN_EPOCHS, self._epochs(size))))

    def scratch_epochs(self, size: int) -> int:
        """Epochs from random weights at this size."""
        if self.on_gpu:
            return MAX_SCRATCH_EPOCHS
        most = self.minutes * self._trained * SCRATCH_IMAGES * (SCRATCH_SIZE / size) ** 2 / self.images
        return int(min(MAX_SCRATCH_EPOCHS, max(MIN_EPOCHS, most)))

    def _epochs(self, size: int) -> float:
        if self.on_gpu:
            return float("inf")
        evaluations = 5 + 7 * self.evaluates_cheaply  # start, maps and the end; all epochs and averages
        views = MAPS * (2 if self.images <= MIRRORED else 1)
        embedded = EMBEDDED * (self.eval_size(size) / size) ** 2 * (views * self.images + evaluations * self.evaluated)
        trained = (self.minutes - FIXED_MINUTES) * self._trained * (SIZES[0] / size) ** 2
        return (trained - embedded) / self.images
