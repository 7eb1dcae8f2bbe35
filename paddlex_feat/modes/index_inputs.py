"""The images of Index.input with their labels: of a list, a data set of any format, or whatever predict takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers.find import find_root, read_whole, reader_of, require_no_errors
from paddlex_feat.data.readers.items import UNDIVIDED
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list
from paddlex_feat.errors import ConfigError, DatasetError
from paddlex_feat.fileio.reading import read_small
from paddlex_feat.hub.fetch import image_fetcher
from paddlex_feat.modes.predictor import inputs_of

Row = tuple[Any, str | None, str | None]  # image, label, key


def rows_of(config: Config) -> Iterator[Row]:
    """The images that Index.input names, or the lists Index.lists of the data set where it names none.

    Raises DatasetError, ConfigError; images are not opened.
    """
    wanted, given = config.Index, config.Index.input
    if given is None:
        yield from _of_data_set(config, config.Global.dataset_dir, tuple(wanted.lists))
        return
    given = inputs_of("Index.input", given)
    if isinstance(given, str) and given.lower().endswith((".txt", ".tsv")) and Path(given).is_file():
        yield from _of_list(Path(given), wanted.label)
    elif isinstance(given, str) and Path(given).is_dir() and _is_data_set(config, given):
        yield from _of_data_set(config, given, LISTS)
    else:
        for image in given if isinstance(given, list) else [given]:
            yield image, wanted.label, None


def _is_data_set(config: Config, folder: str) -> bool:
    """Whether a folder is a data set, or has one in it; a folder of images alone is none."""
    try:
        find_root(folder, form=config.Global.dataset_format)
    except DatasetError as error:
        if error.code != "no-dataset":
            raise
        return False
    return True


def _of_data_set(config: Config, folder: str, names: tuple[str, ...]) -> Iterator[Row]:
    """The images of some lists of a data set, each once; all of one that is not divided."""
    unknown = set(names) - set(LISTS)
    if unknown:
        fix = f"Choose from {', '.join(LISTS)}."
        raise ConfigError(
            f"There is no list {sorted(unknown)[0]!r}.", where="Index.lists", fix=fix, code="list-unknown"
        )
    form, refuse = config.Global.dataset_format, config.CheckDataset.outside == "refuse"
    root = find_root(folder, form=form)
    reader = reader_of(root, form=form)
    lists, findings, _ = read_whole(root, reader, LISTS, refuse, image_fetcher(config.CheckDataset.urls))
    require_no_errors(findings, root)
    seen: set[str] = set()  # of images in several lists, as of one that is gallery and query
    for records in (lists[UNDIVIDED],) if UNDIVIDED in lists else (lists[name] for name in names):
        for row in _of_records(records, config.Index.label):
            if str(row[0]) not in seen:
                seen.add(str(row[0]))
                yield row


def _of_records(records: ImageList, label: str | None) -> Iterator[Row]:
    for path, file, number in zip(records.paths, records.files(), records.labels, strict=True):
        key = None  # the path of the file
        if isinstance(path, ImageSource):
            key = f"{records.root}/{path}"
            if path.box is not None:  # which the gallery appends
                key = key.removesuffix(f"[{path.box}]")
        yield file, label if label is not None else records.name_of(number), key


def _of_list(path: Path, label: str | None) -> Iterator[Row]:
    """Lines `path label`, with a blank or a tab between them, or paths alone; PaddleX has the same in label files."""
    try:
        text = decode_list(read_small(path, MAX_LIST_BYTES))[0]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8, UTF-16 or GBK text"
        fix = "Save it as UTF-8 text, with a path and a label a line."
        raise DatasetError(
            f"The list cannot be read: {reason}.", where=str(path), fix=fix, code="list-unreadable"
        ) from None
    for line in filter(None, map(str.strip, text.splitlines())):
        image, _, name = line.partition("\t") if "\t" in line else line.rpartition(" ")
        if not image or _exists(path, line):
            image, name = line, ""
        yield _resolved(path, image), label if label is not None else name.strip() or None, None


def _exists(path: Path, image: str) -> bool:
    return "\0" not in image and ((path.parent / image).is_file() or Path(image).is_file())


def _resolved(path: Path, image: str) -> str:
    """The file of an image: from the folder of the list, else from the working directory."""
    beside = path.parent / image
    return str(beside) if "\0" not in image and beside.is_file() else image
