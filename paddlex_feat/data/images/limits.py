"""How large an image may be, in pixels, and whether OpenCV knows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# A small file can claim to be a huge image, so an image of more pixels is refused before it is decoded. Decoding takes
# up to 8 bytes a pixel: one image takes less than 1 GiB. Cameras of 108 megapixels fit.
MAX_PIXELS = 110_000_000
MOST_PIXELS = MAX_PIXELS  # its name in `paddlex_feat`

_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
opencv_has_limit = False  # whether OpenCV refuses larger images itself; until then each header is read first


@contextmanager
def limit_for_opencv() -> Iterator[None]:
    """Set OpenCV's limit for the import of `cv2` in this block, the only time when OpenCV reads it.

    The environment is restored afterwards. A limit that the user has set is kept. Where `cv2` was imported before,
    it is too late: then `opencv_has_limit` stays False, unless the user has set the variable.
    """
    global opencv_has_limit
    given = _VARIABLE in os.environ
    opencv_has_limit = given or "cv2" not in sys.modules
    if not given:
        os.environ[_VARIABLE] = str(MAX_PIXELS)
    try:
        yield
    except BaseException:
        opencv_has_limit = False
        raise
    finally:
        if not given:
            os.environ.pop(_VARIABLE, None)
