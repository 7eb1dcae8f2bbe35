"""What the checks look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paddlex_feat.dataset.images import ImageFacts
from paddlex_feat.dataset.records import ImageList

SAMPLED = 500  # images a list that CheckDataset.decode=sample decodes


@dataclass(frozen=True)
class Settings:
    """The training settings that a data set must fit, and how it is checked.

    Attributes:
        samples_per_class: K of P x K sampling, None without it.
        num_classes: width of the classifier, None for the labels of train.txt.
        input_size: side of the network's input in pixels.
        workers: threads that decode.
        decode: "all", "sample" or "none" of the images.
        strict: warnings count as errors.
    """

    batch_size: int
    samples_per_class: int | None
    num_classes: int | None
    workers: int
    input_size: int = 224
    decode: str = "all"
    strict: bool = False


@dataclass
class DataSet:
    """The three lists by name, and what is known of their image files by path."""

    root: Path
    lists: dict[str, ImageList] = field(default_factory=dict)
    facts: dict[str, ImageFacts] = field(default_factory=dict)

    def short(self, file: str) -> str:
        """A record's file as its list writes it."""
        return file.removeprefix(f"{self.root}/")

    def readable(self, *files: str) -> tuple[str, ...]:
        """Those of the files that were decoded, and so can be shown."""
        return tuple(file for file in files if file in self.facts and not self.facts[file].fault)

    def records(self, *names: str) -> Iterator[tuple[str, int, str, str]]:
        """(file, label, file:line, list) of every record of these lists, or of all three."""
        for name in names or self.lists:
            records = self.lists[name]
            for i, file in enumerate(records.files()):
                yield file, records.labels[i], records.where(i), name
