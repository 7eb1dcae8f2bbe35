"""Training augmentation: `Augment` reads an image file and gives an 8-bit square, by one random generator a sample."""

from paddlex_feat.data.augment.augment import Augment, AugmentParams
from paddlex_feat.data.augment.rand_augment import RandAugment

__all__ = ["Augment", "AugmentParams", "RandAugment"]
