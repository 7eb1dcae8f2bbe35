"""What `predict` accepts: paths, texts, arrays and their nestings, as one stream of images."""

from paddlex_feat.inference.inputs.items import InputIteratorError, Item, is_slow_source, iter_images
from paddlex_feat.inference.inputs.paths import Search

__all__ = ["InputIteratorError", "Item", "Search", "is_slow_source", "iter_images"]
