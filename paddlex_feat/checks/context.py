"""What a check is given: the data set, its images and the settings it must fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.data.images.source import are_parts_of_one
from paddlex_feat.data.lists.image_list import ImageList, same_images
from paddlex_feat.data.lists.repeated import same_files

if TYPE_CHECKING:
    from paddlex_feat.checks.label_space import LabelSpace

MAX_SAMPLED = 500  # images a list that CheckDataset.decode=sample decodes


@dataclass(frozen=True)
class CheckSettings:
    """The training settings that a data set must fit, and how it is checked.

    Attributes:
        batch_size: images of a training batch.
        samples_per_class: K of P x K sampling, None without it.
        num_classes: width of the classifier, None for the labels of train.txt.
        input_size: side of the network's input in pixels.
        workers: threads that decode.
        decode: "all", "sample" or "none" of the images.
        strict: warnings count as errors.
        refuse_outside: paths outside a list's folder are errors, and not opened.
        pixels: look for images whose pixels are unlike those of the others.
        exclude_self: evaluation leaves out a query's own file in the gallery.
    """

    batch_size: int
    samples_per_class: int | None
    num_classes: int | None
    workers: int
    input_size: int = 224
    decode: Literal["all", "sample", "none"] = "all"
    strict: bool = False
    refuse_outside: bool = False
    pixels: bool = True
    exclude_self: bool = False


class RecordLocation(NamedTuple):
    """One record of a list, by its position there."""

    records: ImageList
    position: int

    @property
    def list(self) -> str:
        """Name of the list."""
        return self.records.name

    @property
    def path(self) -> str:
        """The path of the image, as the list has it."""
        return self.records.paths[self.position]

    @property
    def file(self) -> str:
        """The image file."""
        return self.records.files()[self.position]

    @property
    def label(self) -> int:
        """The label."""
        return self.records.labels[self.position]

    @property
    def where(self) -> str:
        """file:line."""
        return self.records.where(self.position)


@dataclass(frozen=True)
class Features:
    """Features of the readable images of a data set.

    Attributes:
        rows: unit features, float32 [N, D].
        index: row of each file.
        model: what has computed them, for people.
    """

    rows: np.ndarray
    index: dict[str, int]
    model: str


@dataclass
class DataSet:
    """The data set that is checked.

    Attributes:
        root: its folder.
        lists: the three lists by name: train, gallery, query.
        image_info: what is known of the inspected image files, by path; empty for CheckDataset.decode=none.
        features: of the readable images; None without CheckDataset.features.
    """

    root: Path
    lists: dict[str, ImageList] = field(default_factory=dict)
    image_info: dict[str, ImageInfo] = field(default_factory=dict)
    features: Features | None = None
    label_spaces: list[LabelSpace] = field(default_factory=list)  # of `features`, when they were first asked for

    def readable(self, *files: str) -> tuple[str, ...]:
        """Those of the files that were decoded, so that a report can show them."""
        return tuple(file for file in files if file in self.image_info and not self.image_info[file].error)

    def distinct_lists(self) -> list[ImageList]:
        """The lists, without the queries of a leave-one-out data set that are the gallery once more."""
        lists = dict(self.lists)
        query, gallery = lists.get("query"), lists.get("gallery")
        if query and gallery and query.leave_one_out and same_images(query, gallery):
            del lists["query"]
        return list(lists.values())

    def records(self) -> Iterator[tuple[str, RecordLocation]]:
        """(file, location) of every record of `distinct_lists`."""
        for records in self.distinct_lists():
            for i, file in enumerate(records.files()):
                yield file, RecordLocation(records, i)

    @cached_property
    def same_files(self) -> list[list[RecordLocation]]:
        """The records of each file that is on more than one line, in their order."""
        lists = self.distinct_lists()
        return [[RecordLocation(lists[number], i) for number, i in group] for group in same_files(lists)]

    @cached_property
    def repeated(self) -> list[list[RecordLocation]]:
        """The records of each image that is on more than one line, in their order.

        Two records have the same image if their files' hashes are known and equal, else if their paths are equal. Boxes
        of one picture are no copies, and neither are those of one colour.
        """
        if not self.image_info:
            return self.same_files
        first: dict[str, RecordLocation] = {}
        groups: dict[str, list[RecordLocation]] = {}
        for file, record in self.records():
            info = self.image_info.get(file)
            flat = info is not None and info.empty and info.picture != (0, 0)
            key = info.sha256 or file if info and not flat else file
            if key in first and any(are_parts_of_one(file, r.file) for r in groups.get(key, [first[key]])):
                key = file
            if key in first:
                groups.setdefault(key, [first[key]]).append(record)
            else:
                first[key] = record
        return list(groups.values())
