"""Images that several modes need: missing ones, queries that are in the gallery too, images to compare exports on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from paddlex_feat.config.schema import Config, SplitSection
from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.images.source import file_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.split import Division
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers import find as readers
from paddlex_feat.data.readers import find_root, require_lists
from paddlex_feat.errors import DatasetError, ImageError
from paddlex_feat.evaluation.matches import describe_self_matches, excluded_pairs, require_matches
from paddlex_feat.fileio import lookup
from paddlex_feat.fileio.atomic import write_json
from paddlex_feat.hub.fetch import image_fetcher

log = logging.getLogger(__name__)
COMPARED_IMAGES = 8
OTHER_SIZE = 32  # pixels more, a multiple of every network's stride


def read_lists(config: Config, names: tuple[str, ...] = LISTS) -> dict[str, ImageList]:
    """The lists of the data set that the configuration names. Raises DatasetError if they have errors."""
    return require_lists(
        config.Global.dataset_dir,
        names,
        config.CheckDataset.outside == "refuse",
        config.Global.dataset_format,
        division_of(config.CheckDataset.split),
        image_fetcher(config.CheckDataset.urls),
    )


def _gallery_of(config: Config) -> ImageList:
    """The gallery as far as it can be read. Raises DatasetError if there is no data set."""
    root, form, names = (
        find_root(config.Global.dataset_dir, form=config.Global.dataset_format),
        config.Global.dataset_format,
        ("gallery",),
    )
    refuse, division = config.CheckDataset.outside == "refuse", division_of(config.CheckDataset.split)
    return readers.read_lists(
        root, readers.reader_of(root, names, form), names, refuse, division, image_fetcher(config.CheckDataset.urls)
    ).lists["gallery"]


def write_class_names(output: Path, records: ImageList) -> None:
    """Write class_names.json, the name of each label of a list; nothing where labels have no other name."""
    if records.names:
        write_json(output / "class_names.json", {str(label): records.names[label] for label in sorted(records.names)})


def division_of(split: SplitSection) -> Division:
    """How a data set without gallery and query is divided in memory."""
    return Division.of(split.percents(), split.by, split.seed)


def self_pairs_of(config: Config, lists: dict[str, ImageList]) -> np.ndarray | None:
    """Find the pairs of a query with its own file, or its class and camera, in the gallery, int64 [P, 2].

    None unless such pairs are to be left out (`excluded_pairs`).

    Raises:
        DatasetError: no query has a match, or there are too many pairs.
    """
    query, gallery = lists["query"], lists["gallery"]
    pairs = excluded_pairs(query, gallery, config.Evaluate.exclude_self)
    require_matches(query, gallery, pairs)
    return pairs


def warn_of_self_matches(config: Config, lists: dict[str, ImageList]) -> None:
    """Warn if the gallery has files of queries, which would find themselves, unless these pairs are left out."""
    query = lists["query"]
    excluded = config.Evaluate.exclude_self or query.leave_one_out or query.cameras
    found = "" if excluded else describe_self_matches(lists["query"], lists["gallery"])
    if found:
        log.warning("%s", found)


def require_images(records: ImageList, missing: list[int]) -> None:
    """Raise DatasetError if a list has missing files, given by their indices."""
    if not missing:
        return
    find, files = lookup.Lookup(records.root), records.files()
    hints = {i: find.explain(file_of(files[i]), "file") for i in missing[:5]}
    rows = [f"\n    {records.where(i)}: {hint}" for i, hint in hints.items() if hint]
    raise DatasetError(
        f"{len(missing)} images of {records.title} do not exist." + "".join(rows),
        where=", ".join(f"{records.where(i)} ({records.paths[i]})" for i in missing[:5]),
        fix="Correct the list; Global.mode=check_dataset finds all errors.",
        code="images-missing",
    )


def comparison_batches(config: Config, preprocess: Preprocess) -> tuple[list[np.ndarray], str]:
    """Return batches of images to compare an export on, and a description; two sizes for a graph of any size."""
    images, source = comparison_images(config, preprocess)
    if config.Export.input_size == "fixed":
        return [images], source
    other = replace(preprocess, size=preprocess.size + OTHER_SIZE)
    batches = [images, comparison_images(config, other)[0]]
    return batches, f"{source} at {preprocess.size} and {other.size} px"


def comparison_images(config: Config, preprocess: Preprocess) -> tuple[np.ndarray, str]:
    """Return images to compare an export on, uint8 [N, S, S, 3], and a description.

    They are the readable ones of the first COMPARED_IMAGES gallery images; if there are none, COMPARED_IMAGES images of
    noise.
    """
    files: Sequence[str] = []
    with suppress(DatasetError):
        files = _gallery_of(config).files()[:COMPARED_IMAGES]
    images = []
    for file in files:
        try:
            images.append(preprocess.resize(read_rgb(file)))
        except ImageError as error:
            log.warning("Not compared on %s: %s", file, error.what)
    if images:
        return np.stack(images), f"{len(images)} gallery images"
    shape = (COMPARED_IMAGES, preprocess.size, preprocess.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), f"{COMPARED_IMAGES} random images"
