"""Mode search: the nearest images of a gallery for each image of the input, on screen and as files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ImageError, sanitize
from paddlex_feat.fileio.atomic import write_bytes
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.modes.index import place_of
from paddlex_feat.modes.predictor import check_names, failures_of, inputs_of, predictor_of
from paddlex_feat.reports.csv_tables import write_answers
from paddlex_feat.reports.search_html import write_search_page
from paddlex_feat.search.answers import Answer
from paddlex_feat.search.calibrate import EVALUATION
from paddlex_feat.search.gallery import AUTO, Gallery
from paddlex_feat.search.place import Place

log = logging.getLogger(__name__)
NONE = "none"  # Search.threshold: every answer counts
PAGE_QUERIES = 200  # that search.html shows


def run(config: Config, output: Path) -> dict[str, Any]:
    """Answer all queries; return the content of search_result.json.

    Writes search.jsonl, search.csv and search.html. Raises GalleryError, and ImageError if an input failed, whose
    others are answered.
    """
    check_names(config.Predict)
    given = inputs_of("Search.input", config.Search.input)
    model, place = predictor_of(config), place_of(config, output)
    with place.open(model) as gallery:
        threshold = _threshold(config, gallery)
        found = list(gallery.search(given, config.Search.topk, threshold, config.Predict.on_error))
        _write(output, gallery, found)
        method = gallery.method()
    for answer in found:
        print(sanitize(_line(answer)))
    result = {**_result(place, model, threshold, found), "search": method}
    if model.failed:
        raise failures_of(model.failed, f"; the other {len(found)} are answered", "Search.input").with_result(result)
    if not found:
        what, fix = "The input holds no image.", "Give an image, a folder, a URL or a list."
        raise ImageError(what, where="Search.input", fix=fix, code="input-without-images").with_result(result)
    return result


def _threshold(config: Config, gallery: Gallery) -> float | None:
    wanted = config.Search.threshold
    if wanted not in (AUTO, EVALUATION):
        return None if wanted == NONE else float(wanted)
    found = gallery.threshold() if wanted == AUTO else gallery.require_suggested()
    if found is None:
        log.warning("Search.threshold=auto finds none, for the gallery has fewer than two labels: every answer counts")
        return None
    log.info("Threshold %.4f: %s", found.threshold, found.promise)
    return found.threshold


def _write(output: Path, gallery: Gallery, answers: list[Answer]) -> None:
    rows = (json.dumps(answer.as_json(), ensure_ascii=False, allow_nan=False) for answer in answers)
    text = "".join(f"{row}\n" for row in rows)
    write_bytes(output / "search.jsonl", text.encode("utf-8", errors="backslashreplace"))
    write_answers(output / "search.csv", answers)
    write_search_page(output / "search.html", gallery, answers[:PAGE_QUERIES], len(answers))


def _line(answer: Answer) -> str:
    """An answer on one line of the screen."""
    part = "" if answer.box is None else f"[{answer.box}]"
    if not answer.hits:
        return f"{answer.name}{part}: the gallery is empty"
    best = answer.hits[0]
    what = (answer.label if answer.label is not None else best.item.key) if answer.known else "unknown"
    return f"{answer.name}{part}: {what} ({best.score:.4f}, {best.item.key})"


def _result(place: Place, model: Predictor, threshold: float | None, answers: list[Answer]) -> dict[str, Any]:
    known = sum(answer.known for answer in answers)
    failed = [{"input": name, "message": what} for name, what in model.failed]
    return {
        "gallery": str(place),
        "model": model.identity.as_json(),
        "threshold": threshold,
        "queries": len(answers),
        "known": known,
        "unknown": len(answers) - known,
        "failed": failed,
        "files": ["search.jsonl", "search.csv", "search.html"],
    }
