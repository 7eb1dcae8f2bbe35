"""Image files: `decode` (read_rgb, read_bgr), `preprocess` (Preprocess), `cache` (ImageCache), `folders` (files_below).

`formats` decides which files are given to a decoder, `limits` how large they may be. The package uses the two libraries
through `opencv` and `pillow`. Importing this room imports neither.
"""

from paddlex_feat.data.images.limits import MAX_PIXELS

__all__ = ["MAX_PIXELS"]
