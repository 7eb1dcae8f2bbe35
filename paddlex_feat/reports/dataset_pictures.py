"""Sample images and plots of check_dataset."""

from __future__ import annotations

import os
import random
from array import array
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import LISTS
from paddlex_feat.errors import ImageError, as_output_error
from paddlex_feat.fileio.atomic import atomic_path, read_result, write_bytes, write_json
from paddlex_feat.fileio.atomic_folder import recover_folder
from paddlex_feat.fileio.reading import read_small
from paddlex_feat.fileio.temporary import remove_stale

SAMPLES_PER_LIST = 10
_MAX_SAMPLE_SIDE = 4096  # of a sample, in pixels
_MAX_SAMPLE_BYTES = 2**27  # bytes of a file that may be a sample
_RECORD = ".paddlex_feat.samples.json"  # in their folder: the SHA-256 of each, by name
_MAX_TRIES = 1000  # images of a list that are tried for samples
# Formats that every browser shows; samples of other formats are saved as PNG.
_WEB_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def write_samples(lists: dict[str, ImageList], folder: Path) -> dict[str, list[str]]:
    """Save up to ten labelled images of each list under `folder`; return their names in it.

    Names keep the sub-folders of the data set, so that equal file names seldom collide; those that do are numbered. The
    choice of images depends on the lists alone. Undecodable images are skipped: the checks have reported them. The
    samples of an earlier check are removed; other files in the folder stay, and keep their names.
    """
    recover_folder(folder)  # left by an older version, which exchanged the whole folder
    names: dict[str, list[str]] = {}
    samples = _Samples(folder)
    for name, records in lists.items():
        order = array("q", range(len(records)))
        random.Random(123).shuffle(order)  # noqa: S311
        names[name] = []
        for i in order[:_MAX_TRIES]:
            if len(names[name]) == SAMPLES_PER_LIST:
                break
            with suppress(ImageError):
                names[name].append(samples.save(records, i))
    samples.finish()
    return names


class _Samples:
    """The samples in a folder; a record of their names and contents distinguishes them from the user's files."""

    def __init__(self, folder: Path):
        for place, _, _ in os.walk(folder):
            remove_stale(Path(place))  # of a run that was killed
        self._folder = folder
        former = read_result(folder / _RECORD).get("samples")
        former = former if isinstance(former, dict) else {}
        self._former = {name: digest for name, digest in former.items() if name == str(_inside(name))}
        self._written: dict[str, str] = {}
        self._taken: dict[str, tuple[str, int]] = {}  # the file and label of each name

    def save(self, records: ImageList, i: int) -> str:
        """Write the sample of one record and return its name. Raises ImageError if it cannot be decoded."""
        image = read_rgb(records.files()[i], warnings=[])  # damage is a finding
        scale = min(1, _MAX_SAMPLE_SIDE / max(image.shape[:2]))
        if scale < 1:
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        relative = _sample_name(records.paths[i])
        labelled = cv2.cvtColor(_labelled(image, records.labels[i]), cv2.COLOR_RGB2BGR)
        data = cv2.imencode(relative.suffix.lower(), labelled)[1].tobytes()
        mine, name, number = (records.files()[i], records.labels[i]), str(relative), 1
        while self._taken.setdefault(name, mine) != mine or not self._may_be(name, data):
            number += 1
            name = str(relative.with_name(f"{relative.stem}_{number}{relative.suffix}"))
        write_bytes(self._folder / name, data, fsync_dir=False)
        self._written[name] = sha256(data).hexdigest()
        return name

    def _may_be(self, name: str, data: bytes) -> bool:
        """Whether a sample may have this name: it is free, or that of an earlier sample, or of the same content."""
        path = self._folder / name
        return not os.path.lexists(path) or self._is_former(name) or _content(path) == sha256(data).hexdigest()

    def _is_former(self, name: str) -> bool:
        return name in self._former and _content(self._folder / name) == self._former[name]

    def finish(self) -> None:
        """Remove the earlier samples that were not written again, with the folders that become empty."""
        with as_output_error(self._folder):
            for name in self._former.keys() - self._written.keys():
                path = self._folder / name
                if self._is_former(name):
                    path.unlink()
                    for parent in PurePosixPath(name).parents[:-1]:
                        with suppress(OSError):  # not empty
                            (self._folder / parent).rmdir()
        write_json(self._folder / _RECORD, {"samples": self._written}, fsync_dir=False)


