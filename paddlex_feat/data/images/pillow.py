"""Open images with Pillow, without its warnings and limit of pixels, which stay as they are for other code."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from mmap import mmap
from typing import Any, cast

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    SunImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# `Image.open` warns above its limit of pixels and fails above twice that; the plugins themselves have no limit.
_PLUGINS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\xff\xd8", JpegImagePlugin.jpeg_factory),
    (b"\x89PNG", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II", TiffImagePlugin.TiffImageFile),
    (b"MM", TiffImagePlugin.TiffImageFile),
    (b"P", PpmImagePlugin.PpmImageFile),
    (b"\x59\xa6", SunImagePlugin.SunImageFile),
)
_MODULE = r"(?:PIL)\."  # what the filter below applies to; in this spelling nobody else's filter equals it


@contextmanager
def open_image(data: bytes | mmap) -> Iterator[Image.Image]:
    """Open an image of any size, of the formats that `formats.py` admits; its pixels are not decoded.

    Within the block Pillow's warnings are not shown, for they name no file.

    Args:
        data: content of an image file. A mapped file is not copied.

    Raises:
        ValueError: it is not an image of these formats.
        Exception: nearly any other, for a damaged file.
    """
    plugin = next((plugin for beginning, plugin in _PLUGINS if data[: len(beginning)] == beginning), None)
    if plugin is None:
        raise ValueError("not an image of a known format")
    stream = data if isinstance(data, mmap) else io.BytesIO(data)
    stream.seek(0)
    with _without_warnings:
        yield plugin(stream, "")


class _WithoutPillowsWarnings:
    """A filter of warnings that is in the process's list while a thread is in such a block.

    `warnings.catch_warnings` would replace the whole list, and restore it while other threads still need theirs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._lists: list[list[Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks:
                warnings.filterwarnings("ignore", category=Warning, module=_MODULE)
                self._lists = [cast("list[Any]", warnings.filters)]
            self._blocks += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                # Another thread's `catch_warnings` may have put a copy of the list in its place meanwhile.
                for filters in (*self._lists, cast("list[Any]", warnings.filters)):
                    for entry in [e for e in filters if getattr(e[3], "pattern", None) == _MODULE]:
                        with suppress(ValueError):
                            filters.remove(entry)


_without_warnings = _WithoutPillowsWarnings()
