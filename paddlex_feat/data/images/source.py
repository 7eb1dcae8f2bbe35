"""Images that are not files of their own: bytes within a larger file, or a box of a picture."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from paddlex_feat.errors import ImageError


class Box(NamedTuple):
    """A rectangle in pixels of the decoded picture, turned as its EXIF data say: x1 <= x < x2, y1 <= y < y2."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __str__(self) -> str:
        return f"{self.x1:g},{self.y1:g},{self.x2:g},{self.y2:g}"


class ImageSource(str):
    """Where an image is that is not a file of its own.

    As text it is a name that no other image of the data set has. So it stands wherever the path of an image file does,
    and only what opens images looks at the attributes.

    Attributes:
        file: path of the file that has its bytes.
        start: offset of the first byte in the file.
        length: number of bytes; None: all from `start` on.
        box: the part of the picture that is meant; None: all of it.
    """

    __slots__ = ("box", "file", "length", "start")
    file: str
    start: int
    length: int | None
    box: Box | None

    def __new__(
        cls, name: str, file: str, start: int = 0, length: int | None = None, box: Box | None = None
    ) -> ImageSource:
        """Name an image; the other arguments are the attributes."""
        source = super().__new__(cls, name)
        source.file, source.start, source.length, source.box = file, start, length, box
        return source

    def __reduce__(self) -> tuple[type[ImageSource], tuple[object, ...]]:
        return ImageSource, (str(self), self.file, self.start, self.length, self.box)


def plain_of(path: str) -> str | list[Any]:
    """A path, or where an image is, as JSON for another process."""
    if not isinstance(path, ImageSource):
        return str(path)
    return [str(path), path.file, path.start, path.length, path.box]


def path_of(plain: str | list[Any]) -> str:
    """What `plain_of` was given."""
    if isinstance(plain, str):
        return plain
    name, file, start, length, box = plain
    return ImageSource(name, file, start, length, box and Box(*box))


def file_of(path: str) -> str:
    """The file that has the bytes of an image."""
    return path.file if isinstance(path, ImageSource) else path


def box_of(path: object) -> Box | None:
    """The box of an image that is a part of a picture, else None."""
    return path.box if isinstance(path, ImageSource) else None


def picture_of(path: str) -> tuple[str, int, int | None]:
    """What is equal for all boxes of one picture: its file, where it begins there, and its length."""
    return (path.file, path.start, path.length) if isinstance(path, ImageSource) else (path, 0, None)


def are_parts_of_one(first: str, second: str) -> bool:
    """Whether two images are different boxes of one picture, which are no copies even if they overlap."""
    if box_of(first) is None or box_of(second) is None or first == second:
        return False
    return picture_of(first) == picture_of(second)


def size_of(path: str) -> int:
    """Bytes of an image. Raises OSError where its file does not exist, ValueError for a NUL in its path."""
    if isinstance(path, ImageSource) and path.length is not None:
        if os.stat(path.file).st_size < path.start + path.length:
            raise OSError(None, "the file ends before the image", path.file)
        return path.length
    return os.stat(file_of(path)).st_size


def grown(path: str, margin: float) -> str:
    """The image with a box that is wider and higher by `margin` of its sides on each side; others as they are."""
    box = box_of(path)
    if box is None or not margin or not isinstance(path, ImageSource):
        return path
    x, y = margin * (box.x2 - box.x1), margin * (box.y2 - box.y1)
    larger = Box(box.x1 - x, box.y1 - y, box.x2 + x, box.y2 + y)
    return ImageSource(f"{path} with {margin:g} around", path.file, path.start, path.length, larger)


def crop(image: np.ndarray, box: Box, name: str) -> np.ndarray:
    """The pixels of a box, uint8 [h, w, 3]: whole pixels, by rounding, within the picture.

    Args:
        image: the picture, uint8 [H, W, 3].
        box: what is cut out.
        name: of the image, for the error.

    Raises:
        ImageError: no pixel of the picture is in the box.
    """
    height, width = image.shape[:2]
    left, right = (min(max(round(x), 0), width) for x in (box.x1, box.x2))
    top, bottom = (min(max(round(y), 0), height) for y in (box.y1, box.y2))
    if left >= right or top >= bottom:
        raise ImageError(
            f"The box {box} has no pixel of the picture, which is {width} x {height}.",
            where=name,
            fix="Correct the box: x1, y1, x2, y2 in pixels.",
            code="box-empty",
        )
    return np.ascontiguousarray(image[top:bottom, left:right])