def _content(path: Path) -> str:
    """SHA-256 of a file; "" for a link, and for what is not a file."""
    try:
        return "" if path.is_symlink() else sha256(read_small(path, _MAX_SAMPLE_BYTES)).hexdigest()
    except OSError:
        return ""


def _sample_name(path: str) -> PurePosixPath:
    """The path of a record as a name inside the folder of samples."""
    text = path.replace("\\", "/")
    if isinstance(path, ImageSource):
        text = text.replace(":", "_")  # of a row, as in train.parquet:7; no name on Windows has it
    parts = [p if len(os.fsencode(p)) <= 200 else _short(p) for p in _inside(text).parts]
    relative = PurePosixPath(*parts)
    return relative if relative.suffix.lower() in _WEB_SUFFIXES else relative.with_name(relative.name + ".png")


def _inside(path: str) -> PurePosixPath:
    """A path without the parts that lead out of a folder."""
    return PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("..", "/", "//", ".")))


def _short(name: str) -> str:
    suffix = Path(name).suffix
    return sha256(os.fsencode(name)).hexdigest() + (suffix if suffix.lower() in _WEB_SUFFIXES else "")


def _labelled(image: np.ndarray, label: int) -> np.ndarray:
    """The image with its label, white on red, at the top left."""
    image = image.copy()
    scale = max(image.shape[1] / 400, 0.35)
    thickness = max(1, round(scale * 1.5))
    (width, height), base = cv2.getTextSize(str(label), cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    cv2.rectangle(image, (0, 0), (width + 4, height + base + 4), (200, 0, 0), -1)
    cv2.putText(
        image, str(label), (2, height + 2), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thickness, cv2.LINE_AA
    )
    return image


def _drawn(path: Path, content: str) -> bool:
    """Whether `path` is a plot of this content already; importing matplotlib takes most of the time of a short run."""
    try:
        with Image.open(path) as plot:
            return plot.info.get("Description") == content
    except (OSError, ValueError, SyntaxError):
        return False


def _save(figure: Any, path: Path, content: str) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Description": content})


def write_histogram(lists: dict[str, ImageList], path: Path) -> None:
    """Bars of images and classes for each list, with their numbers, as a PNG."""
    images = [len(lists[name]) for name in LISTS]
    classes = [len(lists[name].class_sizes()) for name in LISTS]
    content = f"images {images}, classes {classes}"
    if _drawn(path, content):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(LISTS))
    for offset, values, label, colour in ((-0.2, images, "images", "#4269d0"), (0.2, classes, "classes", "#efb118")):
        bars = axes.bar(positions + offset, values, 0.38, label=label, color=colour)
        axes.bar_label(bars, padding=2)
    axes.set_xticks(positions, [lists[name].title for name in LISTS])
    axes.set_ylabel("count")
    axes.set_title("Images and classes in each list")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    _save(figure, path, content)


def write_class_sizes(lists: dict[str, ImageList], path: Path) -> None:
    """Images per class, largest class first, one curve a list, as a PNG."""
    sizes = {name: np.sort(np.unique(lists[name].labels, return_counts=True)[1])[::-1] for name in LISTS}
    content = sha256(repr([s.tolist() for s in sizes.values()]).encode()).hexdigest()
    if _drawn(path, content):
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(LISTS, ("#4269d0", "#efb118", "#ff725c"), strict=True):
        if len(sizes[name]):
            places = np.arange(1, len(sizes[name]) + 1)
            axes.step(places, sizes[name], where="mid", label=lists[name].title, color=colour)
            axes.plot(places[:1], sizes[name][:1], ".", color=colour)  # a single class has no line
    if any(map(len, sizes.values())):
        axes.legend(frameon=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="Images per class", xlabel="class, by size", ylabel="images", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, content)
