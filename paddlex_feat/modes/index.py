"""Mode index: make a gallery of images, change it, tell what is in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, GalleryError, Interrupted
from paddlex_feat.modes.index_inputs import Row, rows_of
from paddlex_feat.modes.predictor import check_names, failures_of, predictor_of
from paddlex_feat.reports.csv_tables import write_items
from paddlex_feat.runtime.progress import bar
from paddlex_feat.search.exchange import export_gallery, import_gallery
from paddlex_feat.search.gallery import Added, Gallery
from paddlex_feat.search.statistics import statistics_of

log = logging.getLogger(__name__)
DEFAULT = "images.gallery"
SOURCE = "source"  # in the gallery's meta: what it is built from


def run(config: Config, output: Path) -> dict[str, Any]:
    """Do Index.action with the gallery Index.path; return the content of index_result.json.

    Raises GalleryError, ImageError if an input failed, whose others are kept, and the errors of the inputs.
    """
    check_names(config.Predict)
    path = gallery_path(config, output)
    try:
        return {"action": config.Index.action, "path": str(path), **_ACTIONS[config.Index.action](config, path, output)}
    except KeyboardInterrupt:
        fix = "What was acknowledged is in the gallery; the same command goes on from there."
        raise Interrupted("Interrupted.", where=str(path), fix=fix) from None


def gallery_path(config: Config, output: Path) -> Path:
    """The file that Index.path names."""
    return Path(config.Index.path) if config.Index.path else output / DEFAULT


def _build(config: Config, path: Path, output: Path) -> dict[str, Any]:
    with Gallery.create(path, predictor_of(config)) as gallery:
        source = _source(config)
        if len(gallery) and gallery.meta().get(SOURCE) != source:
            raise GalleryError(
                f"There is a gallery of {len(gallery)} images of another input already.",
                where=str(path),
                fix="Use Index.action=add or update, or another Index.path.",
                code="gallery-exists",
            )
        gallery.set_meta(SOURCE, source)
        return _told(gallery, _add_all(config, gallery))


def _source(config: Config) -> str:
    """The input of a build, as text: an interrupted build goes on with the same one alone."""
    wanted = config.Index
    given = [config.Global.dataset_dir, wanted.lists] if wanted.input is None else wanted.input
    return repr((given, wanted.label))


def _add(config: Config, path: Path, output: Path) -> dict[str, Any]:
    with Gallery.create(path, predictor_of(config)) as gallery:
        return _told(gallery, _add_all(config, gallery))


def _update(config: Config, path: Path, output: Path) -> dict[str, Any]:
    with Gallery(path, predictor_of(config)) as gallery:
        added = _add_all(config, gallery)
        gone = [item.id for item in gallery.items() if item.key not in added.keys]
        removed = gallery.remove(ids=gone) if gone else 0
        return {**_told(gallery, added), "removed": removed}


def _add_all(config: Config, gallery: Gallery) -> Added:
    """Embed and add the images of the input. Raises ImageError if one failed; the others are in the gallery."""
    with bar(None, "embedding", "images") as progress:

        def counted() -> Iterator[Row]:
            for row in rows_of(config):
                progress.update()
                yield row

        added = gallery.add_rows(counted(), on_error=config.Predict.on_error, skip_unchanged=True)
    if added.failed:
        error = failures_of(added.failed, "; the other images are in the gallery", "Index.input")
        raise error.with_result(_told(gallery, added))
    return added


def _told(gallery: Gallery, added: Added) -> dict[str, Any]:
    new, unchanged, images = len(added.ids), added.unchanged, len(gallery)
    log.info("%d images added or replaced, %d unchanged; the gallery has %d", new, unchanged, images)
    return {
        "added": new,
        "unchanged": unchanged,
        "failed": [{"input": name, "message": what} for name, what in added.failed],
        "images": images,
    }


def _remove(config: Config, path: Path, output: Path) -> dict[str, Any]:
    wanted = config.Index
    with Gallery(path) as gallery:
        count = gallery.remove(wanted.keys or None, wanted.labels or None, wanted.ids or None)
        log.info("%d images removed; the gallery has %d", count, len(gallery))
        return {"removed": count, "images": len(gallery)}


def _list(config: Config, path: Path, output: Path) -> dict[str, Any]:
    wanted, file = config.Index, output / "gallery_items.csv"
    with Gallery(path) as gallery:
        items = gallery.items(wanted.keys or None, wanted.labels or None)
    write_items(file, items)
    log.info("%d images: %s", len(items), file)
    return {"images": len(items), "file": file.name}


def _stats(config: Config, path: Path, output: Path) -> dict[str, Any]:
    with Gallery(path) as gallery:
        found = statistics_of(gallery)
    for line in found.lines():
        log.info("%s", line)
    return found.as_json()


def _rebuild(config: Config, path: Path, output: Path) -> dict[str, Any]:
    with Gallery(path) as gallery:
        count = gallery.rebuild(predictor_of(config))
    log.info("%d images embedded again", count)
    return {"images": count}


def _compact(config: Config, path: Path, output: Path) -> dict[str, Any]:
    before = path.stat().st_size if path.is_file() else 0
    with Gallery(path) as gallery:
        gallery.compact()
    return {"bytes_before": before, "bytes": path.stat().st_size}


def _export(config: Config, path: Path, output: Path) -> dict[str, Any]:
    with Gallery(path) as gallery:
        files = export_gallery(gallery, config.Index.format, output)
    log.info("Written: %s", ", ".join(map(str, files)))
    return {"files": [file.name for file in files]}


def _import(config: Config, path: Path, output: Path) -> dict[str, Any]:
    given = config.Index.input
    if not isinstance(given, str):
        fix = "Give features.npz, features.parquet, or a folder with vector.index and id_map.yaml."
        raise ConfigError("Nothing is given to import.", where="Index.input", fix=fix, code="input-missing")
    model = predictor_of(config)
    with Gallery.create(path, model) as gallery:
        count = import_gallery(gallery, Path(given))
        log.info("%d images imported; the gallery has %d", count, len(gallery))
        return {"added": count, "images": len(gallery)}


_ACTIONS: dict[str, Callable[[Config, Path, Path], dict[str, Any]]] = {
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
