"""Mode index: make a gallery of images, change it, tell what is in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, GalleryError, ImageError, Interrupted
from paddlex_feat.fileio.addresses import is_url
from paddlex_feat.fileio.atomic import read_result
from paddlex_feat.inference.predictor import Predictor, View
from paddlex_feat.modes.index_inputs import Row, rows_of
from paddlex_feat.modes.predictor import check_names, failures_of, predictor_of
from paddlex_feat.modes.worker import launch_processes
from paddlex_feat.reports.csv_tables import write_advice, write_items
from paddlex_feat.runtime import launch
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.progress import bar
from paddlex_feat.search.adding import Added
from paddlex_feat.search.exchange import export_gallery, import_gallery
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.place import Place
from paddlex_feat.search.statistics import statistics_of
from paddlex_feat.search.thumbnails import thumbnail

log = logging.getLogger(__name__)
DEFAULT = "images.gallery"
ADVICE = "gallery_advice.csv"
ENV_MILVUS_TOKEN = "MILVUS_TOKEN"  # noqa: S105 - the name of a variable
SOURCE = "source"  # in the gallery's meta: what it is built from


@dataclass(frozen=True)
class _Task:
    """What is to be done.

    Attributes:
        config: with Index.action and its keys.
        place: of the gallery.
        output: the folder Global.output.
        group: the processes that share the embedding; rank 0 has the gallery.
    """

    config: Config
    place: Place
    output: Path
    group: ProcessGroup

    def model(self) -> Predictor:
        """The model that embeds."""
        return predictor_of(self.config, self.group)


def run(config: Config, output: Path, group: ProcessGroup) -> dict[str, Any]:
    """Do Index.action with the gallery Index.path; return the content of index_result.json.

    With several devices, each embeds a share of the images. Raises GalleryError, ImageError if an input failed, whose
    others are kept, and the errors of the inputs.
    """
    check_names(config.Predict)
    action = config.Index.action
    if action in _SHARED and launch.needs_workers(config.Global.device, None, group):
        return launch_processes(config, output)
    place = place_of(config, output)
    task = _Task(config, place, output, group)
    if group.rank:
        task.model().work(_SHARED[action])
        return {}
    try:
        told = _ACTIONS[action](task)
        return {"action": action, "path": str(place), **told}
    except KeyboardInterrupt:
        fix = "What was acknowledged is in the gallery; the same command goes on from there."
        raise Interrupted("Interrupted.", where=str(place), fix=fix) from None


def place_of(config: Config, output: Path) -> Place:
    """Where the gallery is that the section Index names. Raises ConfigError for a graph on a server."""
    if config.Index.url is not None and config.Search.method == "hnsw":
        what, fix = "A gallery on a Milvus server has no graph.", "Remove Index.url, or use Search.method=exact."
        raise ConfigError(what, where="Search.method=hnsw", fix=fix, code="method-unavailable")
    return Place(
        Path(config.Index.path) if config.Index.path else output / DEFAULT,
        config.Index.url,
        config.Index.collection,
        os.environ.get(ENV_MILVUS_TOKEN) or None,
        config.Search.method == "hnsw",
    )


def _build(task: _Task) -> dict[str, Any]:
    config = task.config
    with task.place.create(task.model()) as gallery:
        source = _source(config)
        if len(gallery) and gallery.meta().get(SOURCE) != source:
            raise GalleryError(
                f"There is a gallery of {len(gallery)} images of another input already.",
                where=str(task.place),
                fix="Use Index.action=add or update, or another Index.path.",
                code="gallery-exists",
            )
        gallery.set_meta(SOURCE, source)
        _carry_over(task.output, gallery)
        return _told(gallery, _add_all(config, gallery))


def _source(config: Config) -> str:
    """The input of a build, as text: an interrupted build goes on with the same one alone."""
    wanted = config.Index
    given = [config.Global.dataset_dir, wanted.lists] if wanted.input is None else wanted.input
    given = os.path.normpath(given) if isinstance(given, str) and not is_url(given) else given
    return repr((given, wanted.label))


def _add(task: _Task) -> dict[str, Any]:
    with task.place.create(task.model()) as gallery:
        _carry_over(task.output, gallery)
        return _told(gallery, _add_all(task.config, gallery))


def _update(task: _Task) -> dict[str, Any]:
    with task.place.open(task.model()) as gallery:
        _carry_over(task.output, gallery)
        added = _add_all(task.config, gallery)
        gone = [item.id for item in gallery.items() if item.key not in added.keys]
        removed = gallery.remove(ids=gone) if gone else 0
        return {**_told(gallery, added), "removed": removed}


def _carry_over(output: Path, gallery: Gallery) -> None:
    """Keep the threshold that mode evaluate has suggested in this folder, if it was for this very model."""
    result = read_result(output / "evaluate_result.json")
    threshold = result.get("suggested_threshold")
    if result.get("model") == gallery.identity.as_json() and isinstance(threshold, float):
        gallery.set_suggested(threshold)


def _add_all(config: Config, gallery: Gallery) -> Added:
    """Embed and add the images of the input. Raises ImageError if one failed; the others are in the gallery."""
    with bar(None, "embedding", "images") as progress:

        def counted() -> Iterator[Row]:
            for row in rows_of(config):
                progress.update()
                yield row

        added = gallery.add_rows(counted(), on_error=config.Predict.on_error, skip_unchanged=True)
    if not added.keys:
        what, fix = "The input holds no image.", "Give images, a folder, a data set or a list of images."
        raise ImageError(what, where="Index.input", fix=fix, code="input-without-images")
    if added.failed:
        error = failures_of(added.failed, "; the other images are in the gallery", "Index.input")
        raise error.with_result(_told(gallery, added))
    return added


def _told(gallery: Gallery, added: Added) -> dict[str, Any]:
    new, images = len(added.ids) - added.replaced, len(gallery)
    told = (new, added.replaced, added.unchanged, images)
    log.info("%d images added, %d replaced, %d unchanged; the gallery has %d", *told)
    return {
        "added": new,
        "replaced": added.replaced,
        "unchanged": added.unchanged,
        "failed": [{"input": name, "message": what} for name, what in added.failed],
        "images": images,
    }


def _remove(task: _Task) -> dict[str, Any]:
    wanted = task.config.Index
    with task.place.open() as gallery:
        count = gallery.remove(wanted.keys or None, wanted.labels or None, wanted.ids or None)
        log.info("%d images removed; the gallery has %d", count, len(gallery))
        return {"removed": count, "images": len(gallery)}


def _list(task: _Task) -> dict[str, Any]:
    wanted, file = task.config.Index, task.output / "gallery_items.csv"
    with task.place.open() as gallery:
        items = gallery.items(wanted.keys or None, wanted.labels or None)
    write_items(file, items)
    log.info("%d images: %s", len(items), file)
    return {"images": len(items), "file": file.name}


def _stats(task: _Task) -> dict[str, Any]:
    with task.place.open() as gallery:
        found = statistics_of(gallery)
    for line in found.lines():
        log.info("%s", line)
    if found.advice is not None:
        write_advice(task.output / ADVICE, [each.as_json() for each in found.advice])
        log.info("Advice for each label: %s", task.output / ADVICE)
    return found.as_json()


def _rebuild(task: _Task) -> dict[str, Any]:
    with task.place.open() as gallery:
        count = gallery.rebuild(task.model())
    log.info("%d images embedded again", count)
    return {"images": count}


def _compact(task: _Task) -> dict[str, Any]:
    before = _bytes(task.place)
    with task.place.open() as gallery:
        gallery.compact()
    return {"bytes_before": before, "bytes": _bytes(task.place)}


def _bytes(place: Place) -> int | None:
    """Size of the file; None where there is none, such as on a server."""
    return place.path.stat().st_size if place.url is None and place.path.is_file() else None


def _export(task: _Task) -> dict[str, Any]:
    with task.place.open() as gallery:
        files = export_gallery(gallery, task.config.Index.format, task.output)
    log.info("Written: %s", ", ".join(map(str, files)))
    return {"files": [file.name for file in files]}


def _import(task: _Task) -> dict[str, Any]:
    given = task.config.Index.input
    if not isinstance(given, str):
        fix = "Give features.npz, features.parquet, or a folder with vector.index and id_map.yaml."
        raise ConfigError("Nothing is given to import.", where="Index.input", fix=fix, code="input-missing")
    with task.place.create(task.model()) as gallery:
        count = import_gallery(gallery, Path(given))
        log.info("%d images imported; the gallery has %d", count, len(gallery))
        return {"added": count, "images": len(gallery)}


_ACTIONS: dict[str, Callable[[_Task], dict[str, Any]]] = {
    "build": _build,
    "add": _add,
    "update": _update,
    "remove": _remove,
    "list": _list,
    "stats": _stats,
    "rebuild": _rebuild,
    "compact": _compact,
    "export": _export,
    "import": _import,
}
# The actions that embed many images -> what they keep of each beside its feature.
_SHARED: dict[str, View | None] = {"build": thumbnail, "add": thumbnail, "update": thumbnail, "rebuild": None}
