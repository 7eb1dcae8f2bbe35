"""What a converter of another format is, for the registry of converters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec


def _write_nothing() -> None:
    pass


@dataclass
class Converted:
    """Images with their classes, as a converter finds them. Nothing has been written yet.

    Attributes:
        paths: of the images, relative to the data set's folder.
        labels: class of each image, as an index into `names`.
        names: of the classes.
        findings: what could not be used, and what the user should know.
        write_images: writes those images that are not files yet; called once it is certain that lists are written.
            Raises DatasetError or OutputError.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    write_images: Callable[[], None] = _write_nothing


@dataclass(frozen=True)
class ConverterSpec:
    """A format that mode check_dataset converts to train.txt, gallery.txt and query.txt, divided at random.

    Attributes:
        name: value of `CheckDataset.convert.src_dataset_type`.
        find_root: Global.dataset_dir -> the folder to convert. Raises DatasetError if there is none, or several.
        convert: folder -> images with their classes. It writes nothing; what it cannot use becomes a finding.
        findings: the kinds of findings that `convert` gives.
        needs: one sentence, what an image needs in order to be used, for the error if none can be used.
        percents: shares of train, gallery and query, which add up to 100.
    """

    name: str
    find_root: Callable[[str], Path]
    convert: Callable[[Path], Converted]
    findings: tuple[FindingSpec, ...]
    needs: str
    percents: tuple[int, int, int] = (50, 30, 20)
