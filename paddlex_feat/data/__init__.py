"""Data sets: lists of images, image files, augmentation and batches.

* `lists`: the records of a data set; fingerprints, splits, replacing list files.
* `readers`: formats of data sets that are read as they are.
* `converters`: formats that are converted to lists.
* `images`: which files are decoded, and how; pre-processing; the cache of decoded images.
* `augment`: training augmentation.
* `samplers`: which images form a batch.
* `loading`: batches, decoded ahead by threads or processes.
* `findings`: what is wrong with a data set.

Importing this room imports nothing else; the names of `__all__` are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlex_feat.fileio.lazy import lazy_names

if TYPE_CHECKING:
    from paddlex_feat.data.augment import Augment, AugmentParams
    from paddlex_feat.data.converters import CONVERTERS, ConverterSpec
    from paddlex_feat.data.findings import Finding, FindingSpec
    from paddlex_feat.data.images.cache import ImageCache
    from paddlex_feat.data.images.decode import read_bgr, read_rgb
    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.data.lists import LISTS, ImageList
    from paddlex_feat.data.lists.split import split_lists
    from paddlex_feat.data.loading import evaluation_batches, training_batches
    from paddlex_feat.data.readers import READERS, ReaderSpec, require_lists
    from paddlex_feat.data.samplers import PKSampler, ShuffleSampler

__all__ = [
    "CONVERTERS",
    "LISTS",
    "READERS",
    "Augment",
    "AugmentParams",
    "ConverterSpec",
    "Finding",
    "FindingSpec",
    "ImageCache",
    "ImageList",
    "PKSampler",
    "Preprocess",
    "ReaderSpec",
    "ShuffleSampler",
    "evaluation_batches",
    "read_bgr",
    "read_rgb",
    "require_lists",
    "split_lists",
    "training_batches",
]

if not TYPE_CHECKING:  # seen by a type checker, it would make any name pass
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "augment": ("Augment", "AugmentParams"),
            "converters": ("CONVERTERS", "ConverterSpec"),
            "findings": ("Finding", "FindingSpec"),
            "images.cache": ("ImageCache",),
            "images.decode": ("read_bgr", "read_rgb"),
            "images.preprocess": ("Preprocess",),
            "lists": ("ImageList", "LISTS"),
            "lists.split": ("split_lists",),
            "loading": ("evaluation_batches", "training_batches"),
            "readers": ("READERS", "ReaderSpec", "require_lists"),
            "samplers": ("PKSampler", "ShuffleSampler"),
        },
    )
