"""The records of a list of images: path, label and line of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.lists.columns import Files, Texts, join, taken


@dataclass
class ImageList:
    """One list of a data set, as columns: lists of Python's objects, or those of `data.lists.columns` for many images.

    Attributes:
        name: "train", "gallery" or "query".
        root: folder that the paths are relative to.
        paths: path of each image, as the list has it; an `ImageSource` where it is not a file of its own.
        labels: class of each image, at least 0.
        lines: line of each image in the list's file, from 1; empty for formats without lines.
        file: name of the list's file; "" for `<name>.txt`; None: no file lists the images.
        names: of the classes, by label; empty where labels have no other name.
        origin: format of the data set and how it was understood, for run.json; "" for lists, which say it themselves.
        leave_one_out: of the queries: whether the gallery has them too, and none counts as a match of itself.
        cameras: number of the camera of each image; empty for data sets without cameras. A gallery image of the class
            and the camera of a query does not count for it.
    """

    name: str
    root: Path
    paths: Sequence[str] = field(default_factory=list)
    labels: Sequence[int] = field(default_factory=list)
    lines: Sequence[int] = field(default_factory=list)
    _files: Sequence[str] = field(default_factory=list, repr=False)
    file: str | None = ""
    names: Mapping[int, str] = field(default_factory=dict)
    origin: str = ""
    leave_one_out: bool = False
    cameras: Sequence[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def source(self) -> str:
        """The list's file as messages name it; its name where no file lists the images."""
        return self.name if self.file is None else self.file or f"{self.name}.txt"

    @property
    def title(self) -> str:
        """The list in messages: its own file, else its name, as one file may hold all lists."""
        return f"{self.name}.txt" if self.file == "" else self.name

    def name_of(self, label: int) -> str:
        """The name of a class, its number where it has no other."""
        return self.names.get(label, str(label))

    def where(self, index: int) -> str:
        """file:line of a record; its path in a format without lines."""
        return f"{self.source}:{self.lines[index]}" if self.lines else self.paths[index]

    def files(self) -> Sequence[str]:
        """Path of each image file, the same for each way of writing it in a list."""
        if len(self._files) != len(self.paths):
            root, paths = os.fspath(self.root), self.paths
            self._files = Files(root, paths) if isinstance(paths, Texts) else [_join(root, path) for path in paths]
        return self._files

    def class_sizes(self) -> dict[int, int]:
        """Number of images of each class, in the order in which the list has them."""
        if not isinstance(self.paths, Texts):
            return dict(Counter(self.labels))
        labels, first, counts = np.unique(self.labels, return_index=True, return_counts=True)
        order = np.argsort(first)
        return dict(zip(labels[order].tolist(), counts[order].tolist(), strict=True))

    def part(self, indices: Sequence[int], name: str | None = None) -> ImageList:
        """The records of these indices as a list of their own, with their lines; `name` of the list, None: the same."""
        places = np.asarray(indices, np.int64)
        lines = taken(self.lines, places) if self.lines else []
        paths, labels = taken(self.paths, places), taken(self.labels, places)
        part = ImageList(name or self.name, self.root, paths, labels, lines, file=self.file, names=self.names)
        part.cameras = taken(self.cameras, places) if self.cameras else []
        part.origin = self.origin
        return part


def same_images(one: ImageList, other: ImageList) -> bool:
    """Whether two lists name the same files in the same order, as those of leave-one-out evaluation do."""
    return one is other or one.files() == other.files()


def _join(root: str, path: str) -> str:
    return path if isinstance(path, ImageSource) else join(root, path)
