"""Image size and number of epochs of Train.recipe=auto, by what Train.recipe_minutes allows.

Costs are counted in trained images of 224 px, not measured: a choice follows from the data alone, on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = (224, 192, 160, 128)  # px; features of larger images are better, whatever the size of the files
MIN_EPOCHS = 3
ENOUGH_EPOCHS = 6  # have to fit at a larger size, for epochs are worth more than pixels
MAX_EPOCHS = 8
FEW_IMAGES = 1000  # below which more than ENOUGH_EPOCHS teach nothing
# Images of 224 px that two processors train in a minute, by backbone, and of another one.
TRAINED = {"EfficientNet_Lite0": 750, "PPLCNetV2_base_ShiTu": 550}
TRAINED_OF_OTHERS = 40  # CLIP's ViT-B/16
EMBEDDED = 0.25  # cost of an image's features
MAPS = 4  # features of the training images and of their mirror images, for a map at the start and one at the end
CHEAP_EVALUATION = 1000  # images of gallery and query up to which averages of weights are worth measuring
SCRATCH_SIZE = 64  # px
SMALL_SCRATCH_SIZE = 48  # px; of many images
# Images of SCRATCH_SIZE that two processors train in a minute from random weights, with evaluations: of PP-ShiTuV2_rec.
SCRATCH_IMAGES = 3860
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
    """

    images: int
    evaluated: int
    minutes: float
    backbone: str
    on_gpu: bool

    @property
    def evaluates_cheaply(self) -> bool:
        """Whether evaluations cost little beside the training."""
        return self.on_gpu or self.evaluated <= CHEAP_EVALUATION

    @property
    def _trained(self) -> int:
        return TRAINED.get(self.backbone, TRAINED_OF_OTHERS)

    @property
    def most_epochs(self) -> int:
        """Epochs of fine-tuning after which more would change little."""
        return ENOUGH_EPOCHS if self.images < FEW_IMAGES else MAX_EPOCHS

    def size(self) -> int:
        """The largest size of which ENOUGH_EPOCHS fit, in px."""
        return next((size for size in SIZES if self._epochs(size) >= ENOUGH_EPOCHS), SIZES[-1])

    def epochs(self, size: int) -> int:
        """Epochs of fine-tuning at this size."""
        return int(min(self.most_epochs, max(MIN_EPOCHS, self._epochs(size))))

    def scratch_epochs(self, size: int) -> int:
        """Epochs from random weights at this size."""
        if self.on_gpu:
            return MAX_SCRATCH_EPOCHS
        share = self._trained / TRAINED["PPLCNetV2_base_ShiTu"]
        most = self.minutes * share * SCRATCH_IMAGES * (SCRATCH_SIZE / size) ** 2 / self.images
        return int(min(MAX_SCRATCH_EPOCHS, max(MIN_EPOCHS, most)))

    def _epochs(self, size: int) -> float:
        if self.on_gpu:
            return float("inf")
        evaluations = 6 + 6 * self.evaluates_cheaply  # start, maps and two epochs; all epochs and averages
        embedded = EMBEDDED * (MAPS * self.images + evaluations * self.evaluated)
        trained = self.minutes * self._trained * (SIZES[0] / size) ** 2
        return (trained - embedded) / self.images
